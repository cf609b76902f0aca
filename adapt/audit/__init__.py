"""Before learning: what tells the label without looking at the picture, and pictures that stand twice."""
