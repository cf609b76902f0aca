"""Features, encoded once and kept."""
