"""Root mean square norm."""
