"""A logits processor for Quire."""
