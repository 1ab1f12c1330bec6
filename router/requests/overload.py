"""What one router lets wait and run, and who is turned away beyond it. Asked by `dispatcher.py` for every request.

The queue is counted in tokens: uncached ones of prompts whose prefill has not ended, as predicted when each was sent,
and whole prompts in the waiting room. It is full at `max_queued_tokens`, or unless that is set at what the connected
replicas prefill in `max_backlog_s` at the speeds that they report. Tenants have shares of every bound, by weight:
beyond it only those are turned away who have theirs, so a flood does not get others refused. As shares are of the
whole bound, all together reach at most twice of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from protocol.errors import Overloaded
from router.requests.generation import Generation
from router.requests.routed_request import RoutedRequest
from router.requests.shares import Shares
from router.router_config import RouterConfig
from router.router_status import Refusal, RouterCounters
from router.routing.prefill_board import PrefillBoard

SPEED_AGE_S = 1.0  # of the fleet's speed, at most: to add it up costs the fleet's size


@dataclass(slots=True)
class Entry:
    """One request's part of the queue, until its end."""

    tenant: bytes
    num_tokens: int  # 0 once its prefill has ended


class Overload:
    def __init__(
        self,
        config: RouterConfig,
        board: PrefillBoard,
        counters: RouterCounters,
        clock: Callable[[], float],
    ) -> None:
        self._config = config
        self._board = board
        self._counters = counters
        self._clock = clock
        self._entries: dict[str, Entry] = {}  # by request id
        self._tokens = Shares()
        self._requests = Shares()
        self._tokens_per_s = 0.0
        self._speed_as_of_s = -math.inf

    @property
    def num_queued_tokens(self) -> int:
        return self._tokens.total

    @property
    def max_queued_tokens(self) -> int | None:
        """None: no replica is connected, so requests are counted instead."""
        if self._config.max_queued_tokens is not None:
            return self._config.max_queued_tokens
        return int(self._config.max_backlog_s * self._fleet_tokens_per_s()) or None

    def check(self, request: RoutedRequest, num_waiting: int, some_ready: bool) -> None:
        """Raises Overloaded, with the seconds after which it may be tried again."""
        config = self._config
        if self._exceeds(self._requests, request, len(self._entries), config.max_live_requests):
            self._refuse(Refusal.LIVE_REQUESTS, "all the requests that it can hold", config.retry_after_s)
        if not some_ready and self._exceeds(
            self._requests, request, num_waiting, config.max_waiting_requests
        ):
            self._refuse(Refusal.WAITING_REQUESTS, "too many requests and no replica", config.retry_after_s)
        most = self.max_queued_tokens
        if most is not None and self._exceeds(self._tokens, request, self._tokens.total, most):
            described = f"{self._tokens.total} prompt tokens to compute first"
            self._refuse(Refusal.QUEUED_TOKENS, described, self._wait_s(request, most))

    def enter(self, generation: Generation) -> None:
        """It has been accepted, and sent if that was possible."""
        request, placement = generation.request, generation.placement
        num_cached = 0 if placement is None else placement.decision.matched_tokens
        num_tokens = max(0, generation.num_prompt_tokens - num_cached)
        self._entries[request.request_id] = Entry(request.tenant, num_tokens)
        self._requests.add(request.tenant, request.weight, 1)
        self._tokens.add(request.tenant, request.weight, num_tokens)

    def prefilled(self, generation: Generation) -> None:
        """Its first token has come. More often than once is no error."""
        entry = self._entries.get(generation.request.request_id)
        if entry is not None and entry.num_tokens:
            self._tokens.remove(entry.tenant, entry.num_tokens)
            entry.num_tokens = 0

    def leave(self, generation: Generation) -> None:
        """It is over. More often than once is no error."""
        self.prefilled(generation)
        entry = self._entries.pop(generation.request.request_id, None)
        if entry is not None:
            self._requests.remove(entry.tenant, 1)

    def _exceeds(self, shares: Shares, request: RoutedRequest, number: int, most: int) -> bool:
        return number >= most and not shares.has_room(request.tenant, request.weight, most)

    def _refuse(self, why: Refusal, described: str, retry_after_s: float) -> None:
        self._counters.refused[why] += 1
        seconds = max(1, math.ceil(retry_after_s))
        raise Overloaded(
            f"the router has {described}: try again in {seconds} s", retry_after_s=float(seconds)
        )

    def _wait_s(self, request: RoutedRequest, most: int) -> float:
        """Until its tenant's share has room for all of it, or is empty, when all tenants get their shares' speed."""
        share = self._tokens.share(request.tenant, request.weight)
        queued = self._tokens.of(request.tenant)
        too_many = min(queued, queued + request.num_prompt_tokens - share * most)
        return too_many / max(1e-9, share * self._fleet_tokens_per_s())

    def _fleet_tokens_per_s(self) -> float:
        now_s = self._clock()
        if now_s - self._speed_as_of_s > SPEED_AGE_S:
            self._tokens_per_s = sum(
                1.0 / s_per_token for s_per_token in self._board.columns(now_s).prefill_s_per_token
            )
            self._speed_as_of_s = now_s
        return self._tokens_per_s
