"""All figures of a server and its engine, as Prometheus text. Used on the server's event loop only."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric as Family

from quire.api.client import EngineClient, EngineDescription, EngineRequest, EngineStatus
from quire.api.errors import QuireError
from quire.api.outputs import Metric
from quire_serving.histogram import Histogram
from quire_serving.request_metrics import RequestHistograms, RequestTimer

ENGINE_TIMEOUT_S = 2.0
"""An engine that does not answer for so long is left out of a scrape."""

# Quire's own: /health answers in under a millisecond, a stream may take minutes.
_HTTP_S = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0, 300.0)

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class ServerMetrics:
    """One server's figures: its own, and those of its engine when it is asked for them.

    Args:
        client: the engine.
        model_name: the label of all figures; the engine's number, as vLLM has it, is the other one.
        prefix: of all names.
        plugins: gives the figures of the plugins that the server calls itself.

    Attributes:
        requests: times and sizes of requests.
    """

    def __init__(
        self,
        client: EngineClient,
        model_name: str,
        prefix: str = "quire",
        plugins: Callable[[], Sequence[Metric]] = list,
    ) -> None:
        self._client = client
        self._labels = {"model_name": model_name, "engine": "0"}
        self._prefix = prefix
        self._plugins = plugins
        self.requests = RequestHistograms(client.description.max_model_len)
        self._rejected: Counter[str] = Counter()
        self._http: Counter[tuple[str, str, str]] = Counter()
        self._http_seconds: dict[tuple[str, str], Histogram] = {}

    def started(self, request: EngineRequest) -> RequestTimer:
        """Count a request that is handed to the engine; the timer wants its deltas."""
        self.requests.n.observe(request.params.n)
        if request.params.max_tokens is not None:
            self.requests.max_tokens.observe(request.params.max_tokens)
        return RequestTimer(self.requests, request)

    def rejected(self, code: str) -> None:
        """Count a request that was refused at the door, by its error's code."""
        self._rejected[code] += 1

    def http(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count an answer.

        Args:
            method: anything; what is no method counts as "other", so that clients cannot add series.
            route: the route's path with its placeholders, not the path of the request.
            status: of the answer.
            seconds: until its last byte was handed over.
        """
        method = method if method in _METHODS else "other"
        self._http[method, route, str(status)] += 1
        histogram = self._http_seconds.get((method, route))
        if histogram is None:
            histogram = self._http_seconds[method, route] = Histogram(_HTTP_S)
        histogram.observe(seconds)

    async def render(self) -> bytes:
        """All figures in Prometheus's text format 0.0.4; without an engine, the server's own."""
        figures = await self._engine_figures()
        is_up = figures is not None
        status = self._client.status()
        known = _without_engine(status) if figures is None else figures
        families = [*self._grouped([*known, *self._plugins()])]
        families += self._of_server(status, is_up and status.is_ready)
        families += self._histograms()
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Families(families))
        return generate_latest(registry)

    async def _engine_figures(self) -> list[Metric] | None:
        try:
            async with asyncio.timeout(ENGINE_TIMEOUT_S):
                return await self._client.get_metrics()
        except (QuireError, TimeoutError, OSError):
            return None

    def _grouped(self, figures: Iterable[Metric]) -> Iterator[Family]:
        """The engine's figures by name: text has each name's description once, before its samples."""
        families: dict[str, Family] = {}
        for figure in figures:
            suffix = figure.name.rpartition("_")[2] if figure.kind == "histogram" else ""
            name = figure.name.removeprefix("quire:").removesuffix(f"_{suffix}")
            family = families.get(name)
            if family is None:
                family = families[name] = self._family(name, figure.help, figure.kind)
            self._sample(family, figure.value, suffix, **figure.labels)
        return iter(families.values())

    def _of_server(self, status: EngineStatus, is_up: bool) -> Iterator[Family]:
        yield self._single("engine_up", is_up, "gauge", "1 when the engine answers and gets on with its work")
        yield self._single("engine_restarts", status.num_restarts, "counter", "restarts of the engine")
        yield self._single("requests_in_flight", status.num_requests, "gauge", "requests that have not ended")
        yield self._single(
            "requests_abandoned", self.requests.num_abandoned, "counter", "requests that their clients left"
        )
        cache = self._family("cache_config_info", "the KV cache's settings, as labels", "gauge")
        self._sample(cache, 1, **_cache_labels(self._client.description))
        yield cache
        rejected = self._family("admission_rejections", "requests refused before they were queued", "counter")
        for code, count in sorted(self._rejected.items()):
            self._sample(rejected, count, reason=code)
        yield rejected
        answers = self._family("http_requests", "answers by method, route and status", "counter")
        for (method, route, code), count in sorted(self._http.items()):
            self._sample(answers, count, method=method, route=route, status=code)
        yield answers

    def _histograms(self) -> Iterator[Family]:
        for name, (histogram, text) in self.requests.families.items():
            family = self._family(name, text, "histogram")
            histogram.add_to(family, self._labels)
            yield family
        times = self._family(
            "http_request_duration_seconds", "time until an answer was sent whole", "histogram"
        )
        for (method, route), histogram in sorted(self._http_seconds.items()):
            histogram.add_to(times, {**self._labels, "method": method, "route": route})
        yield times

    def _single(self, name: str, value: float, kind: str, text: str) -> Family:
        family = self._family(name, text, kind)
        self._sample(family, value)
        return family

    def _family(self, name: str, text: str, kind: str) -> Family:
        return Family(f"{self._prefix}:{name}", text, kind)

    def _sample(self, family: Family, value: float, suffix: str = "", **labels: str) -> None:
        suffix = suffix or ("total" if family.type == "counter" else "")
        name = f"{family.name}_{suffix}" if suffix else family.name
        family.add_sample(name, {**self._labels, **labels}, value)


class _Families:
    """A prometheus_client collector of families that are ready."""

    def __init__(self, families: list[Family]) -> None:
        self._families = families

    def collect(self) -> list[Family]:
        return self._families


def _without_engine(status: EngineStatus) -> list[Metric]:
    """What the server itself knows of the engine's queue."""
    return [
        Metric("quire:num_requests_running", status.num_running, "gauge", "requests that have a slot"),
        Metric("quire:num_requests_waiting", status.num_waiting, "gauge", "requests that wait for one"),
    ]


def _cache_labels(engine: EngineDescription) -> Mapping[str, str]:
    """Labels of vLLM's `cache_config_info`, those that mean something here."""
    return {
        "block_size": str(engine.block_size),
        "num_gpu_blocks": str(engine.num_kv_blocks),
        "enable_prefix_caching": str(engine.config.cache.enable_prefix_caching),
        "gpu_memory_utilization": str(engine.config.cache.gpu_memory_utilization),
        "cache_dtype": engine.dtype,
    }
