"""Model architectures for Quire, one plugin per folder."""
