"""Memory for weights that steps read, for quantization methods; see `quire.ops.weight_memory`."""

from quire.ops.weight_memory import empty_weight

__all__ = ["empty_weight"]
