"""A model architecture for Quire."""
