"""A drafter for Quire."""
