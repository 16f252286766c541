"""What plugins say of themselves and of what can be combined with what they register."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from quire.api.batch import DTypeName

FactoryRef = str | Callable[..., object]
"""A "module:attribute" string, imported when first used, or the callable itself."""


Placement = Literal["frontend", "engine", "worker"]
"""A kind of process: the one that talks to users, the one that plans, the ones that compute."""


@dataclass(slots=True, frozen=True)
class Capabilities:
    """What a registered thing can be combined with; None stands for everything.

    An impossible combination is refused before weights are loaded, and the message names both sides.

    Attributes:
        dtypes: of the model. devices: "cpu", "cuda".
        quantizations: names of quantization methods; () for none.
        tensor_parallel: works with more than one rank.
        sliding_windows: works with layers that see only the latest tokens.
        drafts: works when a step verifies drafted tokens.
        prefix_caching, chunked_prefill: works with them.
    """

    dtypes: tuple[DTypeName, ...] | None = None
    devices: tuple[str, ...] | None = None
    quantizations: tuple[str, ...] | None = None
    tensor_parallel: bool = True
    sliding_windows: bool = True
    drafts: bool = True
    prefix_caching: bool = True
    chunked_prefill: bool = True


@dataclass(slots=True, frozen=True)
class PluginInfo:
    """A plugin about itself.

    Attributes:
        api: the range of hook API versions that it was written for, e.g. ">=1,<2".
        description: one line for `quire plugins list`.
        options: a pydantic model of the plugin's options, or "module:Class"; None: it has none. Give
            every option a default and a description, and forbid unknown keys or not: Quire refuses them.
        before, after: names of plugins that are to be loaded later or earlier than this one, where installed.
        runs_in: the kinds of process that need it.
        affects_outputs: whether it can change logits or KV; None: decided by what it registers (models,
            ops, attention, quantization, logits processors, prepare_model do).
    """

    api: str
    description: str = ""
    options: FactoryRef | None = None
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    runs_in: tuple[Placement, ...] = ("frontend", "engine", "worker")
    affects_outputs: bool | None = None
