"""A parser of tool calls for Quire."""
