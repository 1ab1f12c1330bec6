"""The endpoint's Prometheus page, of all its models: what requests experience, what routers counted, how replicas are.

Nothing of it is the process's. Made by `catalog.py`, which attaches and detaches the models' routers.
"""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from router.http.request_metrics import RequestMetrics
from router.http.request_router import RequestRouter
from router.http.router_collector import RouterCollector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class EndpointMetrics(Collector):
    """`attach` gives what is written to while a model's requests run; `page` is what a scrape gets."""

    def __init__(self) -> None:
        self._models: dict[str, _ModelMetrics] = {}  # by name, in the order in which they came

    def attach(self, version: str, name: str, router: RequestRouter) -> RequestMetrics:
        """One more version of the model of this name. They share what this returns, and their routers the counters."""
        model = self._models.get(name)
        if model is None:
            model = self._models[name] = _ModelMetrics(name, router)
        model.router.routers[version] = router
        return model.requests

    def detach(self, version: str) -> None:
        """Its replicas leave the page. The name's counters stay even if this was its last: they must never fall."""
        for model in self._models.values():
            model.router.routers.pop(version, None)

    def page(self) -> bytes:
        return generate_latest(self)

    def collect(self) -> Iterable[Metric]:
        """Every metric once, with the samples of all models: a page may not name one twice."""
        metrics: dict[str, Metric] = {}
        for model in self._models.values():
            for metric in model.registry.collect():
                known = metrics.setdefault(metric.name, metric)
                if known is not metric:
                    known.samples += metric.samples
        return metrics.values()


class _ModelMetrics:
    """A registry a name: what counts a request knows of one model only, and costs what it did with one."""

    def __init__(self, name: str, router: RequestRouter) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self.requests = RequestMetrics(self.registry, name)
        self.router = RouterCollector(name, router.counters)
        self.registry.register(self.router)
