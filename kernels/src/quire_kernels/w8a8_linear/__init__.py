"""Linear layers over 8-bit weights and inputs that are rounded to 8 bits."""
