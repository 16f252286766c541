"""Fast implementations of Quire's ops, one folder per op. The references are `quire.ops`."""
