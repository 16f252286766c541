"""Pictures of the records: cost curves beside their rooflines, and Quire beside other engines; PNG beside the JSON.

python benchmarks/plots.py [FILE ...], by default every curves and peers record of benchmarks/results.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

RESULTS = Path(__file__).parent / "results"
_LABELS = {
    "output_tokens_per_s": "output tokens per second",
    "decode_tokens_per_s": "tokens per second",
    "wall_s": "s (less is better)",
    "ttft_s": "s to the first token (less is better)",
}


def plot_record(file: Path) -> Path:
    """Draw a record beside it; the picture's path. Raises KeyError for records that have no picture."""
    matplotlib.use("Agg")
    record = json.loads(file.read_text())
    picture = file.with_suffix(".png")
    _PICTURES[record["benchmark"]](record, picture)
    return picture


def plot_curves(record: dict[str, Any], picture: Path) -> None:
    """A panel a curve: median step with its spread, the roofline, 1.5 times it, and the points above that."""
    from matplotlib import pyplot
    from matplotlib.ticker import ScalarFormatter

    curves = record["results"]["curves"]
    columns = min(2, len(curves))
    rows = -(-len(curves) // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(6.4 * columns, 4.2 * rows), squeeze=False)
    for panel in axes.flat[len(curves) :]:
        panel.axis("off")
    for panel, curve in zip(axes.flat, curves, strict=False):
        points = curve["points"]
        at = [point["at"] for point in points]
        step_ms, least_ms, most_ms, roofline_ms = (
            [1e3 * point[key] for point in points] for key in ("step_s", "least_s", "most_s", "roofline_s")
        )
        panel.fill_between(at, least_ms, most_ms, alpha=0.2, color="tab:blue", linewidth=0)
        panel.plot(at, step_ms, "o-", color="tab:blue", label="step, median (least to most)")
        panel.plot(at, roofline_ms, "-", color="tab:gray", label="roofline")
        panel.plot(at, [1.5 * value for value in roofline_ms], ":", color="tab:gray", label="1.5 times it")
        over = [(x, y) for x, y in zip(at, step_ms, strict=True) if x in curve["over_limit"]]
        if over:
            panel.plot(*zip(*over, strict=True), "o", color="tab:red", label="over 1.5 times")
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.yaxis.set_major_formatter(ScalarFormatter())
        panel.yaxis.set_minor_formatter(ScalarFormatter())
        panel.set_xticks(at, [str(value) for value in at])
        panel.set_xlabel("running requests" if curve["curve"].startswith("requests") else "context, tokens")
        panel.set_ylabel("ms a step")
        panel.set_title(curve["curve"])
        panel.grid(True, which="both", alpha=0.25)
        panel.legend(fontsize="small")
    _save(figure, picture, f"Decode steps, shape {record['shape']}, {_origin(record)}")


def plot_peers(record: dict[str, Any], picture: Path) -> None:
    """A panel a workload: each engine's median, with its spread."""
    from matplotlib import pyplot

    results, workloads = record["results"], record["workloads"]
    if not results:
        raise ValueError("the record holds no results to draw")
    figure, axes = pyplot.subplots(1, len(results), figsize=(3.6 * len(results), 3.8), squeeze=False)
    for panel, (name, engines) in zip(axes.flat, results.items(), strict=True):
        key = workloads[name]["compared_by"]
        middle, low, high = (
            [engine[key][part] for engine in engines.values()] for part in ("median", "min", "max")
        )
        errors = [
            [value - least for value, least in zip(middle, low, strict=True)],
            [most - value for value, most in zip(middle, high, strict=True)],
        ]
        colors = ["tab:blue" if engine == "quire" else "tab:gray" for engine in engines]
        panel.bar(list(engines), middle, yerr=errors, color=colors, capsize=3)
        panel.set_title(f"{name.upper()}: {workloads[name]['what']}", fontsize="small")
        panel.set_ylabel(_LABELS[key])
        panel.tick_params(axis="x", rotation=20)
    _save(figure, picture, f"Shape {record['shape']}, medians and spread, {_origin(record)}")


_PICTURES: dict[str, Callable[[dict[str, Any], Path], None]] = {"curves": plot_curves, "peers": plot_peers}


def _origin(record: dict[str, Any]) -> str:
    commit, mark, _ = record["commit"].partition("-dirty")
    return f"{record['date'][:10]}, commit {commit[:10]}{mark}"


def _save(figure: Any, picture: Path, title: str) -> None:
    from matplotlib import pyplot

    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(picture, dpi=110)
    pyplot.close(figure)


def main() -> None:
    """Draw the records."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", type=Path, nargs="*")
    files = parser.parse_args().files or sorted(
        [*RESULTS.glob("curves-*.json"), *RESULTS.glob("peers-*.json")]
    )
    for file in files:
        print(plot_record(file))


if __name__ == "__main__":
    main()
