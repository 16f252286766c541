"""Reads the quantization_config of GPTQ checkpoints, of AutoGPTQ and of GPTQModel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from quire.api.errors import QuantizationError
from quire_quantization.dynamic import DynamicRule, first_match, parse_dynamic

BITS = (2, 3, 4, 8)
"""Bits of a weight that the format has."""

ZERO_OFFSETS: Mapping[str, int] = {"gptq": 1, "gptq_v2": 0}
"""By checkpoint format: what is added to a stored zero point."""


@dataclass(slots=True, frozen=True)
class ModuleParameters:
    """How a module was quantized.

    Attributes:
        bits: of a weight. group_size: inputs that share a scale; None: all of them.
        desc_act: whether inputs were quantized in the order of their activations, and g_idx matters.
        sym: whether all zero points are 2**(bits - 1).
    """

    bits: int
    group_size: int | None
    desc_act: bool
    sym: bool


@dataclass(slots=True, frozen=True)
class GPTQConfig:
    """The config of a checkpoint.

    Attributes:
        parameters: of modules that no rule of `dynamic` matches.
        dynamic: what differs by module.
        zero_offset: what its label says is to be added to a stored zero point: 1, or 0 in gptq_v2.
        lm_head: whether the head is quantized.
        block_modules: the names, within a block, of the modules that are quantized; None: all.
        by_word: whether it is GPTQModel's, which subtracts zero_offset from whole words of zero points.
    """

    parameters: ModuleParameters
    dynamic: tuple[DynamicRule, ...]
    zero_offset: int
    lm_head: bool
    block_modules: tuple[str, ...] | None
    by_word: bool

    def parameters_of(self, name: str) -> ModuleParameters:
        """How a module was quantized, if it was."""
        rule = first_match(self.dynamic, name)
        if rule is None or rule.overrides is None:
            return self.parameters
        return _override(self.parameters, rule.overrides, rule.place + ".")

    def skip_reason(self, name: str, is_head: bool) -> str:
        """Why a module is left in 16 bits; "" where the config does not say that it is."""
        rule = first_match(self.dynamic, name)
        if rule is not None:
            return "" if rule.overrides is not None else f"dynamic has {rule.key!r}"
        if is_head and not self.lm_head:
            return "lm_head is false"
        modules = self.block_modules
        if not is_head and modules is not None and not any(f".{name}".endswith(f".{m}") for m in modules):
            return "modules_in_block_to_quantize does not name it"
        return ""


def stored_bits(config: Mapping[str, object]) -> tuple[object, ...]:
    """All values of `bits` in a config, unchecked: its own, and those of its dynamic rules."""
    dynamic = config.get("dynamic")
    rules = dynamic.values() if isinstance(dynamic, Mapping) else ()
    found = [config.get("bits"), *(rule.get("bits") for rule in rules if isinstance(rule, Mapping))]
    return tuple(dict.fromkeys(value for value in found if isinstance(value, int)))


def parse_config(config: Mapping[str, object]) -> GPTQConfig:
    """Check and read a quantization_config.

    Raises:
        QuantizationError: a value is missing, of a wrong kind, unsupported or contradicts another.
    """
    for key, expected in (("method", "gptq"), ("pack_dtype", "int32")):
        if config.get(key) is not None and str(config[key]).lower() != expected:
            raise _refusal(key, config[key], f"only {expected!r} is read")
    for key in ("bits", "group_size"):
        if config.get(key) is None:
            raise QuantizationError(f"quantization_config lacks {key!r}; take it from the checkpoint's tool")
    parameters = _override(ModuleParameters(4, None, False, True), config, "")
    dynamic = parse_dynamic(config.get("dynamic"))
    for rule in dynamic:
        _override(parameters, rule.overrides or {}, rule.place + ".")
    return GPTQConfig(
        parameters=parameters,
        dynamic=dynamic,
        zero_offset=ZERO_OFFSETS[_checkpoint_format(config)],
        lm_head=_flag(config, "lm_head", False, ""),
        block_modules=_block_modules(config.get("modules_in_block_to_quantize")),
        by_word=_is_gptqmodels(config.get("meta")),
    )


def _is_gptqmodels(meta: object) -> bool:
    """Whether a config's `meta` names GPTQModel, as in {"quantizer": ["gptqmodel:7.6.0"]}."""
    quantizer = meta.get("quantizer") if isinstance(meta, Mapping) else None
    return "gptqmodel" in str(quantizer).lower()


def _checkpoint_format(config: Mapping[str, object]) -> str:
    labels = {key: config[key] for key in ("checkpoint_format", "format") if config.get(key) is not None}
    spelled = {str(value).lower() for value in labels.values()}
    if len(spelled) > 1:
        raise QuantizationError(
            f"quantization_config contradicts itself: checkpoint_format={labels['checkpoint_format']!r} and "
            f"format={labels['format']!r}; keep the one that the checkpoint was written with"
        )
    label = next(iter(spelled), "gptq")
    if label == "marlin" or config.get("is_marlin_format"):
        raise QuantizationError(
            "the checkpoint is stored in Marlin's GPU layout (checkpoint_format marlin), which no tool writes any "
            "more; load the GPTQ checkpoint that it was made from: it is repacked while loading"
        )
    if label not in ZERO_OFFSETS:
        key, value = next(iter(labels.items()))
        raise _refusal(
            key, value, f"supported are {', '.join(ZERO_OFFSETS)}; save the checkpoint as one of them"
        )
    return label


def _override(base: ModuleParameters, values: Mapping[str, object], place: str) -> ModuleParameters:
    """The parameters that result where `values` replaces some of them; `place` goes before keys in messages."""
    bits, group_size = values.get("bits"), values.get("group_size")
    if bits is not None and (not _is_int(bits) or bits not in BITS):
        raise _refusal(f"{place}bits", bits, f"supported are {', '.join(map(str, BITS))}")
    if group_size is not None and (not isinstance(group_size, int) or not _is_group_size(group_size)):
        raise _refusal(f"{place}group_size", group_size, "it must be positive, or -1 for one group")
    result = replace(
        base,
        desc_act=_flag(values, "desc_act", base.desc_act, place),
        sym=_flag(values, "sym", base.sym, place),
    )
    if isinstance(bits, int):
        result = replace(result, bits=bits)
    if isinstance(group_size, int):
        result = replace(result, group_size=None if group_size == -1 else group_size)
    return result


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_group_size(value: int) -> bool:
    return _is_int(value) and (value == -1 or value > 0)


def _flag(values: Mapping[str, object], key: str, default: bool, place: str) -> bool:
    value = values.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise _refusal(f"{place}{key}", value, "it must be true or false")
    return value


def _block_modules(value: object) -> tuple[str, ...] | None:
    """The names in a list, or in the lists of a list: modules that were quantized together."""
    if value is None:
        return None
    groups = value if isinstance(value, list) else [value]
    names = [name for group in groups for name in (group if isinstance(group, list) else [group])]
    texts = tuple(name for name in names if isinstance(name, str))
    if len(texts) != len(names):
        raise _refusal("modules_in_block_to_quantize", value, "it must be a list of module names")
    return texts


def _refusal(key: str, value: object, expected: str) -> QuantizationError:
    return QuantizationError(f"quantization_config has {key}={value!r}: {expected}")
