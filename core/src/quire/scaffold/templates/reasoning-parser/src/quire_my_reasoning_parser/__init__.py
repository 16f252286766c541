"""A parser of reasoning for Quire."""
