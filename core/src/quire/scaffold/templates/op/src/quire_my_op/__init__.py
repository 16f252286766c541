"""An op for Quire."""
