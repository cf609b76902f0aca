"""Image encoders behind one name."""
