"""What quantization methods implement and are told. Types only; torch is not imported at run time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from quire.api.batch import DeviceInfo, DTypeName

if TYPE_CHECKING:
    from quire.api.protocols import Ops
    from quire.nn.linear_method import LinearMethod


@dataclass(slots=True, frozen=True)
class QuantizationRequest:
    """A checkpoint and a device that a quantization method is asked to serve.

    Attributes:
        config: the checkpoint's quantization_config as its file spells it; None for a 16-bit checkpoint.
        device: where the model runs.
        dtype: of its activations.
    """

    config: Mapping[str, object] | None
    device: DeviceInfo
    dtype: DTypeName


@dataclass(slots=True, frozen=True)
class QuantizationContext:
    """What the factory of a quantization method is given.

    Attributes:
        request: the checkpoint's quantization_config, device and dtype.
        ops: the op table.
        options: the plugin's validated options, or None.
    """

    request: QuantizationRequest
    ops: Ops
    options: object = None


@dataclass(slots=True, frozen=True)
class StoredTensor:
    """A tensor of a checkpoint, unread.

    Attributes:
        dtype: torch's name of it: "int32", "float16", "float8_e4m3fn".
    """

    shape: tuple[int, ...]
    dtype: str


@dataclass(slots=True, frozen=True)
class StoredModule:
    """One module of a checkpoint that fills a linear layer, or a part of one.

    Attributes:
        name: as in the checkpoint, prefix included: "model.layers.0.self_attn.q_proj".
        tensors: its tensors by suffix ("qweight"); empty for a head that is tied to the embedding.
        in_features, out_features: of the whole module; out_features None where a part takes some of its rows.
        is_head: whether it is the LM head. is_tied: whether the head's weight is the embedding's.
    """

    name: str
    tensors: Mapping[str, StoredTensor]
    in_features: int
    out_features: int | None
    is_head: bool = False
    is_tied: bool = False


@dataclass(slots=True, frozen=True)
class LayerChoice:
    """How one module is kept and multiplied.

    Attributes:
        method: None: as an ordinary 16-bit linear.
        reason: why it is not what the method does by default (16-bit, another layout, a slower kernel): shown in
            the start-up summary. Empty where there is nothing to explain.
    """

    method: LinearMethod | None
    reason: str = ""


@runtime_checkable
class QuantizationMethod(Protocol):
    """How the linears of one model are kept: what `QuantizationSpec.factory` makes of a QuantizationContext.

    The factory raises QuantizationError for a config that is contradictory or asks for what the method
    does not have.
    """

    def choose(self, module: StoredModule) -> LayerChoice:
        """The method of one module; raises QuantizationError where its tensors are not what the config says."""
        ...
