"""StableLM for Quire, a log of its steps, and tokens that must not appear."""
