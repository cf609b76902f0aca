"""Small updates of an encoder: low rank, singular directions, norms."""
