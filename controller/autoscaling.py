"""How many replicas the demand calls for: a pure function of what was measured, and of when. Called by `controller.py`.

The need is counted in replicas' worth of work, so it does not depend on how many there are, and a constant load has a
constant answer. A replica's worth is the scarcest of three: time for prefill (with a share of the backlog, which is to
be gone within half a minute), rows for decodes, blocks for KV. It is to be used to the target: up when more than that
has been needed for the whole of a short window, down when fewer would have been enough, with room to spare, for the
whole of a long one.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from controller.model_config import Autoscaling
from protocol.demand import RouterDemand

BACKLOG_GONE_S = 30.0
ROOM_TO_SPARE = (
    0.85  # of the target: fewer replicas must be enough with this to spare, or they would be too few soon
)

NEGLIGIBLE = 0.01  # of a replica: an average over a minute never comes to nothing


@dataclass(frozen=True, slots=True)
class Need:
    replicas: float  # as many, fully used
    is_waited_for: bool = False  # some request has no replica
    num_requests: int = 0  # so far: as long as any come, there is to be a replica
    is_idle: bool = False  # nothing runs or waits anywhere at this moment


class Autoscaler:
    """Remembers the needs of its longer window. A new one scales down only when it has seen as much."""

    def __init__(self, settings: Autoscaling, now_s: float) -> None:
        self.settings = settings
        self._began_s = now_s
        self._needs: deque[tuple[float, Need]] = deque()

    def decide(self, num_replicas: int, need: Need, now_s: float) -> int:
        """The number of replicas from now on, when the present one is `num_replicas`."""
        settings = self.settings
        self._needs.append((now_s, need))
        while self._needs[0][0] < now_s - max(settings.up_after_s, settings.down_after_s):
            self._needs.popleft()
        up = min(self._enough(each, 1.0) for each in self._since(now_s - settings.up_after_s))
        long = self._since(now_s - settings.down_after_s)
        down = max(self._enough(each, ROOM_TO_SPARE) for each in long)
        is_quiet = long[0].num_requests == need.num_requests
        if not is_quiet:
            down = max(1, down)
        elif self._has_watched(settings.down_after_s, now_s) and all(each.is_idle for each in long):
            up = down = settings.min_replicas  # whatever averages still tell of what has ended
        if num_replicas == 0 and need.is_waited_for:
            return max(1, settings.min_replicas)  # somebody waits for it: at once
        if up > num_replicas and self._has_watched(settings.up_after_s, now_s):
            return up
        if down < num_replicas and self._has_watched(settings.down_after_s, now_s):
            return down
        return min(max(num_replicas, settings.min_replicas), settings.max_replicas)

    def _since(self, since_s: float) -> list[Need]:
        return [need for at_s, need in self._needs if at_s >= since_s]

    def _has_watched(self, window_s: float, now_s: float) -> bool:
        return now_s - self._began_s >= window_s

    def _enough(self, need: Need, share: float) -> int:
        settings = self.settings
        wanted = math.ceil(need.replicas / (settings.target_utilization * share) - NEGLIGIBLE)
        if need.is_waited_for:
            wanted = max(1, wanted)
        return min(max(wanted, settings.min_replicas), settings.max_replicas)


def need_of(demands: Sequence[RouterDemand], max_num_seqs: int) -> Need:
    """What all routers say together. Of a replica any router's word will do: it is the replica's own."""
    loads = dict(load for demand in demands for load in demand.loads).values()
    spent = max((demand.prefill_spent for demand in demands), default=0.0)
    sent = sum(demand.prefill_sent for demand in demands)  # which can exceed what there is to spend
    backlog_s = sum(load.waiting_prefill_tokens * load.speeds.prefill_s_per_token for load in loads)
    rows = sum((load.num_running + load.num_waiting) / max_num_seqs for load in loads)
    blocks = sum(load.num_used_blocks / max(1, load.num_blocks) for load in loads)
    is_waited_for = any(demand.num_waiting for demand in demands)
    num_requests = sum(demand.num_requests for demand in demands)
    is_idle = not (is_waited_for or any(load.num_running or load.num_waiting for load in loads))
    worth = max(max(spent, sent) + backlog_s / BACKLOG_GONE_S, rows, blocks)
    return Need(worth, is_waited_for, num_requests, is_idle)
