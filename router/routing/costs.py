"""What each replica would cost a request, in seconds. Called by `policy.py` to choose, by `weighing.py` to explain.

Predicted with each replica's own speeds, and no user sets anything here.

    t_i     = seconds that i would take to prefill what it has not cached of the prompt
    key_j   = t_j / (1 s + wait_j)                 the order in which replicas prefill: lowest first
    ahead_i = sum of t_j over unfinished prefills j at i with key_j <= t_i
    over_i  = number of unfinished prefills j at i with key_j > t_i: this one overtakes them
    cost_i  = ahead_i + t_i + 2 * over_i * t_i + price * copy_i + evict_i + decode_i
    copy_i  = t_i less what i would take with the longest match of all: t_i - min_j t_j where all are equally fast
    price   = min(30, 1 / (1 - utilization) + mean backlog in seconds)
    evict_i = half the seconds to compute those tokens again that i would push out of its cache for this prompt

Each that is overtaken waits t_i more, and for whatever overtakes it in that time: it counts twice. Once is 3 to 4 %
more p99 time to the first token at high load in simulations of a public trace, and 1 % less of the mean.

Whatever its key, a prefill of a better priority class is ahead, one of a worse class is overtaken. With 30 % of that
trace in a better class, at high load, the mean over all is 1.16 s instead of 1.34 s for it (the better class 0.95 s
instead of 0.87, the worse one 1.25 s instead of 1.54).

What other routers sent is known by its sum and number: it counts as so many average prefills that have waited a
second. Taken as ahead in any case, it keeps prompts from where their prefix is: with three routers 17.8 and 33.2 % hits
instead of 18.4 and 33.8, and up to 3 % more time to the first token.

The price is what a second copy costs: not only its own prefill, but that all behind it wait for it, the longer the
busier the fleet is. A slower replica does not pay for being slow: its seconds delay only those behind it. The last
term, a decode step for each sequence in flight, spreads what is equal otherwise.

Without `evict_i` a nearly idle fleet sends nearly everything to the few replicas that hold a head which all prompts
share, while the memory of the others stays empty: on a public trace at a tenth of its speed, 8 replicas, 0.95 s to
the first token and 8 % hits instead of 0.85 s and 18 %. At the trace's speed and up to overload it changes the mean by
less than 1 %; a quarter or the whole of those seconds do the same.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from router.routing.loads import ReplicaColumns, RoutingRequest, UnfinishedPrefill

MOST_PRICE = 30.0
MOST_UTILIZATION = 0.999
OVERTAKING = 2.0  # times t_i: what one that is overtaken waits longer
EVICTED_SHARE = 0.5  # of what is pushed out, priced as if somebody came back for it


@dataclass(frozen=True, slots=True)
class CostTerms:
    """One replica's part in a decision, in seconds where it says so. They add up to `cost_s`."""

    replica: str
    matched_tokens: int
    prefill_s: float  # t_i
    ahead_s: float
    num_overtaken: int
    overtaking_s: float  # 2 * over_i * t_i
    copy_s: float  # price * copy_i
    decode_s: float
    evict_s: float = 0.0

    @property
    def cost_s(self) -> float:
        own_s = self.ahead_s + self.prefill_s + self.overtaking_s
        return own_s + self.copy_s + self.evict_s + self.decode_s


def cost_table(request: RoutingRequest, loads: ReplicaColumns) -> list[CostTerms]:
    """What `choose` compares, term by term and for every replica: an explanation, and slower."""
    best_match = max(request.matched_tokens)
    prefill_s = prefill_seconds(request.num_prompt_tokens, request.matched_tokens, loads)
    least_s = prefill_seconds(request.num_prompt_tokens, [best_match] * len(prefill_s), loads)
    evict_s = eviction_seconds(request.num_prompt_tokens, request.matched_tokens, loads)
    price, table = price_of_a_copy(loads), []
    for place, replica in enumerate(loads.replicas):
        own_s = prefill_s[place]
        ahead_s, num_overtaken = _queue(own_s, request.priority, loads.unfinished[place], loads.now_s)
        others_s, num_others = loads.others_prefill_s[place], loads.num_others[place]
        if others_s > OVERTAKING * own_s * num_others > 0.0:
            num_overtaken += num_others
        else:
            ahead_s += others_s
        table.append(
            CostTerms(
                replica=replica,
                matched_tokens=request.matched_tokens[place],
                prefill_s=own_s,
                ahead_s=ahead_s,
                num_overtaken=num_overtaken,
                overtaking_s=OVERTAKING * num_overtaken * own_s,
                copy_s=price * (own_s - least_s[place]),
                decode_s=loads.decode_s[place] * loads.num_in_flight[place],
                evict_s=evict_s[place],
            )
        )
    return table


