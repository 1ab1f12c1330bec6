"""What has happened at the replicas and has not reached the routers yet: everything arrives in order, equally late.

Filled by `simulation.py` and by caches, heard by fleets and policies. One queue for all replicas and routers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from simulator.holders import Holders


class News:
    def __init__(self, lag_s: float) -> None:
        self.now_s = 0.0  # at the replicas
        self._lag_s = lag_s
        self._on_the_way: deque[tuple[float, Callable[..., None], tuple[Any, ...]]] = deque()

    def tell(self, hear: Callable[..., None], *what: Any) -> None:
        if self._lag_s == 0.0:
            hear(*what)
        else:
            self._on_the_way.append((self.now_s + self._lag_s, hear, what))

    def deliver(self, until_s: float) -> None:
        on_the_way = self._on_the_way
        while on_the_way and on_the_way[0][0] <= until_s:
            _, hear, what = on_the_way.popleft()
            hear(*what)

    def holders(self, num_replicas: int) -> Holders:
        """Of blocks, as far as the news has come."""
        return Holders(num_replicas) if self._lag_s == 0.0 else LateHolders(num_replicas, self)


class LateHolders(Holders):
    """Told of every block at once, as any `Holders`; knows it when the news arrives."""

    __slots__ = ("_news",)

    def __init__(self, num_replicas: int, news: News) -> None:
        super().__init__(num_replicas)
        self._news = news

    def add(self, block: int, replica: int) -> None:
        self._news.tell(super().add, block, replica)

    def discard(self, block: int, replica: int) -> None:
        self._news.tell(super().discard, block, replica)
