"""Image statistics that need no weights."""
