"""A picture of a run; matplotlib comes with the extra `plot`."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path

from quire.api.errors import ConfigError
from quire_serving.cli.bench.report import NAMES
from quire_serving.cli.bench.statistics import METRICS, RequestRecord


def require_matplotlib() -> None:
    """Raises ConfigError where it is not installed, before a run is spent."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("--plot needs matplotlib: pip install 'quire-serving[plot]'")


def save_plot(path: Path, result: Mapping[str, object], records: Sequence[RequestRecord]) -> None:
    """The distribution of each latency, its median marked, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(METRICS), figsize=(4 * len(METRICS), 3.6), layout="constrained")
    figure.suptitle(
        f"{result['model']}: {result['completed']} requests, {result['failed']} failed, "
        f"{result['request_throughput']:.4g} requests/s, {result['output_throughput']:.4g} output tokens/s"
    )
    for axis, metric in zip(axes, METRICS, strict=True):
        done = [record for record in records if not record.error]
        values = [value for record in done for value in record.latencies_ms()[metric]]
        if values:
            axis.ecdf(values)
            axis.axvline(result[f"median_{metric}_ms"], color="grey", linestyle=":")
        axis.set(title=f"{NAMES[metric]} ({metric})", xlabel="ms", ylabel="share at most", ylim=(0, 1.01))
        axis.grid(alpha=0.3)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120, format="png")
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from None
    finally:
        pyplot.close(figure)
