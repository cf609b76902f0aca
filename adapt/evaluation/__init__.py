"""Scores in, tables and figures out. Nothing here knows what a model is."""
