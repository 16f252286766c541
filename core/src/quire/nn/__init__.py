"""What models are made of. Model plugins import from here and from `quire.api` only."""
