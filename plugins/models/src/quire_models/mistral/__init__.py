"""Mistral 7B and models of its shape."""
