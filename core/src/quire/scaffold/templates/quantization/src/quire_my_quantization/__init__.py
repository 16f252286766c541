"""A quantization method for Quire."""
