"""Why a detector works and when it breaks: one module an item of recipes/understand.py."""
