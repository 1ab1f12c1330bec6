"""How one router behaves: bounds and timeouts. Made at launch, validated once, the same for the router's life."""

from __future__ import annotations

from dataclasses import dataclass, fields

from protocol.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class RouterConfig:
    router_id: str = "router-0"
    max_waiting_requests: int = 256  # while no replica is ready
    max_live_requests: int = 4096  # running and waiting
    max_queued_tokens: int | None = (
        None  # uncached, not prefilled yet; None: what is prefilled in `max_backlog_s`
    )
    max_backlog_s: float = 60.0
    admission_timeout_s: float = 60.0  # how long a request without a deadline waits for a replica
    retry_after_s: float = 1.0  # what an overloaded router asks of its clients
    max_moves: int = 3  # of one request, whatever made them necessary
    max_deaths: int = 2  # replicas that died while they ran one request: it may be what kills them
    apart_timeout_s: float = 2.0  # how long the requests of a dead replica are started one by one
    hang_timeout_s: float = 60.0  # a replica that has work and takes no step for so long hangs
    connect_timeout_s: float = 5.0
    ping_interval_s: float = 1.0
    ping_timeout_s: float = 5.0  # nothing heard for so long after a ping: the peer is lost
    reconnect_first_s: float = 0.05  # doubles with every failure in a row
    reconnect_most_s: float = 2.0
    refused_retry_s: float = 5.0  # trying again helps only once somebody has changed something
    max_unsent_bytes: int = 8 * 1024 * 1024  # a peer that reads more slowly is cut off
    expectation_ttl_s: float = 120.0  # of a speculative entry in the prefix index
    max_indexed_blocks: int = 4 * 1024 * 1024  # a replica
    resync_interval_s: float = 10.0  # at most one forced snapshot of a replica in so long

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            least = 0 if each.name == "max_moves" else 1e-9
            if isinstance(value, int | float) and value < least:
                raise InvalidRequest(f"{each.name} must be positive, not {value}", param=each.name)
