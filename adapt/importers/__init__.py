"""Published detectors, read into the folder of a detector: one file each, with its equation and its preprocessing."""
