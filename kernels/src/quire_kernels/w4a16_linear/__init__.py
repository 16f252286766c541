"""Linear layers with 4-bit weights and 16-bit inputs."""
