"""`quire quantize`: writes quantized checkpoints, and says what they cost in loss."""
