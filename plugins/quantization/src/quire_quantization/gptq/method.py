"""GPTQ linears as their checkpoint packs them: every bit width and group size, at the speed of plain torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from torch import Tensor, nn

from quire.api.errors import QuantizationError
from quire.api.protocols import Ops
from quire.api.quantization import LayerChoice, QuantizationContext, StoredModule
from quire.nn.linear_method import LinearMethod, LinearShape, TensorSlot
from quire_quantization.gptq.config import GPTQConfig, parse_config
from quire_quantization.gptq.layout import GPTQLayout, read_layout
from quire_quantization.gptq.tensors import LoadingTensors, Notices, PackedWeights

_OP = "gptq_linear"


class GPTQWeights(nn.Module):
    """A layer's weights; after loading qweight, scales, and of the others what is not a matter of course."""

    def __init__(self, shape: LinearShape, method: GPTQMethod) -> None:
        super().__init__()
        self._shape = shape
        self._method = method
        self._loading: LoadingTensors | None = LoadingTensors(shape, method.layout)
        self._product: Callable[[Tensor], Tensor] | None = None

    def tensor_slots(self, part: str | None) -> Sequence[TensorSlot]:
        """See LinearWeights; none after processing."""
        return () if self._loading is None else self._loading.tensor_slots(part)

    def process_after_loading(self) -> None:
        """See LinearWeights; QuantizationError where the tensors contradict each other."""
        if self._loading is None:
            return
        packed = self._loading.settle(self._method.notices)
        self._loading = None
        self._product = self._keep(packed)

    def product(self) -> Callable[[Tensor], Tensor]:
        """See LinearWeights."""
        if self._product is None:
            raise RuntimeError("the product was asked for before process_after_loading")
        return self._product

    def _keep(self, packed: PackedWeights) -> Callable[[Tensor], Tensor]:
        """Register what is kept, and return the layer's function."""
        op, bits, zero_offset = linear_op(self._method.ops), self._method.layout.bits, packed.zero_offset
        buffers = {
            "qweight": packed.qweight,
            "scales": packed.scales,
            "qzeros": packed.qzeros,
            "g_idx": packed.g_idx,
            "bias": packed.bias,
        }
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor)
        tensors = tuple(buffers.values())
        return lambda x: op(x, *tensors, bits, zero_offset)


@dataclass(slots=True, frozen=True)
class GPTQMethod:
    """How one module is kept; see LinearMethod."""

    name: ClassVar[str] = "gptq"
    layout: GPTQLayout
    ops: Ops = field(compare=False, repr=False)
    notices: Notices = field(compare=False, repr=False)

    @property
    def op(self) -> str:
        """See LinearMethod."""
        return _OP

    @property
    def fuses(self) -> bool:
        """See LinearMethod."""
        return not self.layout.has_own_order

    def create(self, shape: LinearShape) -> GPTQWeights:
        """See LinearMethod."""
        return GPTQWeights(shape, self)


class GPTQQuantization:
    """The quantization method `gptq`: checkpoints of AutoGPTQ and GPTQModel, multiplied out of their own layout.

    2, 3, 4 and 8 bits; any group size that divides a module's inputs; with and without zero points and
    act-order; module by module as `dynamic` says.
    """

    def __init__(self, context: QuantizationContext) -> None:
        """Read the config; QuantizationError where it is contradictory or unsupported."""
        self._config: GPTQConfig = parse_config(context.request.config or {})
        self._ops = context.ops
        self._notices = Notices()

    def choose(self, module: StoredModule) -> LayerChoice:
        """See QuantizationMethod. What is stored decides; the config's rules explain."""
        if module.is_tied:
            return LayerChoice(None, "tied to the embedding, which is not quantized")
        reason = self._config.skip_reason(module.name, module.is_head)
        if "weight" in module.tensors and "qweight" not in module.tensors:
            return LayerChoice(None, reason or "not quantized in the checkpoint")
        choice = self._choose(module, read_layout(module, self._config))
        note = f"quantized in the checkpoint although {reason}" if reason else ""
        return replace(choice, reason="; ".join(filter(None, (note, choice.reason))))

    def _choose(self, module: StoredModule, layout: GPTQLayout) -> LayerChoice:
        """The choice for a quantized module."""
        linear_op(self._ops)
        return LayerChoice(self._own_layout(layout))

    def _own_layout(self, layout: GPTQLayout) -> LinearMethod:
        return GPTQMethod(layout, self._ops, self._notices)


def linear_op(ops: Ops) -> Callable[..., Tensor]:
    """The op that multiplies out of GPTQ's layout.

    Raises:
        QuantizationError: the plugin that brings it is off.
    """
    try:
        return getattr(ops, _OP)  # type: ignore[no-any-return]  # ops are found by name
    except AttributeError:
        raise QuantizationError(
            f"the op {_OP!r} multiplies weights that cannot be laid out in tiles, and the plugin 'gptq' that brings "
            "it is off: switch it on"
        ) from None
