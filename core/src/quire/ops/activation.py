"""References of the activations."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def silu_and_mul(x: Tensor) -> Tensor:
    """SwiGLU's inner product: `silu(x[..., :I]) * x[..., I:]`, each factor rounded to x's dtype.

    Args:
        x: [..., 2 * I]: gate, then up.

    Returns:
        A new tensor [..., I] of x's dtype.

    Source: Shazeer 2020.
    """
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate) * up


def gelu(x: Tensor) -> Tensor:
    """Exact GELU, `x * Phi(x)`, elementwise: a new tensor like x. Source: Hendrycks and Gimpel 2016."""
    return F.gelu(x)


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU by its tanh approximation, elementwise: a new tensor like x.

    Hugging Face calls it "gelu_new", "gelu_pytorch_tanh" or "gelu_fast".

    Source: Hendrycks and Gimpel 2016, section 2.
    """
    return F.gelu(x, approximate="tanh")


def relu(x: Tensor) -> Tensor:
    """`max(x, 0)`, elementwise: a new tensor like x."""
    return F.relu(x)


def silu(x: Tensor) -> Tensor:
    """`x * sigmoid(x)`, elementwise: a new tensor like x."""
    return F.silu(x)


gelu_new = gelu_fast = gelu_pytorch_tanh = gelu_tanh
