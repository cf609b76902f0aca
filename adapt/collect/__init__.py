"""Data sets in the making: downloaded, aligned, composited, packed."""
