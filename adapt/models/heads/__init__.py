"""From features to logits, and the losses that train heads."""
