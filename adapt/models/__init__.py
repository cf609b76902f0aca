"""Backbones, their adapters and their heads."""
