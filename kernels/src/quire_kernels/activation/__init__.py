"""The elementwise activations."""
