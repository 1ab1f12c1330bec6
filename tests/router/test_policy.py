"""The routing policy's rules, in the order in which its docstring lists them, and what must hold whatever they are."""

from __future__ import annotations

import random
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from router.policy import Candidate, choose
from router.routed_request import Decision, Reason


def decide(*candidates: Candidate, tokens: int = 100, seed: int = 0, affinity: str | None = None) -> Decision:
    return choose(tokens, candidates, random.Random(seed), affinity=affinity)


def test_the_only_candidate_is_chosen_however_loaded() -> None:
    decision = decide(Candidate("a", 0, prefill_tokens=10**9))
    assert (decision.replica, decision.reason) == ("a", Reason.ONLY)


def test_the_longest_match_wins_over_less_load() -> None:
    decision = decide(Candidate("a", 96, prefill_tokens=5000), Candidate("b", 64), Candidate("c", 0))
    assert (decision.replica, decision.matched_tokens, decision.reason) == ("a", 96, Reason.PREFIX)


def test_of_two_equal_matches_the_less_loaded_wins() -> None:
    assert decide(Candidate("a", 96, running=2), Candidate("b", 96), Candidate("c", 0)).replica == "b"


def test_a_holder_over_its_prefill_capacity_is_passed_over() -> None:
    holder = Candidate("a", 96, prefill_tokens=997, prefill_capacity_tokens=1000)
    decision = decide(holder, Candidate("b", 0))
    assert (decision.replica, decision.reason) == ("b", Reason.BALANCED)
    assert decision.best_matched_tokens == 96


def test_a_holder_without_free_kv_is_passed_over() -> None:
    holder = Candidate("a", 96, used_kv_tokens=1000, kv_capacity_tokens=1000)
    assert decide(holder, Candidate("b", 0)).reason is Reason.BALANCED


def test_a_second_holder_within_its_capacity_keeps_the_prefix() -> None:
    full = Candidate("a", 96, prefill_tokens=10**6)
    assert decide(full, Candidate("b", 96, prefill_tokens=500), Candidate("c", 0)).replica == "b"


def test_a_cold_prompt_goes_to_the_least_loaded() -> None:
    decision = decide(Candidate("a", 0, running=1), Candidate("b", 0, prefill_tokens=100))
    assert (decision.replica, decision.reason) == ("b", Reason.COLD)


def test_load_counts_tokens_and_not_requests() -> None:
    assert decide(Candidate("a", 0, prefill_tokens=100_000), Candidate("b", 0, running=8)).replica == "b"


def test_ties_are_broken_at_random_over_all_replicas() -> None:
    candidates = [Candidate(name, 0) for name in "abcd"]
    assert {decide(*candidates, seed=seed).replica for seed in range(64)} == set("abcd")


def test_affinity_breaks_ties_always_alike_and_spreads_sessions() -> None:
    candidates = [Candidate(name, 0) for name in "abcd"]
    assert len({decide(*candidates, seed=seed, affinity="s").replica for seed in range(16)}) == 1
    assert {decide(*candidates, affinity=f"session {n}").replica for n in range(64)} == set("abcd")


def test_an_empty_prompt_gets_an_answer() -> None:
    assert decide(Candidate("a", 0), Candidate("b", 0), tokens=0).reason is Reason.COLD


def candidates_strategy() -> st.SearchStrategy[list[Candidate]]:
    """Loads that differ by more than the prompt, so that no two replicas tie."""
    loads = st.lists(st.integers(0, 50), min_size=1, max_size=6, unique=True)
    return loads.flatmap(
        lambda chosen: st.tuples(
            *(
                st.builds(
                    Candidate,
                    replica=st.just(f"r{number}"),
                    matched_tokens=st.sampled_from([0, 16, 32, 96]),
                    prefill_tokens=st.just(number * 1000),
                    prefill_capacity_tokens=st.sampled_from([500, 10_000, 100_000]),
                )
                for number in chosen
            )
        ).map(list)
    )


@given(candidates_strategy(), st.randoms(use_true_random=False))
def test_the_order_of_the_candidates_changes_nothing(
    candidates: list[Candidate], order: random.Random
) -> None:
    shuffled = list(candidates)
    order.shuffle(shuffled)
    assert decide(*candidates) == decide(*shuffled)


@given(candidates_strategy(), st.integers(1, 100))
def test_more_cached_tokens_never_lose_a_replica_the_request(candidates: list[Candidate], more: int) -> None:
    winner = decide(*candidates).replica
    better = [
        replace(each, matched_tokens=min(100, each.matched_tokens + more)) if each.replica == winner else each
        for each in candidates
    ]
    assert decide(*better).replica == winner


@given(candidates_strategy())
def test_the_decision_tells_the_longest_match_there_was(candidates: list[Candidate]) -> None:
    decision = decide(*candidates)
    assert decision.best_matched_tokens == max(each.matched_tokens for each in candidates)
    assert decision.matched_tokens <= decision.best_matched_tokens
