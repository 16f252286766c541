"""What a model has that engines and kernels must get right, in words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

from torch import nn

from quire.api.protocols import AttentionParams, Model, ModelConfig
from quire.nn.attention import Attention
from quire.nn.linear import LMHead
from quire.nn.rotary import RotaryEmbedding

if TYPE_CHECKING:
    from quire.testing.model_base import Variant


def model_traits(model: Model, config: ModelConfig) -> list[str]:
    """Names of the traits that a built model shows."""
    module = cast(nn.Module, model)
    traits: dict[str, None] = {}
    for part in module.modules():
        if isinstance(part, Attention):
            traits.update(dict.fromkeys(attention_traits(part.params)))
        elif isinstance(part, RotaryEmbedding):
            scaling = part.config.scaling
            traits["rope" if scaling is None else f"rope {type(scaling).__name__}"] = None
    if config.rope_switch_len is not None:
        traits["length-dependent rope"] = None
    if any(name.endswith("bias") for name, _ in module.named_parameters()):
        traits["bias"] = None
    heads = [part for part in module.modules() if isinstance(part, LMHead)]
    traits.update({"tied" if head.is_tied else "untied": None for head in heads})
    return list(traits)


def attention_traits(params: AttentionParams) -> list[str]:
    """Names of what an attention layer asks of its backend."""
    kinds = {1: "MQA", params.num_heads: "MHA"}
    traits = [kinds.get(params.num_kv_heads, "GQA")]
    if params.window is not None:
        traits.append("window")
    if params.alibi_slopes is not None:
        traits.append("alibi")
    if params.logit_cap is not None:
        traits.append("logit cap")
    return traits


def needs_engine(
    variants: Sequence[Variant], params_of: Callable[[Variant], tuple[object, ...]]
) -> list[Variant]:
    """The first variant, and the first of each set of traits that only several steps can show."""
    chosen: dict[object, Variant] = {}
    for variant in variants:
        layers = params_of(variant)
        special = {
            trait
            for layer in layers
            if isinstance(layer, AttentionParams)
            for trait in attention_traits(layer)[1:]
        }
        key = (frozenset(special), variant.is_length_dependent)
        chosen.setdefault(key, variant)
    first = variants[0]
    return [first, *(variant for variant in chosen.values() if variant is not first)]
