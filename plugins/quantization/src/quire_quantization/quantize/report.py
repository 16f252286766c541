"""What a run has to say in the end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

Report = Mapping[str, object]


def make_report(
    losses: tuple[Mapping[str, object], Mapping[str, object]] | None,
    sizes: tuple[int, int],
    versions: Mapping[str, str],
) -> dict[str, object]:
    """The report as plain data.

    Args:
        losses: before and after; None where nothing was evaluated.
        sizes: bytes of the weight files before and after.
        versions: of what was used.
    """
    report: dict[str, object] = {
        "bytes_before": sizes[0],
        "bytes_after": sizes[1],
        "versions": dict(versions),
    }
    if losses is None:
        return {**report, "loss_before": None, "loss_after": None, "loss_delta": None}
    before, after = (cast(float, loss["mean_nats"]) for loss in losses)
    return {**report, "loss_before": losses[0], "loss_after": losses[1], "loss_delta": after - before}


def weight_bytes(folder: Path) -> int:
    """Bytes of a folder's weight files."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def show(report: Report, out: Path) -> str:
    """The report as a text for a terminal."""
    before, after = cast(int, report["bytes_before"]), cast(int, report["bytes_after"])
    lines = [f"{out}: {before / 1e6:.2f} MB -> {after / 1e6:.2f} MB ({after / before:.3f})"]
    first = cast("Mapping[str, float] | None", report["loss_before"])
    second = cast("Mapping[str, float] | None", report["loss_after"])
    if first is None or second is None:
        return lines[0]
    lines.append(f"{'':20} {'before':>12} {'after':>12} {'change':>12}")
    for name, title in (("mean_nats", "loss (nats/token)"), ("perplexity", "perplexity")):
        change = second[name] - first[name]
        lines.append(f"{title:20} {first[name]:>12.4f} {second[name]:>12.4f} {change:>+12.4f}")
    lines.append(f"over {first['num_tokens']} tokens of {first['num_samples']} samples")
    return "\n".join(lines)
