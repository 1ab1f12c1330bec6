"""The metrics page of an endpoint with several models, some of them in two versions."""

from __future__ import annotations

from typing import cast

import pytest
from prometheus_client.parser import text_string_to_metric_families

from protocol.membership import ReplicaState
from protocol.messages import Load
from router.http.metrics import EndpointMetrics
from router.http.request_metrics import RequestTiming
from router.http.request_router import RequestRouter
from router.prefixes.prefix_index import IndexState
from router.router_status import ReplicaStatus, RouterCounters, RouterStatus


class Core:
    """What the page reads of a router's core: it has one replica."""

    def __init__(self, name: str, replica: str, counters: RouterCounters, max_queued: int | None) -> None:
        load = Load(3, 2, 100, 40, 30, 0)
        self.counters = counters
        self._replica = ReplicaStatus(
            *(replica, ReplicaState.READY, 1, True, IndexState.SYNCED, 70, 1, 0, load, (), "")
        )
        self._status = RouterStatus(
            *("router-0", name, True, False, 16, 256, 1, 0, (self._replica,), 50, max_queued, 1000)
        )

    def status(self) -> RouterStatus:
        return self._status


def core(
    name: str, replica: str, counters: RouterCounters | None = None, max_queued: int | None = 9
) -> RequestRouter:
    return cast(RequestRouter, Core(name, replica, counters or RouterCounters(), max_queued))


def families(metrics: EndpointMetrics) -> list[str]:
    return [family.name for family in text_string_to_metric_families(metrics.page().decode())]


def samples(metrics: EndpointMetrics, name: str) -> dict[tuple[str, ...], float]:
    """By labels, the model's first."""
    found = [
        ((sample.labels.pop("model_name"), *sample.labels.values()), sample.value)
        for family in text_string_to_metric_families(metrics.page().decode())
        for sample in family.samples
        if sample.name == name
    ]
    assert len(found) == len(dict(found)), "a page may not show one sample twice"
    return dict(found)


@pytest.fixture
def metrics() -> EndpointMetrics:
    return EndpointMetrics()


def test_each_model_counts_its_own_requests(metrics: EndpointMetrics) -> None:
    small = metrics.attach("v1", "small", core("small", "small-0"))
    metrics.attach("v2", "large", core("large", "large-0"))
    timing = RequestTiming(small, 10, 1, 0.0)
    timing.arrived()
    timing.tokens(0, 4, 8, 1.0)
    timing.finished("stop", 2.0)
    assert samples(metrics, "trunkline_generation_tokens_total") == {("small",): 4, ("large",): 0}
    assert samples(metrics, "trunkline_request_success_total") == {("small", "stop"): 1}
    assert samples(metrics, "trunkline_requests_in_flight") == {("small",): 1, ("large",): 0}
    assert samples(metrics, "trunkline_time_to_first_token_seconds_count") == {("small",): 1, ("large",): 0}


def test_a_page_names_each_metric_once(metrics: EndpointMetrics) -> None:
    metrics.attach("v1", "small", core("small", "small-0"))
    alone = families(metrics)
    metrics.attach("v2", "large", core("large", "large-0"))
    assert families(metrics) == alone
    assert len(set(alone)) == len(alone) > 30


def test_an_endpoint_without_models_has_an_empty_page(metrics: EndpointMetrics) -> None:
    assert metrics.page() == b""


def test_the_versions_of_a_name_count_together(metrics: EndpointMetrics) -> None:
    counters = RouterCounters()
    old = metrics.attach("v1", "tiny", core("tiny", "tiny-0", counters))
    new = metrics.attach("v2", "tiny", core("tiny", "tiny-1", counters))
    counters.requests = 5
    assert new is old
    assert samples(metrics, "trunkline_router_requests_total") == {("tiny",): 5}


def test_what_routers_are_at_present_is_summed_over_the_versions_of_a_name(metrics: EndpointMetrics) -> None:
    metrics.attach("v1", "tiny", core("tiny", "tiny-0", max_queued=None))
    metrics.attach("v2", "tiny", core("tiny", "tiny-1", max_queued=9))
    metrics.attach("v3", "other", core("other", "other-0", max_queued=1))
    assert samples(metrics, "trunkline_router_queued_tokens") == {("tiny",): 100, ("other",): 50}
    assert samples(metrics, "trunkline_router_max_queued_tokens") == {("tiny",): 9, ("other",): 1}
    assert samples(metrics, "trunkline_router_index_bytes") == {("tiny",): 2000, ("other",): 1000}


def test_every_versions_replicas_are_shown_under_the_name(metrics: EndpointMetrics) -> None:
    metrics.attach("v1", "tiny", core("tiny", "tiny-0"))
    metrics.attach("v2", "tiny", core("tiny", "tiny-1"))
    metrics.attach("v3", "other", core("other", "other-0"))
    shown = {("tiny", "tiny-0"): 3, ("tiny", "tiny-1"): 3, ("other", "other-0"): 3}
    assert samples(metrics, "trunkline_num_requests_running") == shown


def test_a_version_that_leaves_takes_its_replicas_off_the_page(metrics: EndpointMetrics) -> None:
    counters = RouterCounters()
    metrics.attach("v1", "tiny", core("tiny", "tiny-0", counters))
    metrics.attach("v2", "tiny", core("tiny", "tiny-1", counters))
    metrics.detach("v1")
    assert samples(metrics, "trunkline_replica_ready") == {("tiny", "tiny-1"): 1}
    assert samples(metrics, "trunkline_router_queued_tokens") == {("tiny",): 50}


def test_counters_never_fall_though_a_names_last_version_leaves_and_another_comes(
    metrics: EndpointMetrics,
) -> None:
    counters = RouterCounters(requests=5)
    first = metrics.attach("v1", "tiny", core("tiny", "tiny-0", counters))
    first.tokens.add(7, None)
    metrics.detach("v1")
    assert samples(metrics, "trunkline_router_requests_total") == {("tiny",): 5}
    assert samples(metrics, "trunkline_generation_tokens_total") == {("tiny",): 7}
    metrics.attach("v2", "tiny", core("tiny", "tiny-0", counters)).tokens.add(1, None)
    counters.requests += 1
    assert samples(metrics, "trunkline_router_requests_total") == {("tiny",): 6}
    assert samples(metrics, "trunkline_generation_tokens_total") == {("tiny",): 8}


def test_two_endpoints_in_one_process_count_apart(metrics: EndpointMetrics) -> None:
    other = EndpointMetrics()
    for endpoint, num_tokens in ((metrics, 3), (other, 4)):
        endpoint.attach("v1", "tiny", core("tiny", "tiny-0")).tokens.add(num_tokens, None)
    assert samples(metrics, "trunkline_generation_tokens_total") == {("tiny",): 3}
    assert samples(other, "trunkline_generation_tokens_total") == {("tiny",): 4}
