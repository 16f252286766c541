"""The kinds of plugins that can be scaffolded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final


@dataclass(slots=True, frozen=True)
class ScaffoldKind:
    """A kind with a folder of templates.

    Attributes:
        description: of the distribution. test_requirements: what its tests need besides quire-core.
        has_suite: whether `quire plugins check` has something to run for it.
    """

    description: str
    test_requirements: tuple[str, ...] = ("pytest>=8",)
    has_suite: bool = True


KINDS: Final[Mapping[str, ScaffoldKind]] = MappingProxyType(
    {
        "model": ScaffoldKind("A model architecture for Quire", ("pytest>=8", "transformers>=5.17")),
        "op": ScaffoldKind("An op for Quire, with its reference and a faster implementation"),
        "quantization": ScaffoldKind("A quantization method for Quire", has_suite=False),
        "drafter": ScaffoldKind("A drafter for Quire's speculative decoding"),
        "policy": ScaffoldKind("A scheduling policy for Quire"),
        "logits-processor": ScaffoldKind("A logits processor for Quire"),
        "observer": ScaffoldKind("An observer of Quire's engine", has_suite=False),
        "tool-parser": ScaffoldKind("A parser of tool calls for Quire's server"),
        "reasoning-parser": ScaffoldKind("A parser of reasoning for Quire's server"),
        "route": ScaffoldKind("A route of Quire's server", ("pytest>=8", "quire-serving"), has_suite=False),
    }
)
"""By the name that `quire plugins new` takes, which is also the folder of its templates."""
