"""Checkpoints in the format of compressed-tensors."""
