"""From a table of files to pixels: manifest, families, safe decoding, views, groups."""
