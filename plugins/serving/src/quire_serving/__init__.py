"""Quire's OpenAI-compatible server, its clients and its load generator."""
