"""One plain-torch reference per op, the reference attention backend, and the op table."""
