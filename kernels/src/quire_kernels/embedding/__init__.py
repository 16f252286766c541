"""The embedding lookup."""
