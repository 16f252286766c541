"""The gated MLP."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from quire.api.protocols import BuildContext


class GatedMLP(nn.Module):
    """`down(activation(gate(x)) * up(x))`, gate and up in one product.

    Its linears are `gate_up` (parts "gate" and "up") and `down`.

    Source: Shazeer 2020.
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        activation: str,
        ctx: BuildContext,
        *,
        bias: bool = False,
    ) -> None:
        """Build the layer; `activation` is the name of an op, see ACTIVATION_OPS."""
        super().__init__()
        parts = {"gate": intermediate_size, "up": intermediate_size}
        self.gate_up = ctx.linear(hidden_size, parts, bias=bias)
        self.down = ctx.linear(intermediate_size, {"down": hidden_size}, bias=bias)
        self._combine = _combination(activation, ctx)

    def forward(self, x: Tensor) -> Tensor:
        """[T, hidden_size] to [T, hidden_size], a new tensor."""
        result: Tensor = self.down(self._combine(self.gate_up(x)))
        return result


def _combination(activation: str, ctx: BuildContext) -> Callable[[Tensor], Tensor]:
    """The function from [T, 2 * I], gate then up, to [T, I]."""
    if activation == "silu":
        return ctx.ops.silu_and_mul
    activate: Callable[[Tensor], Tensor] = getattr(ctx.ops, activation)

    def combine(gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return activate(gate) * up

    return combine
