"""Which token of which request lies in which block of the KV cache. Ints only."""
