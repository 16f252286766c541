"""Linear layers with 8-bit weights and 16-bit inputs."""
