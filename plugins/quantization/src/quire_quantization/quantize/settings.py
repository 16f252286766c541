"""What a run of `quire quantize` is told, checked as far as that needs no model."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from quire.api.config import Size
from quire.api.errors import ConfigError

ValueT = TypeVar("ValueT")

PER_CHANNEL = -1
"""The group size that stands for one group per output feature."""

_GROUP_MULTIPLE = 8


@dataclass(slots=True, frozen=True)
class MethodTraits:
    """What a method can be asked for; the first of several values is the default.

    Attributes:
        bits: of a weight. symmetry: whether zero lies in the middle of the range.
        has_groups: of inputs that share a scale. has_per_channel: they may be as long as a row.
        has_act_order: takes `--desc-act`.
        needs_calibration: learns from samples, through GPTQModel.
        serves_head: can quantize the LM head, and leave out modules that the user names.
    """

    bits: tuple[int, ...]
    symmetry: tuple[bool, ...]
    has_groups: bool = True
    has_per_channel: bool = True
    has_act_order: bool = False
    needs_calibration: bool = False
    serves_head: bool = False


METHODS: Mapping[str, MethodTraits] = {
    "awq": MethodTraits((4,), (False,), has_per_channel=False, needs_calibration=True),
    "gptq": MethodTraits((4, 2, 3, 8), (True, False), has_act_order=True, needs_calibration=True),
    "int8": MethodTraits((8,), (True,), has_groups=False, serves_head=True),
    "int4": MethodTraits((4,), (True,), serves_head=True),
}


@dataclass(slots=True, frozen=True)
class QuantizeSettings:
    """One run's settings.

    Attributes:
        group_size: inputs that share a scale; PER_CHANNEL for all.
        ignore: regular expressions of module names that stay in 16 bits.
        calibration, evaluation: files of samples; evaluation None takes part of the calibration file.
        max_samples: read of each file. max_seq_len: tokens of a sample, the rest is cut off.
        max_shard_bytes: of one file of the result.
        is_evaluated, is_overwriting: do not change the checkpoint, so they may differ when a run is resumed.
    """

    model: str
    revision: str | None
    method: str
    bits: int
    group_size: int
    is_symmetric: bool
    desc_act: bool
    quantize_head: bool
    ignore: tuple[str, ...]
    calibration: Path | None
    evaluation: Path | None
    max_samples: int
    max_seq_len: int
    seed: int
    out: Path
    max_shard_bytes: int
    device: str
    is_evaluated: bool
    is_overwriting: bool

    @property
    def traits(self) -> MethodTraits:
        """The method's."""
        return METHODS[self.method]

    def arguments(self) -> dict[str, object]:
        """What decides the result, files and model aside, as plain data."""
        names = ("method", "bits", "group_size", "is_symmetric", "desc_act", "quantize_head")
        more = ("max_samples", "max_seq_len", "seed", "max_shard_bytes", "device")
        values: dict[str, object] = {name: getattr(self, name) for name in (*names, *more)}
        return {**values, "ignore": list(self.ignore)}


def read_settings(args: argparse.Namespace) -> QuantizeSettings:
    """The settings that the flags make.

    Raises:
        ConfigError: a value is out of bounds, or the method does not take it.
    """
    traits = METHODS[args.method]
    for flag, value in (("--max-samples", args.max_samples), ("--max-seq-len", args.max_seq_len)):
        if value < 2:
            raise ConfigError(f"{flag} {value}: give at least 2")
    _check_files(args, traits)
    _check_method_flags(args, traits)
    return QuantizeSettings(
        model=args.model,
        revision=args.revision,
        method=args.method,
        bits=_one_of("--bits", args.bits, traits.bits, args.method),
        group_size=_group_size(args.group_size, args.method, traits),
        is_symmetric=_one_of("--sym/--asym", args.sym, traits.symmetry, args.method),
        desc_act=args.desc_act,
        quantize_head=args.quantize_head,
        ignore=tuple(args.ignore or ()),
        calibration=args.calibration,
        evaluation=args.evaluation,
        max_samples=args.max_samples,
        max_seq_len=args.max_seq_len,
        seed=args.seed,
        out=_normal(args.out),
        max_shard_bytes=_shard_bytes(args.max_shard_size),
        device=args.device,
        is_evaluated=args.evaluate,
        is_overwriting=args.overwrite,
    )


def _normal(out: Path) -> Path:
    path = out.expanduser().absolute()
    if not path.name:
        raise ConfigError(f"--out {out}: give a folder to be made")
    return path


def _check_files(args: argparse.Namespace, traits: MethodTraits) -> None:
    if args.calibration is None and traits.needs_calibration:
        raise ConfigError(f"--method {args.method} learns from samples: give --calibration FILE")
    if args.calibration is None and args.evaluation is None and args.evaluate:
        raise ConfigError(
            "the loss before and after needs samples: give --calibration FILE (or --evaluation FILE), "
            "or --no-evaluate"
        )


def _check_method_flags(args: argparse.Namespace, traits: MethodTraits) -> None:
    if args.desc_act and not traits.has_act_order:
        raise ConfigError(f"--desc-act is an option of gptq: leave it out with --method {args.method}")
    for flag, value in (("--quantize-head", args.quantize_head), ("--ignore", args.ignore)):
        if value and not traits.serves_head:
            raise ConfigError(
                f"{flag} is an option of int8 and int4: leave it out with --method {args.method}"
            )


def _one_of(flag: str, value: ValueT | None, valid: tuple[ValueT, ...], method: str) -> ValueT:
    if value is None:
        return valid[0]
    if value not in valid:
        shown = " or ".join(_spelled(entry) for entry in valid)
        raise ConfigError(f"{flag}: {method} takes {shown}, not {_spelled(value)}")
    return value


def _spelled(value: object) -> str:
    return {True: "--sym", False: "--asym"}[value] if isinstance(value, bool) else str(value)


def _group_size(value: int | None, method: str, traits: MethodTraits) -> int:
    if not traits.has_groups:
        if value not in (None, PER_CHANNEL):
            raise ConfigError(
                f"--group-size {value}: {method} has one scale per output feature; leave it out"
            )
        return PER_CHANNEL
    size = 128 if value is None else value
    if size == PER_CHANNEL and traits.has_per_channel:
        return size
    if size < _GROUP_MULTIPLE or size % _GROUP_MULTIPLE:
        whole = f", or {PER_CHANNEL} for one group per output feature" if traits.has_per_channel else ""
        raise ConfigError(f"--group-size {size}: give a multiple of {_GROUP_MULTIPLE} (32, 64, 128){whole}")
    return size


def _shard_bytes(text: str) -> int:
    try:
        size = TypeAdapter(Size).validate_python(text)
    except ValidationError:
        size = 0
    if size < 1:
        raise ConfigError(f"--max-shard-size {text}: give a size such as 500M or 2G")
    return size
