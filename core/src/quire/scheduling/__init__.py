"""Which requests compute which tokens in the next step. Ints only."""
