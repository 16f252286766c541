"""AWQ checkpoints: as they are, and repacked."""
