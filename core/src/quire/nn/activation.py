"""Activation functions by the names that configurations give them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

ACTIVATION_OPS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "silu": "silu",
        "swish": "silu",
        "gelu": "gelu",
        "gelu_python": "gelu",
        "gelu_new": "gelu_new",
        "gelu_fast": "gelu_fast",
        "gelu_pytorch_tanh": "gelu_pytorch_tanh",
        "gelu_python_tanh": "gelu_pytorch_tanh",
        "relu": "relu",
    }
)
"""Hugging Face's name of an activation to the op that computes it."""
