"""The route of the native CPU kernels: C sources, compiled once on first use, called through ctypes."""
