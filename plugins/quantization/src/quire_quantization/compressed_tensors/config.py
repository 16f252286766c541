"""The quantization_config of compressed-tensors, parsed once; what is not served is refused by name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from quire.api.errors import QuantizationError
from quire_quantization.compressed_tensors.section import Section

FORMATS = ("pack-quantized", "int-quantized", "naive-quantized", "float-quantized")
"""How a module's tensors may lie in the checkpoint."""

REMEDY = "quantize the model with W4A16, W8A16, W8A8 or FP8_DYNAMIC of llm-compressor, or load its 16-bit checkpoint"

_LINEAR_CLASSES = ("Linear", "Module")
_GROUP_ORDERS = ("group", "dynamic")
_ORDERS = ("weight", "static", *_GROUP_ORDERS)

Strategy = Literal["tensor", "channel", "group", "block"]


@dataclass(slots=True, frozen=True)
class WeightScheme:
    """How weights are quantized.

    Attributes:
        bits: of a weight. is_float: float8_e4m3fn instead of integers.
        strategy: what shares a scale: the tensor, an output, `group_size` inputs of an output, or a block.
        block: outputs and inputs of a block.
        has_input_groups: whether the checkpoint says each input's group (act-order).
    """

    bits: int
    is_float: bool
    is_symmetric: bool
    strategy: Strategy
    group_size: int | None = None
    block: tuple[int, int] | None = None
    has_input_groups: bool = False


@dataclass(slots=True, frozen=True)
class InputScheme:
    """How a linear's inputs are rounded to 8 bits.

    Attributes:
        is_float: to float8_e4m3fn. is_static: with a scale of the checkpoint; else each row with its own.
        group_size: inputs of a row that share a scale; None: the whole row.
    """

    is_float: bool
    is_static: bool = False
    group_size: int | None = None


@dataclass(slots=True, frozen=True)
class Scheme:
    """One of the config's groups.

    Attributes:
        name: its key in the config. format: one of FORMATS.
        inputs: None: left as they are.
    """

    name: str
    format: str
    weights: WeightScheme
    inputs: InputScheme | None = None


@dataclass(slots=True, frozen=True)
class CompressedTensorsConfig:
    """A parsed quantization_config.

    Its `quantization_status` is not read: older tools called compressed weights "frozen" too, and whether
    a module's are is seen from its tensors.

    Attributes:
        schemes: by target, the most specific first: names, regular expressions, classes.
    """

    schemes: Mapping[str, Scheme]
    ignore: tuple[str, ...]

    @classmethod
    def parse(cls, config: Mapping[str, object]) -> CompressedTensorsConfig:
        """Read a quantization_config.

        Raises:
            QuantizationError: it is malformed, or asks for what there is no method for.
        """
        section = Section(config, "quantization_config")
        _refuse_extras(section)
        groups = Section.of(config.get("config_groups"), "quantization_config.config_groups")
        if not groups.values:
            raise QuantizationError("quantization_config.config_groups is empty; fetch config.json again")
        default = section.optional("format", str)
        schemes: dict[str, Scheme] = {}
        for name, value in groups.values.items():
            group = Section.of(value, f"{groups.place}.{name}")
            scheme = _scheme(name, group, default)
            targets = group.texts("targets")
            if not targets:
                raise QuantizationError(f"{group.place}.targets is empty: it must name modules or classes")
            schemes |= dict.fromkeys(targets, scheme)
        for pattern in (*schemes, *section.texts("ignore")):
            _check_pattern(pattern)
        ordered = sorted(
            schemes, key=lambda target: (target in _LINEAR_CLASSES, target.startswith("re:"), target)
        )
        return cls(
            {target: schemes[target] for target in ordered},
            section.texts("ignore"),
        )

    def scheme(self, module: str) -> Scheme | None:
        """The scheme of a linear, by its name in the checkpoint; None where no target means it."""
        return next((scheme for target, scheme in self.schemes.items() if _means(target, module)), None)

    def ignoring(self, module: str) -> str | None:
        """The entry of the ignore list that means a linear, or None."""
        return next((entry for entry in self.ignore if _means(entry, module)), None)


def _means(target: str, module: str) -> bool:
    if target.startswith("re:"):
        return re.match(target.removeprefix("re:"), module) is not None
    return target == module or target in _LINEAR_CLASSES


def _check_pattern(pattern: str) -> None:
    if pattern.startswith("re:"):
        try:
            re.compile(pattern.removeprefix("re:"))
        except re.error as error:
            raise QuantizationError(
                f"quantization_config: {pattern!r} is not a regular expression: {error}; mend config.json"
            ) from error


def _refuse_extras(section: Section) -> None:
    """What would change the model's results if it were passed over."""
    values = section.values
    if values.get("kv_cache_scheme") is not None:
        raise section.refuse(
            "kv_cache_scheme", values["kv_cache_scheme"], "null: the KV cache is kept unquantized", REMEDY
        )
    sparsity = values.get("sparsity_config")
    if sparsity and Section.of(sparsity, f"{section.place}.sparsity_config").values.get("format") != "dense":
        raise section.refuse("sparsity_config", sparsity, "no sparsity or format 'dense'", REMEDY)
    transform = values.get("transform_config")
    if transform and Section.of(transform, f"{section.place}.transform_config").values.get("config_groups"):
        raise section.refuse("transform_config", transform, "no transforms", REMEDY)


