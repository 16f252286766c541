"""GPTQ checkpoints: as they are, and repacked."""
