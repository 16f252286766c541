"""Linear layers over 8-bit floats."""
