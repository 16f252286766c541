"""A scheduling policy for Quire."""
