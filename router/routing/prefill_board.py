"""What every replica still has to prefill, as one router knows it: its own dispatches, and what reports add to them.

Kept by `replica_view.py` and `dispatcher.py`, read by `policy.py` as columns; a simulation keeps one in simulated
time. Load counts from the dispatch, not from the reply: ten requests of one moment must not all see an idle replica.
Knows no requests beyond their ids and sizes, and reads no clock: the time is told, in seconds, and never goes back.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from operator import mul
from typing import TypeVar

from protocol.messages import Load
from protocol.speeds import UTILIZATION_WINDOW_S, PrefillRate, Speeds
from router.requests.shares import Shares
from router.routing.fleet_speeds import ASSUMED_SPEEDS, FleetSpeeds
from router.routing.heavy_tenants import heavier_tenants, loads_without
from router.routing.loads import ReplicaColumns
from router.routing.replica_book import ReplicaBook, Sent

__all__ = ["ASSUMED_SPEEDS", "PrefillBoard"]
T = TypeVar("T")
DEMAND_WINDOW_S = 15.0  # a load that rises is to call for replicas before it has piled up


class PrefillBoard:
    """`dispatched` once a request, then `prefilled` at its first token, and `ended` at its end, however it comes."""

    def __init__(self) -> None:
        self._places: dict[str, int] = {}
        self._replicas: list[str] = []  # this and the following by place
        self._books: list[ReplicaBook] = []
        self._spent_by: list[PrefillRate] = []
        self._unfinished: list[Collection[Sent]] = []
        self._others_prefill_s: list[float] = []
        self._num_others: list[int] = []
        self._free_tokens: list[int] = []
        self._num_in_flight: list[int] = []
        self._waiting_tokens: list[int] = []
        self._speeds = FleetSpeeds()
        self._by_tenant = Shares()  # uncached tokens of this router's unfinished prefills
        self._dispatched = PrefillRate()  # by this router, to any of them
        self._dispatched_lately = PrefillRate(DEMAND_WINDOW_S)
        self._spent = PrefillRate()  # by all of them, as they report

    # Replicas

    def add(self, replica: str) -> None:
        """It takes requests from now on, and has none; until it reports speeds it counts as fast as the others."""
        assert replica not in self._places, f"replica {replica} is on the board already"
        book = ReplicaBook(by_tenant=self._by_tenant)
        self._places[replica] = len(self._books)
        self._replicas.append(replica)
        self._books.append(book)
        self._spent_by.append(PrefillRate())
        self._unfinished.append(book.unfinished.values())
        self._others_prefill_s.append(0.0)
        self._num_others.append(0)
        self._free_tokens.append(0)
        self._num_in_flight.append(0)
        self._waiting_tokens.append(0)
        self._speeds.add()

    def remove(self, replica: str) -> None:
        """Whatever it had is gone. One that is not there is no error."""
        place = self._places.pop(replica, None)
        if place is None:
            return
        self._books[place].close()
        as_of_s = self._spent.as_of_s
        self._spent.add(-self._spent_by[place].at(as_of_s) * UTILIZATION_WINDOW_S, as_of_s)
        for column in self._columns():
            del column[place]
        self._speeds.remove(place)
        self._places = {name: place for place, name in enumerate(self._replicas)}

    def report(
        self,
        replica: str,
        *,
        waiting_prefill_tokens: int,
        num_in_flight: int,
        speeds: Speeds,
        utilization: float = 0.0,
        free_tokens: int = 0,
        num_waiting: int = 0,
        num_submits: int | None = None,
        now_s: float = 0.0,
    ) -> None:
        """A replica's own word after a step, told later than all first tokens of that step.

        `free_tokens`: for so many it has blocks that nobody uses and in which nothing is cached.
        `num_waiting`: requests no part of which runs yet. `num_submits`: of our dispatches, those that it contains;
        None: all.
        """
        place = self._places[replica]
        self._speeds.report(place, speeds)
        growth = self._spent_by[place].become(utilization, now_s)
        self._spent.add(growth * UTILIZATION_WINDOW_S, now_s)
        book = self._books[place]
        book.report(waiting_prefill_tokens, num_waiting, num_in_flight, free_tokens, num_submits)
        self._num_others[place] = book.num_others
        self._others_prefill_s[place] = book.others_tokens * self._speeds.prefill_s_per_token[place]
        self._count(place)

    def report_load(
        self, replica: str, load: Load, block_size: int, num_submits: int | None, now_s: float
    ) -> None:
        """The same, as a replica says it: see `report`."""
        num_empty_blocks = load.num_blocks - load.num_used_blocks - load.num_cached_blocks
        self.report(
            replica,
            waiting_prefill_tokens=load.waiting_prefill_tokens,
            num_waiting=load.num_waiting,
            num_in_flight=load.num_running + load.num_waiting,
            speeds=load.speeds,
            utilization=load.prefill_utilization,
            free_tokens=num_empty_blocks * block_size,
            num_submits=num_submits,
            now_s=now_s,
        )

    # Requests

    def dispatched(
        self,
        replica: str,
        request_id: str,
        *,
        num_uncached: int,
        num_cached: int,
        now_s: float,
        num_sequences: int = 1,
        tenant: bytes = b"",
        weight: float = 1.0,
        priority: int = 0,
    ) -> None:
        place = self._places[replica]
        seconds = self._speeds.seconds_to_prefill(place, num_uncached, num_cached)
        self._books[place].dispatched(
            request_id, seconds, num_uncached, now_s, num_sequences, tenant, weight, priority
        )
        self._dispatched.add(seconds, now_s)
        self._dispatched_lately.add(seconds, now_s)
        self._count(place)

    def prefilled(self, replica: str, request_id: str) -> None:
        """Its first token has come. Once is enough, more often no error; so is a replica that is gone."""
        place = self._places.get(replica)
        if place is not None and self._books[place].prefilled(request_id):
            self._count(place)

    def ended(self, replica: str, request_id: str) -> None:
        """It is not there any more: finished, cancelled, rejected or moved."""
        place = self._places.get(replica)
        if place is not None:
            self._books[place].ended(request_id)
            self._count(place)

    # Questions

    def waiting_prefill_tokens(self, replica: str) -> int:
        """Uncached tokens whose prefill has not ended, whoever sent them."""
        return self._waiting_tokens[self._places[replica]]

    def prefill_rates(self, now_s: float) -> tuple[float, float]:
        """Seconds of prefill a second: what all replicas spend, over a minute; what this router sent them just now."""
        return self._spent.at(now_s), self._dispatched_lately.at(now_s)

    def columns(
        self,
        now_s: float,
        candidates: Collection[str] | None = None,
        tenant: bytes = b"",
        weight: float = 1.0,
    ) -> ReplicaColumns:
        """The loads of the candidates (None: all), in an order of its own. Good until the board's next change.

        As a request of this tenant meets them: those who have far more waiting come after it.
        """
        if candidates is None or len(candidates) == len(self._replicas):
            places: Sequence[int] | None = None
        else:
            places = [self._places[replica] for replica in candidates]
        speeds = self._speeds
        unfinished = _at(self._unfinished, places)
        loads = ReplicaColumns(
            replicas=_at(self._replicas, places),
            prefill_s=_at(speeds.prefill_s, places),
            prefill_s_per_token=_at(speeds.prefill_s_per_token, places),
            prefill_s_per_pair=_at(speeds.prefill_s_per_pair, places),
            decode_s=_at(speeds.decode_s, places),
            unfinished=unfinished,
            others_prefill_s=_at(self._others_prefill_s, places),
            num_others=_at(self._num_others, places),
            free_tokens=_at(self._free_tokens, places),
            num_in_flight=_at(self._num_in_flight, places),
            utilization=self._utilization(now_s),
            backlog_s=self._backlog_s(),
            now_s=now_s,
        )
        heavy = heavier_tenants(self._by_tenant, tenant, weight, loads)
        return loads_without(heavy, unfinished, loads) if heavy else loads

    def _utilization(self, now_s: float) -> float:
        """What this router sent, or what the replicas spent, if that is more: then others send too."""
        return max(self._dispatched.at(now_s), self._spent.at(now_s)) / max(1, len(self._replicas))

    def _backlog_s(self) -> float:
        waiting_s: float = sum(map(mul, self._speeds.prefill_s_per_token, self._waiting_tokens))
        return waiting_s / max(1, len(self._replicas))

    # Keeping the columns

    def _count(self, place: int) -> None:
        book = self._books[place]
        waiting_tokens = self._waiting_tokens[place] = book.waiting_tokens
        self._free_tokens[place] = max(0, book.free_tokens - waiting_tokens)
        self._num_in_flight[place] = book.num_in_flight

    def _columns(self) -> list[list]:  # type: ignore[type-arg]  # of many types
        return [
            self._replicas,
            self._books,
            self._spent_by,
            self._unfinished,
            self._others_prefill_s,
            self._num_others,
            self._free_tokens,
            self._num_in_flight,
            self._waiting_tokens,
        ]

    def check_integrity(self) -> None:
        """For tests: the columns say what the books do."""
        columns = [*self._columns(), self._speeds.prefill_s, self._speeds.decode_s]
        assert all(len(column) == len(self._places) for column in columns), "columns differ in length"
        for replica, place in self._places.items():
            book = self._books[place]
            book.check_integrity()
            assert self._replicas[place] == replica, "a replica is filed under another's place"
            assert self._waiting_tokens[place] == book.waiting_tokens, "a wrong backlog"
            free_tokens = max(0, book.free_tokens - book.waiting_tokens)
            assert self._free_tokens[place] == free_tokens, "room that is not there"
            assert self._num_in_flight[place] == book.num_in_flight, "a wrong count of sequences in flight"


def _at(column: Sequence[T], places: Sequence[int] | None) -> Sequence[T]:
    return column if places is None else [column[place] for place in places]