def prefill_seconds(most: int, matched_tokens: Sequence[int], loads: ReplicaColumns) -> list[float]:
    """t_i of every replica for `most` tokens: `Speeds.seconds_to_prefill`, unrolled over the columns."""
    seconds = []
    columns = (loads.prefill_s, loads.prefill_s_per_token, loads.prefill_s_per_pair)
    for matched, once_s, token_s, pair_s in zip(matched_tokens, *columns, strict=True):
        uncached = most - matched if matched < most else 0
        seconds.append(once_s + uncached * (token_s + pair_s * (matched + 0.5 * uncached)))
    return seconds


def eviction_seconds(most: int, matched_tokens: Sequence[int], loads: ReplicaColumns) -> list[float]:
    """evict_i of every replica for `most` tokens. Attention is left out: nobody knows where in a prompt they stood."""
    columns = (loads.free_tokens, loads.prefill_s_per_token)
    return [
        EVICTED_SHARE * token_s * num_evicted if (num_evicted := most - matched - free) > 0 else 0.0
        for matched, free, token_s in zip(matched_tokens, *columns, strict=True)
    ]


def price_of_a_copy(loads: ReplicaColumns) -> float:
    """Seconds of everybody's waiting for each second of prefill that would have been cached elsewhere."""
    idle = 1.0 - min(MOST_UTILIZATION, max(0.0, loads.utilization))
    return min(MOST_PRICE, 1.0 / idle + max(0.0, loads.backlog_s))


def cheapest(request: RoutingRequest, best_match: int, loads: ReplicaColumns) -> tuple[float, list[int]]:
    """The lowest cost and the places that have it; no place when costs are no numbers.

    A queue only adds to a cost, so the queues of those that are too dear without it are not looked at.
    """
    matched = request.matched_tokens
    prefill_s = prefill_seconds(request.num_prompt_tokens, matched, loads)
    least_s = prefill_s
    if best_match:
        least_s = prefill_seconds(request.num_prompt_tokens, [best_match] * len(matched), loads)
    price = price_of_a_copy(loads)
    evict_s = eviction_seconds(request.num_prompt_tokens, matched, loads)
    others_s = _others_seconds(prefill_s, loads)
    columns = (prefill_s, least_s, evict_s, others_s, loads.decode_s, loads.num_in_flight)
    floors: list[float] = [
        own_s + price * (own_s - least) + evicted_s + others + step_s * num_in_flight
        for own_s, least, evicted_s, others, step_s, num_in_flight in zip(*columns, strict=True)
    ]
    if not math.isfinite(sum(floors)):
        return math.nan, []
    unfinished, now_s, priority = loads.unfinished, loads.now_s, request.priority

    def cost_at(place: int) -> float:
        if not unfinished[place]:
            return floors[place]
        ahead_s, num_overtaken = _queue(prefill_s[place], priority, unfinished[place], now_s)
        return floors[place] + ahead_s + OVERTAKING * num_overtaken * prefill_s[place]

    best, ties = cost_at(floors.index(min(floors))), list[int]()
    for place, floor in enumerate(floors):
        if floor <= best:
            cost = cost_at(place)
            if cost < best:
                best, ties = cost, [place]
            elif cost == best:
                ties.append(place)
    return best, ties


def _others_seconds(prefill_s: Sequence[float], loads: ReplicaColumns) -> list[float]:
    """Of ahead_i or of 2 * over_i * t_i, whichever is less: of averages that have waited a second it is the one."""
    return [
        seconds if not num or seconds <= (overtaking_s := OVERTAKING * num * own_s) else overtaking_s
        for own_s, seconds, num in zip(prefill_s, loads.others_prefill_s, loads.num_others, strict=True)
    ]


def _queue(
    own_s: float, priority: int, unfinished: Collection[UnfinishedPrefill], now_s: float
) -> tuple[float, int]:
    """Seconds of what would run before a new prefill of `own_s`, and how many it would overtake."""
    ahead_s, num_overtaken = 0.0, 0
    since = 1.0 + now_s
    for other in unfinished:
        if other.priority != priority:
            is_ahead = other.priority < priority
        else:
            is_ahead = other.remaining_s <= own_s * (since - other.dispatched_s)
        if is_ahead:
            ahead_s += other.remaining_s
        else:
            num_overtaken += 1
    return ahead_s, num_overtaken
