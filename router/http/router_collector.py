"""What a metrics page shows of one model's router and replicas: read from the router when the page is asked for.

Made by `metrics.py`, one a model's name. Knows nothing of requests: `request_metrics.py` counts those.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from protocol.events import GPU
from protocol.messages import Load
from router.http.request_router import RequestRouter
from router.prefixes.prefix_index import IndexState
from router.router_status import ReplicaStatus, RouterCounters, RouterStatus

_LOADS: tuple[tuple[str, str, Callable[[Load], float]], ...] = (
    ("num_requests_running", "Sequences in the running batch.", lambda load: load.num_running),
    ("num_requests_waiting", "Requests that wait for their turn.", lambda load: load.num_waiting),
    (
        "kv_cache_usage_perc",
        "Share of the KV blocks that some sequence holds, 0 to 1. An idle replica with a warm cache shows 0.",
        lambda load: load.num_used_blocks / max(1, load.num_blocks),
    ),
    ("kv_blocks", "KV blocks of the pool.", lambda load: load.num_blocks),
    ("kv_blocks_used", "KV blocks that some sequence holds.", lambda load: load.num_used_blocks),
    (
        "kv_blocks_cached_free",
        "KV blocks that nobody holds and that still can be hit.",
        lambda load: load.num_cached_blocks,
    ),
    (
        "waiting_prefill_tokens",
        "Uncached prompt tokens that are still to be computed.",
        lambda load: load.waiting_prefill_tokens,
    ),
    (
        "prefill_utilization",
        "Share of the last minute, about, that went to prefill, 0 to 1.",
        lambda load: load.prefill_utilization,
    ),
)
_COUNTERS: tuple[tuple[str, str, Callable[[RouterCounters], int]], ...] = (
    ("router_requests", "Requests that the router took.", lambda it: it.requests),
    ("router_cancelled", "Requests whose client left first.", lambda it: it.cancelled),
    ("router_failed", "Requests that ended with an error.", lambda it: it.failed),
    ("router_moves", "Moves of a running request to another replica.", lambda it: it.moves),
    ("router_replica_losses", "Connections to replicas that broke.", lambda it: it.replica_losses),
    ("router_hangs", "Replicas that had work and took no step for too long.", lambda it: it.hangs),
    (
        "router_fatal_requests",
        "Requests stopped because replica after replica died while it ran them.",
        lambda it: it.fatal_requests,
    ),
    ("router_resyncs", "Snapshots forced by predictions that kept being wrong.", lambda it: it.resyncs),
    (
        "route_prompt_tokens",
        "Prompt tokens of requests whose first token has come and that were not moved before: all of these counters'.",
        lambda it: it.prompt_tokens,
    ),
    (
        "route_predicted_cached_tokens",
        "Prompt tokens that the index expected to be cached where the request went.",
        lambda it: it.predicted_cached_tokens,
    ),
    (
        "route_actual_cached_tokens",
        "Prompt tokens that were cached there, as the engine reports it.",
        lambda it: it.actual_cached_tokens,
    ),
    (
        "route_best_available_cached_tokens",
        "Prompt tokens that the best replica had cached.",
        lambda it: it.best_available_cached_tokens,
    ),
    (
        "route_regret_tokens",
        "Prompt tokens computed though another replica had them cached: there the wait would have cost more,"
        " or the index was wrong.",
        lambda it: it.regret_tokens,
    ),
    (
        "route_mispredicted_tokens",
        "By how many tokens the index was wrong about where the request went, too many and too few alike."
        " Its share of all tells how far the index can be trusted.",
        lambda it: it.mispredicted_tokens,
    ),
)
_MISS_REASONS = ("below_block", "bypassed", "evicted", "absent")


class RouterCollector(Collector):
    """A name's versions count together, in `counters`; what they are at present is summed, or shown by replica."""

    def __init__(self, model: str, counters: RouterCounters) -> None:
        self.routers: dict[str, RequestRouter] = {}  # by version
        self._model = model
        self._counters = counters

    def collect(self) -> Iterator[Metric]:
        statuses = [router.status() for router in self.routers.values()]
        yield from self._totals(self._counters)
        yield from self._own(statuses)
        yield from self._states([replica for status in statuses for replica in status.replicas])

    def _totals(self, counters: RouterCounters) -> Iterator[Metric]:
        for name, text, read in _COUNTERS:
            family = CounterMetricFamily(f"trunkline_{name}", text, labels=["model_name"])
            family.add_metric([self._model], read(counters))
            yield family
        decisions = CounterMetricFamily(
            "trunkline_route_decisions", "Routing decisions, by why.", labels=["model_name", "reason"]
        )
        for reason, count in counters.decisions.items():
            decisions.add_metric([self._model, reason.value], count)
        yield decisions
        refused = CounterMetricFamily(
            "trunkline_router_refused",
            "Requests turned away for overload, by the bound that was reached.",
            labels=["model_name", "reason"],
        )
        for refusal, count in counters.refused.items():
            refused.add_metric([self._model, refusal.value], count)
        yield refused

    def _own(self, statuses: Sequence[RouterStatus]) -> Iterator[Metric]:
        for name, text, value in (
            (
                "queued_tokens",
                "Uncached prompt tokens that this router took and that are not computed yet.",
                sum(status.num_queued_tokens for status in statuses),
            ),
            (
                "max_queued_tokens",
                "With so many of them requests are refused. 0: no replica is connected, so requests are counted.",
                sum(status.max_queued_tokens or 0 for status in statuses),
            ),
            (
                "index_bytes",
                "Prefix index: below 150 for each block of a replica, more while lost ones are swept out.",
                sum(status.num_index_bytes for status in statuses),
            ),
        ):
            family = GaugeMetricFamily(f"trunkline_router_{name}", text, labels=["model_name"])
            family.add_metric([self._model], float(value))
            yield family

    def _states(self, replicas: Sequence[ReplicaStatus]) -> Iterator[Metric]:
        reported = [(status, status.load) for status in replicas]
        for name, text, read in _LOADS:
            yield self._gauges(
                name, text, [(status, read(load)) for status, load in reported if load is not None]
            )
        preemptions = CounterMetricFamily(
            "trunkline_num_preemptions",
            "Sequences that lost their blocks and began anew.",
            labels=["model_name", "engine"],
        )
        for status, load in reported:
            if load is not None:
                preemptions.add_metric([self._model, status.replica_id], load.num_preemptions)
        yield preemptions
        yield from self._cache(reported)
        yield self._gauges(
            "replica_ready",
            "1: the replica can be sent requests.",
            [(status, status.accepting) for status in replicas],
        )
        yield self._gauges(
            "index_synced",
            "1: the router's index equals the replica's cache; 0: it is blind.",
            [(status, status.index is IndexState.SYNCED) for status in replicas],
        )
        yield self._gauges(
            "index_blocks",
            "Blocks of the replica that the router's index holds.",
            [(status, status.num_indexed_blocks) for status in replicas],
        )

    def _cache(self, reported: list[tuple[ReplicaStatus, Load | None]]) -> Iterator[Metric]:
        """Prompt tokens as counters, never a rate: a hit rate is a quotient of increases."""
        labels = ["model_name", "engine"]
        hit = CounterMetricFamily(
            "trunkline_prefix_cache_hit_tokens",
            "Prompt tokens found in the prefix cache, by tier.",
            labels=[*labels, "tier"],
        )
        missed = CounterMetricFamily(
            "trunkline_prefix_cache_miss_tokens",
            "Prompt tokens computed, by why: below_block (no full block holds them), bypassed, evicted, absent.",
            labels=[*labels, "reason"],
        )
        for status, load in reported:
            if load is None:
                continue
            engine, cache = [self._model, status.replica_id], load.cache
            hit.add_metric([*engine, GPU], cache.hit)
            for reason in _MISS_REASONS:
                missed.add_metric([*engine, reason], getattr(cache, reason))
        yield from (hit, missed)

    def _gauges(self, name: str, text: str, values: list[tuple[ReplicaStatus, float]]) -> Metric:
        family = GaugeMetricFamily(f"trunkline_{name}", text, labels=["model_name", "engine"])
        for status, value in values:
            family.add_metric([self._model, status.replica_id], float(value))
        return family
