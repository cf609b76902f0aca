"""Public data sets and users' own folders, each turned into a manifest by one file."""
