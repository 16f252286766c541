"""Figures as a table and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from quire.api.errors import ConfigError

NAMES = {
    "ttft": "time to first token",
    "tpot": "time per further token",
    "itl": "between chunks",
    "e2el": "whole",
}


def print_summary(
    title: str, result: Mapping[str, object], shown: Sequence[str], percents: Sequence[float]
) -> None:
    """The figures of `summarize`, for people; latencies of the metrics `shown`."""
    print(f"== {title} ==")
    for name, value in result.items():
        if not name.endswith("_ms"):
            print(f"{name.replace('_', ' '):<28}{_plain(value):>14}")
    if not shown:
        return
    print(f"{'ms':<28}" + "".join(f"{name:>10}" for name in ("mean", *(f"p{entry:g}" for entry in percents))))
    for metric in shown:
        values = [
            result[f"{which}_{metric}_ms"] for which in ("mean", *(f"p{entry:g}" for entry in percents))
        ]
        print(f"{f'{NAMES[metric]} ({metric})':<28}" + "".join(f"{value:>10.2f}" for value in values))


def _plain(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.2f}" if value >= 10 else f"{value:.4f}"


def save_json(path: Path, result: Mapping[str, object]) -> None:
    """Write figures to a file; infinity becomes a word."""
    plain = {
        name: "inf" if isinstance(value, float) and math.isinf(value) else value
        for name, value in result.items()
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(plain, indent=2, default=str) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error}") from None
