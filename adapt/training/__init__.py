"""A run, what it trains, and how it ends."""