def _scheme(name: str, group: Section, default_format: str | None) -> Scheme:
    found = group.optional("format", str) or default_format
    if found not in FORMATS:
        raise group.refuse("format", found, f"one of {', '.join(FORMATS)}", REMEDY)
    if group.values.get("output_activations") is not None:
        raise group.refuse("output_activations", group.values["output_activations"], "null", REMEDY)
    weights = _weights(Section.of(group.values.get("weights"), f"{group.place}.weights"))
    stored = group.values.get("input_activations")
    inputs = None if stored is None else _inputs(Section.of(stored, f"{group.place}.input_activations"))
    scheme = Scheme(name, str(found), weights, inputs)
    _check_pairing(scheme, group)
    return scheme


def _weights(section: Section) -> WeightScheme:
    is_float = _is_float(section)
    bits = section.get("num_bits", 8)
    if bits != 8 if is_float else not 2 <= bits <= 8:
        raise section.refuse("num_bits", bits, "8 bits of type float" if is_float else "2 to 8 bits", REMEDY)
    is_symmetric = section.get("symmetric", True)
    if is_float and not is_symmetric:
        raise section.refuse("symmetric", False, "true for weights of type float", REMEDY)
    group_size = section.optional("group_size", int)
    strategy = section.optional("strategy", str) or _implied_strategy(group_size)
    served = ("tensor", "channel", "block") if is_float else ("tensor", "channel", "group")
    if strategy not in served:
        raise section.refuse("strategy", strategy, f"one of {', '.join(served)}", REMEDY)
    if strategy == "group" and (group_size is None or group_size < 1):
        raise section.refuse("group_size", group_size, "a positive number with strategy 'group'", REMEDY)
    block = section.pair("block_structure") if strategy == "block" else None
    if strategy == "block" and block is None:
        raise section.refuse("block_structure", None, "[outputs, inputs] with strategy 'block'", REMEDY)
    has_input_groups = _has_input_groups(section)
    return WeightScheme(
        bits=bits,
        is_float=is_float,
        is_symmetric=is_symmetric,
        strategy=strategy,  # type: ignore[arg-type]  # compared with the served ones above
        group_size=group_size if strategy == "group" else None,
        block=block,
        has_input_groups=has_input_groups and strategy == "group",
    )


def _inputs(section: Section) -> InputScheme:
    is_float = _is_float(section)
    if section.get("num_bits", 8) != 8:
        raise section.refuse("num_bits", section.values["num_bits"], "8 bits", REMEDY)
    if not section.get("symmetric", True):
        raise section.refuse("symmetric", False, "true: inputs without a zero point", REMEDY)
    is_dynamic = section.get("dynamic", False)
    group_size = section.optional("group_size", int)
    strategy = section.optional("strategy", str) or _implied_strategy(group_size)
    served = {(True, "token"), (False, "tensor")} | ({(True, "group")} if is_float else set())
    if (is_dynamic, strategy) not in served:
        expected = "'token' where dynamic, 'tensor' where static" + (
            ", or dynamic 'group'" if is_float else ""
        )
        raise section.refuse("strategy", f"{strategy}, dynamic={is_dynamic}", expected, REMEDY)
    return InputScheme(is_float, not is_dynamic, group_size if strategy == "group" else None)


def _check_pairing(scheme: Scheme, group: Section) -> None:
    """Weights and inputs must be of one kind, and of a kind that one product serves."""
    weights, inputs = scheme.weights, scheme.inputs
    if weights.is_float and scheme.format in ("pack-quantized", "int-quantized"):
        raise group.refuse(
            "format", scheme.format, "float-quantized or naive-quantized with float weights", REMEDY
        )
    if not weights.is_float and scheme.format == "float-quantized":
        raise group.refuse(
            "format", scheme.format, "pack-quantized or int-quantized with int weights", REMEDY
        )
    if inputs is None:
        return
    if inputs.is_float != weights.is_float:
        kinds = ("int", "float")
        raise group.refuse(
            "input_activations.type",
            kinds[inputs.is_float],
            f"{kinds[weights.is_float]}, as the weights",
            REMEDY,
        )
    if weights.is_float:
        columns = None if weights.block is None else weights.block[1]
        if inputs.group_size not in (None, columns) or (columns is not None and inputs.group_size != columns):
            raise group.refuse(
                "input_activations.group_size",
                inputs.group_size,
                f"{columns}, as the weights' blocks",
                REMEDY,
            )
        return
    is_wide = weights.bits == 8 or scheme.format != "pack-quantized"
    if weights.strategy == "group" or not weights.is_symmetric or not is_wide:
        raise group.refuse(
            "weights",
            f"{weights.bits} bits, strategy {weights.strategy}, symmetric={weights.is_symmetric}",
            "8 bits, symmetric, with a scale per channel or tensor where inputs are rounded to 8 bits",
            REMEDY,
        )


def _is_float(section: Section) -> bool:
    kind = section.get("type", "int").lower()
    if kind not in ("int", "float"):
        raise section.refuse("type", kind, "int or float", REMEDY)
    return kind == "float"


def _implied_strategy(group_size: int | None) -> str:
    if group_size is None:
        return "tensor"
    return "group" if group_size > 0 else "channel"


def _has_input_groups(section: Section) -> bool:
    order = section.values.get("actorder")
    if order is None or isinstance(order, bool):
        return bool(order)
    if not isinstance(order, str) or order.lower() not in _ORDERS:
        raise section.refuse("actorder", order, f"one of {', '.join(_ORDERS)} or null", REMEDY)
    return order.lower() in _GROUP_ORDERS
