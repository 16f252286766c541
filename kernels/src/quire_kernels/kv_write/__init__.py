"""Writing keys and values to the paged KV cache, quantized or not, with or without rotation."""
