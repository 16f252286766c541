"""Gives every linear of a built model its method, asking the quantization method module by module."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn

from quire.api.errors import CheckpointError, PluginError
from quire.api.quantization import LayerChoice, QuantizationMethod, StoredModule, StoredTensor
from quire.api.specs import WeightMap, WeightPart
from quire.loading.tensor_copy import TensorSource
from quire.loading.weight_map import expand, naming_module
from quire.nn.linear import Linear, LinearMethod, LMHead
from quire.nn.unquantized import UnquantizedMethod

AssignLinears = Callable[[nn.Module, WeightMap], None]
"""Gives the linears of a built model their methods."""


@dataclass(slots=True, frozen=True)
class AssignedModule:
    """One checkpoint module (or rows of it) and how it is kept.

    Attributes:
        path: of the linear that it fills. name: the module's, as in the checkpoint.
        method: LinearMethod.name. op: the op that multiplies, or "".
        reason: why it is not what the quantization method does by default.
    """

    path: str
    name: str
    method: str
    op: str
    reason: str


def assign_unquantized(model: nn.Module, weight_map: WeightMap) -> None:
    """Keep every linear in the model's dtype."""
    for module in model.modules():
        if isinstance(module, Linear):
            module.assign([UnquantizedMethod()] * len(module.shape.parts))


class LinearAssignment:
    """An AssignLinears that asks a quantization method.

    Attributes:
        modules: what was decided, in the order of the weight map.
    """

    def __init__(self, method: QuantizationMethod, checkpoint: TensorSource) -> None:
        self._method = method
        self._checkpoint = checkpoint
        self._tensors = _tensors_by_module(checkpoint)
        self.modules: list[AssignedModule] = []

    def __call__(self, model: nn.Module, weight_map: WeightMap) -> None:
        """Ask for every module of every linear, and create the linears' weights.

        Raises:
            QuantizationError: the checkpoint's tensors are not what its config says; the module is named.
            PluginError: the method answered something else than a LayerChoice.
        """
        parts: dict[str, list[WeightPart]] = {}
        for path, part in expand(weight_map):
            parts.setdefault(path, []).append(part)
        for path, module in model.named_modules():
            if isinstance(module, Linear):
                module.assign(self._methods(path, module, parts.get(path, []), weight_map))

    def _methods(
        self, path: str, module: Linear, parts: list[WeightPart], weight_map: WeightMap
    ) -> list[LinearMethod]:
        sources = {part.part: part for part in parts}
        chosen = []
        for name, _ in module.shape.parts:
            part = sources.get(name) or sources.get(None)
            stored = self._stored(path, module, part, name, weight_map)
            with naming_module(stored.name):
                choice: object = self._method.choose(stored)
            if not isinstance(choice, LayerChoice):
                raise PluginError(
                    f"quantization: choose({stored.name!r}) gave {choice!r}, expected a LayerChoice"
                )
            method = choice.method or UnquantizedMethod()
            self.modules.append(AssignedModule(path, stored.name, method.name, method.op, choice.reason))
            chosen.append(method)
        return chosen

    def _stored(
        self, path: str, module: Linear, part: WeightPart | None, name: str, weight_map: WeightMap
    ) -> StoredModule:
        is_head = isinstance(module, LMHead)
        width = module.shape.whole_width(name)
        if part is None:
            if not (isinstance(module, LMHead) and module.is_tied):
                raise CheckpointError(f"the weight map does not say what fills part {name!r} of {path}")
            inputs = module.shape.whole_in_features
            return StoredModule("lm_head", {}, inputs, width, is_head=True, is_tied=True)
        prefixes = [prefix for prefix in weight_map.prefixes if prefix + part.source in self._tensors]
        full = (prefixes[0] if prefixes else weight_map.prefixes[0]) + part.source
        return StoredModule(
            full,
            self._tensors.get(full, {}),
            module.shape.whole_in_features,
            None if part.row_permutation is not None else width,
            is_head=is_head,
        )


def _tensors_by_module(checkpoint: TensorSource) -> Mapping[str, Mapping[str, StoredTensor]]:
    modules: dict[str, dict[str, StoredTensor]] = {}
    for name in checkpoint.names():
        module, _, suffix = name.rpartition(".")
        dtype = str(checkpoint.dtype(name)).removeprefix("torch.")
        modules.setdefault(module, {})[suffix] = StoredTensor(checkpoint.shape(name), dtype)
    return modules
