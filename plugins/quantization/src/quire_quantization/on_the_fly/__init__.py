"""Quantizing 16-bit checkpoints while they are loaded."""
