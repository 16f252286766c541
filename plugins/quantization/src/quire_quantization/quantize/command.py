"""`quire quantize`: the flags, and what is said in the end."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from quire_quantization.quantize.settings import METHODS, PER_CHANNEL, read_settings

_METHODS_HELP = (
    "awq: 4 bits with zero points, weights scaled by what the activations show; "
    "gptq: 2, 3, 4 or 8 bits, errors made up for column by column; both through GPTQModel (AutoAWQ is retired), "
    'pip install "quire-quantization[quantize]". '
    "int8: 8 bits per output feature, activations in 8 bits too; int4: 4 bits in groups; both rounded to the nearest, "
    "written as compressed-tensors"
)


class QuantizeCommand:
    """Write a quantized checkpoint."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare flags, by group."""
        parser.add_argument(
            "model", metavar="MODEL", help="a folder, a name that a plugin resolves, or a hub id"
        )
        parser.add_argument("--revision", metavar="X", help="branch, tag or commit of a hub id")
        parser.add_argument("--method", choices=list(METHODS), required=True, help=_METHODS_HELP)
        parser.add_argument(
            "--out",
            type=Path,
            required=True,
            metavar="DIR",
            help="folder of the result; must not exist, unless to go on with an interrupted run",
        )
        _add_weights(parser.add_argument_group("weights"))
        _add_samples(parser.add_argument_group("samples"))
        _add_run(parser.add_argument_group("run"))

    def run(self, args: argparse.Namespace) -> int:
        """Quantize, and print the report."""
        settings = read_settings(args)
        from quire_quantization.quantize.report import show
        from quire_quantization.quantize.run import quantize

        try:
            report = quantize(settings)
        except KeyboardInterrupt:
            print(
                "\nquire: what is finished is kept: run the same command again to go on, or with --overwrite to start "
                "anew",
                file=sys.stderr,
            )
            raise
        print(show(report, settings.out))
        return 0


def _add_weights(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--bits", type=int, metavar="N", help="of a weight; gptq: 2, 3, 4 or 8 (default: 4)")
    group.add_argument(
        "--group-size",
        type=int,
        metavar="N",
        help=f"inputs that share a scale; {PER_CHANNEL}: all of a row, which int8 always has (default: 128)",
    )
    symmetry = group.add_mutually_exclusive_group()
    symmetry.add_argument(
        "--sym", action="store_true", default=None, help="no zero points (the default but for awq)"
    )
    symmetry.add_argument(
        "--asym", dest="sym", action="store_false", default=None, help="zero points (awq, gptq)"
    )
    group.add_argument(
        "--desc-act",
        action="store_true",
        help="gptq: take columns in the order of their activations; a little better, slower to run",
    )
    group.add_argument(
        "--quantize-head", action="store_true", help="int8, int4: the LM head too, where it is not tied"
    )
    group.add_argument(
        "--ignore",
        action="append",
        metavar="REGEX",
        help="int8, int4: leave modules that match in 16 bits; repeatable",
    )
    group.add_argument(
        "--max-shard-size", default="2G", metavar="SIZE", help="int8, int4: of one weight file (default: 2G)"
    )


def _add_samples(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--calibration",
        type=Path,
        metavar="FILE",
        help="samples: a text with one per line, or a .jsonl with text, messages or token_ids; awq and gptq learn from "
        "four fifths of them, the rest measures the loss",
    )
    group.add_argument(
        "--evaluation",
        type=Path,
        metavar="FILE",
        help="other samples to measure the loss on; none are held out then",
    )
    group.add_argument(
        "--max-samples", type=int, default=512, metavar="N", help="drawn from each file (default: 512)"
    )
    group.add_argument(
        "--max-seq-len", type=int, default=512, metavar="N", help="tokens of a sample (default: 512)"
    )
    group.add_argument("--seed", type=int, default=0, metavar="N", help="of the drawing (default: 0)")


def _add_run(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--no-evaluate",
        dest="evaluate",
        action="store_false",
        help="do not measure the loss before and after",
    )
    group.add_argument("--device", default="auto", metavar="X", help="auto, cpu or cuda (default: auto)")
    group.add_argument(
        "--overwrite", action="store_true", help="start anew, and replace what an earlier run wrote to --out"
    )
