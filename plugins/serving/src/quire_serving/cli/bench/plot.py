"""A picture of a run; matplotlib comes with the extra `plot`."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from quire.api.errors import ConfigError
from quire_serving.cli.bench.statistics import METRICS, RequestRecord


def require_matplotlib() -> None:
    """Raises ConfigError where it is not installed, before a run is spent."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("--plot needs matplotlib: pip install 'quire-serving[plot]'")


def save_plot(path: Path, records: Sequence[RequestRecord]) -> None:
    """The distribution of each latency, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(METRICS), figsize=(4 * len(METRICS), 3.2), layout="constrained")
    for axis, metric in zip(axes, METRICS, strict=True):
        values = sorted(
            value for record in records if not record.error for value in record.latencies_ms()[metric]
        )
        shares = [100 * (index + 1) / len(values) for index in range(len(values))]
        axis.plot(values, shares)
        axis.set(title=metric.upper(), xlabel="ms", ylabel="% at most", ylim=(0, 101))
        axis.grid(alpha=0.3)
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error}") from None
    finally:
        pyplot.close(figure)
