"""The prefix index: exact from events, expectations on top, BLIND until a snapshot has ended, little memory."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections import UserList
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from protocol.block_hash import join_digests
from protocol.events import GPU, Cleared, Removed, Stored
from router.prefixes.prefix_index import IndexState, PrefixIndex


def digest(number: int) -> bytes:
    return number.to_bytes(16, "little")


def chain(*numbers: int) -> list[bytes]:
    return [digest(number) for number in numbers]


def stored(*numbers: int, medium: str = GPU) -> Stored:
    return Stored(join_digests(chain(*numbers)), None, medium)


def removed(*numbers: int, medium: str = GPU) -> Removed:
    return Removed(join_digests(chain(*numbers)), medium)


class CountingSequence(UserList[bytes]):
    """Digests that count how often one of them is read."""

    num_reads = 0

    def __getitem__(self, place: Any) -> Any:
        self.num_reads += 1
        return self.data[place]


def synced(index: PrefixIndex, *replicas: str) -> None:
    for replica in replicas:
        index.connect(replica)
        index.begin_snapshot(replica)
        index.end_snapshot(replica)


@pytest.fixture
def index() -> PrefixIndex:
    return PrefixIndex(expectation_ttl_s=10.0, max_blocks_per_replica=100)


def test_one_walk_gives_every_replicas_depth(index: PrefixIndex) -> None:
    synced(index, "a", "b", "c")
    index.apply("a", stored(1, 2, 3))
    index.apply("b", stored(1, 2))
    assert index.match(chain(1, 2, 3, 4)) == {"a": 3, "b": 2}
    index.check_integrity()


def test_a_match_ends_at_the_first_block_that_is_missing(index: PrefixIndex) -> None:
    synced(index, "a")
    index.apply("a", stored(1))
    assert index.match(chain(1, 2, 3)) == {"a": 1}


def test_an_empty_prompt_matches_nothing(index: PrefixIndex) -> None:
    synced(index, "a")
    assert index.match([]) == {}


def test_a_blind_replica_holds_nothing_exact(index: PrefixIndex) -> None:
    index.connect("a")
    index.begin_snapshot("a")
    index.add_to_snapshot("a", join_digests(chain(1, 2)))
    assert index.state("a") is IndexState.BLIND
    assert index.match(chain(1, 2)) == {}
    index.end_snapshot("a")
    assert index.state("a") is IndexState.SYNCED
    assert index.match(chain(1, 2)) == {"a": 2}


def test_events_before_the_snapshot_are_ignored(index: PrefixIndex) -> None:
    index.connect("a")
    index.apply("a", stored(1))
    index.begin_snapshot("a")
    index.end_snapshot("a")
    assert index.match(chain(1)) == {}


def test_a_block_on_two_media_stays_until_both_have_lost_it(index: PrefixIndex) -> None:
    synced(index, "a")
    index.apply("a", stored(1))
    index.apply("a", stored(1, medium="host"))
    index.apply("a", removed(1))
    assert index.match(chain(1)) == {"a": 1}
    index.apply("a", removed(1, medium="host"))
    assert index.match(chain(1)) == {}
    index.check_integrity()


def test_ignores_the_removal_of_a_block_that_it_does_not_know(index: PrefixIndex) -> None:
    synced(index, "a", "b")
    index.apply("a", stored(1))
    assert not index.apply("b", removed(1))
    assert index.match(chain(1)) == {"a": 1}


def test_cleared_empties_every_medium_of_one_replica(index: PrefixIndex) -> None:
    synced(index, "a", "b")
    for replica in ("a", "b"):
        index.apply(replica, stored(1))
        index.apply(replica, stored(2, medium="host"))
    index.apply("a", Cleared())
    assert index.match(chain(1, 2)) == {"b": 2}
    assert index.state("a") is IndexState.SYNCED


def test_an_event_that_cannot_be_is_told_and_counts_all_the_same(index: PrefixIndex) -> None:
    synced(index, "a")
    assert index.apply("a", stored(1, 2))
    assert not index.apply("a", stored(2, 3))
    assert index.match(chain(1, 2, 3)) == {"a": 3} and index.num_blocks("a") == 3
    assert index.apply("a", removed(2, 3)) and not index.apply("a", removed(3))


def test_what_is_only_expected_is_not_held(index: PrefixIndex) -> None:
    synced(index, "a")
    index.apply("a", stored(1))
    index.expect("a", chain(1, 2), now=0.0)
    assert index.holds("a", digest(1)) and not index.holds("a", digest(2)) and not index.holds("b", digest(1))


def test_an_expectation_counts_at_once_and_for_its_replica_alone(index: PrefixIndex) -> None:
    synced(index, "a", "b")
    index.expect("a", chain(1, 2), now=0.0)
    assert index.match(chain(1, 2)) == {"a": 2}


def test_an_expectation_counts_for_a_blind_replica(index: PrefixIndex) -> None:
    index.connect("a")
    index.expect("a", chain(1), now=0.0)
    assert index.match(chain(1)) == {"a": 1}


def test_an_expectation_that_does_not_come_true_expires(index: PrefixIndex) -> None:
    synced(index, "a")
    index.expect("a", chain(1), now=0.0)
    index.expire(now=9.9)
    assert index.match(chain(1)) == {"a": 1}
    index.expire(now=10.0)
    assert index.match(chain(1)) == {}
    index.check_integrity()


def test_an_expectation_that_came_true_outlives_its_expiry(index: PrefixIndex) -> None:
    synced(index, "a")
    number = index.expect("a", chain(1), now=0.0)
    index.apply("a", stored(1))
    index.expire(now=100.0)
    index.withdraw(number)
    assert index.match(chain(1)) == {"a": 1}


def test_withdrawing_leaves_what_another_dispatch_expects_too(index: PrefixIndex) -> None:
    synced(index, "a")
    first, second = index.expect("a", chain(1, 2), now=0.0), index.expect("a", chain(1), now=1.0)
    third = index.expect("a", chain(1, 3), now=2.0)
    index.withdraw(third)
    assert index.match(chain(1, 2)) == {"a": 2}
    index.withdraw(first)
    assert index.match(chain(1, 2)) == {"a": 1}
    index.withdraw(second)
    assert index.match(chain(1, 2)) == {}


def test_a_block_that_goes_before_the_dispatch_that_matched_it_is_computed_is_expected(
    index: PrefixIndex,
) -> None:
    synced(index, "a")
    index.apply("a", stored(1, 2))
    index.expect("a", chain(1, 2, 3), now=0.0)
    index.apply("a", removed(2))
    assert index.match(chain(1, 2, 3)) == {"a": 3}


def test_an_expectation_ends_with_the_connection_that_it_was_made_on(index: PrefixIndex) -> None:
    synced(index, "a")
    first = index.expect("a", chain(1, 2), now=0.0)
    index.disconnect("a")
    synced(index, "a")
    index.expect("a", chain(1, 2), now=1.0)
    index.withdraw(first)
    assert index.match(chain(1, 2)) == {"a": 2}


def test_a_lookup_in_a_long_prompt_reads_few_of_its_blocks(index: PrefixIndex) -> None:
    synced(index, "a", "b")
    index.apply("a", stored(*range(80)))
    index.apply("b", stored(*range(33)))
    prompt = CountingSequence(chain(*range(10_000)))
    assert index.match(prompt) == {"a": 80, "b": 33}
    assert prompt.num_reads <= 24


def test_a_lost_replica_matches_nothing_and_its_entries_are_swept_later(index: PrefixIndex) -> None:
    synced(index, "a", "b")
    for start in range(0, 90, 10):
        index.apply("a", stored(*range(start, start + 10)))
    index.disconnect("a")
    assert index.match(chain(0)) == {}
    assert index.num_entries == 90 - 64
    index.check_integrity()
    index.apply("b", stored(1000))
    assert index.num_entries == 1
    index.check_integrity()


def test_losing_a_replica_and_every_change_after_it_move_a_bounded_number_of_entries() -> None:
    index = PrefixIndex()
    synced(index, "a", "b")
    index.apply("a", stored(*range(5000)))
    index.disconnect("a")
    left = [index.num_entries]
    for number in range(100):
        index.apply("b", stored(10_000 + number))
        left.append(index.num_entries)
    assert left[0] == 5000 - 64 and left[-1] == 100
    assert max(before - after for before, after in pairwise(left)) <= 64
    assert index.num_bytes <= 150 * 100


def test_a_block_that_two_replicas_hold_survives_the_loss_of_one(index: PrefixIndex) -> None:
    synced(index, "a", "b")
    for replica in ("a", "b"):
        index.apply(replica, stored(*range(90)))
    index.disconnect("a")
    index.apply("b", removed(*range(20, 90)))  # half swept: these change on both sides of the pass
    index.apply("b", stored(85))
    assert index.match(chain(*range(90))) == {"b": 20}
    assert index.num_entries == index.num_blocks("b") == 21
    index.check_integrity()


def test_losses_in_a_row_leave_no_more_than_what_the_living_hold_and_as_much_again() -> None:
    index = PrefixIndex()
    synced(index, "keeper")
    index.apply("keeper", stored(*range(1000)))
    for round_number in range(1, 30):
        synced(index, "flaps")
        first = 10_000 * round_number
        index.apply("flaps", stored(*range(first, first + 1000)))
        assert index.num_entries <= 2 * 2000
        index.disconnect("flaps")
    index.check_integrity()


def test_a_pair_of_block_and_replica_takes_at_most_150_bytes_and_the_account_is_right() -> None:
    held = [number.to_bytes(16, "little") for number in range(50_000)]
    joined = join_digests(held)
    tracemalloc.start()
    index = PrefixIndex()
    synced(index, *"abcdefghij")
    index.apply("j", Stored(joined, None))
    taken = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert taken <= index.num_bytes <= 150 * len(held)


def test_a_replica_that_comes_back_starts_with_nothing(index: PrefixIndex) -> None:
    synced(index, "a")
    index.apply("a", stored(1))
    index.disconnect("a")
    synced(index, "a")
    assert index.match(chain(1)) == {}
    index.check_integrity()


def test_a_new_snapshot_replaces_what_was_known(index: PrefixIndex) -> None:
    synced(index, "a")
    index.apply("a", stored(1, 2))
    index.begin_snapshot("a")
    index.add_to_snapshot("a", join_digests(chain(1)))
    index.end_snapshot("a")
    assert index.match(chain(1, 2)) == {"a": 1}


def test_a_replica_over_its_bound_goes_blind_and_its_memory_goes(index: PrefixIndex) -> None:
    synced(index, "a")
    index.apply("a", stored(*range(101)))
    assert index.state("a") is IndexState.BLIND
    assert index.num_blocks("a") == 0


def test_a_snapshot_over_the_bound_does_not_make_a_part_of_itself_true(index: PrefixIndex) -> None:
    index.connect("a")
    index.begin_snapshot("a")
    index.add_to_snapshot("a", join_digests(chain(*range(101))))
    index.add_to_snapshot("a", join_digests(chain(500)))
    index.end_snapshot("a")
    assert index.state("a") is IndexState.BLIND
    assert index.match(chain(500)) == {}


REPLICAS = st.sampled_from(["a", "b", "c"])
PATHS = st.lists(st.integers(0, 1), max_size=12).map(tuple)  # prompts: few enough to share their first blocks
MEDIA = st.sampled_from([GPU, "host"])
Path = tuple[int, ...]


def prefixes(path: Path) -> list[Path]:
    return [path[:end] for end in range(1, len(path) + 1)]


def prompt(path: Path) -> list[bytes]:
    return [bytes(each).ljust(16, b".") for each in prefixes(path)]


class IndexAgainstNaiveModel(RuleBasedStateMachine):
    """The model: per replica the (medium, prefix) pairs that it holds, and every dispatch with its whole prompt."""

    @initialize()
    def begin(self) -> None:
        self.index = PrefixIndex(expectation_ttl_s=5.0)
        self.now = 0.0
        self.held: dict[str, set[tuple[str, Path]]] = {}
        self.expected: dict[int, tuple[str, Path, float]] = {}
        self.blind: set[str] = set()
        self.numbers: list[int] = []

    @rule(replica=REPLICAS)
    def connect_or_disconnect(self, replica: str) -> None:
        if replica in self.held:
            self.index.disconnect(replica)
            del self.held[replica]
            self.expected = {key: value for key, value in self.expected.items() if value[0] != replica}
        else:
            self.index.connect(replica)
            self.held[replica] = set()
            self.blind.add(replica)

    @rule(replica=REPLICAS, paths=st.lists(PATHS, max_size=4), medium=MEDIA)
    def snapshot(self, replica: str, paths: list[Path], medium: str) -> None:
        if replica in self.held:
            self.index.begin_snapshot(replica)
            for path in paths:
                self.index.add_to_snapshot(replica, join_digests(prompt(path)), medium)
            self.index.end_snapshot(replica)
            self.held[replica] = {(medium, each) for path in paths for each in prefixes(path)}
            self.blind.discard(replica)

    @rule(replica=REPLICAS, path=PATHS, medium=MEDIA)
    def store(self, replica: str, path: Path, medium: str) -> None:
        if replica in self.held:
            new = {(medium, each) for each in prefixes(path)} - self.held[replica]
            possible = self.index.apply(replica, Stored(join_digests(prompt(path)), None, medium))
            assert possible == (replica in self.blind or len(new) == len(path))
            if replica not in self.blind:
                self.held[replica] |= new

    @rule(replica=REPLICAS, root=PATHS, medium=MEDIA)
    def remove(self, replica: str, root: Path, medium: str) -> None:
        """A block goes with all that can only be reached through it."""
        if replica in self.held and root:
            gone = {
                (tier, path)
                for tier, path in self.held[replica]
                if tier == medium and path[: len(root)] == root
            }
            digests = [prompt(path)[-1] for _, path in gone]
            self.index.apply(replica, Removed(join_digests(digests), medium))
            self.held[replica] -= gone

    @rule(replica=REPLICAS, forget=st.booleans())
    def clear_or_blind(self, replica: str, forget: bool) -> None:
        if replica in self.held:
            self.held[replica] = set()
            if forget:
                self.index.blind(replica)
                self.blind.add(replica)
            else:
                self.index.apply(replica, Cleared())

    @rule(replica=REPLICAS, path=PATHS)
    def expect(self, replica: str, path: Path) -> None:
        if replica in self.held:
            number = self.index.expect(replica, prompt(path), self.now)
            self.numbers.append(number)
            self.expected[number] = (replica, path, self.now + 5.0)

    @precondition(lambda self: self.numbers)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(self.numbers))
        self.index.withdraw(number)
        self.expected.pop(number, None)

    @rule(passed=st.floats(0.0, 4.0))
    def expire(self, passed: float) -> None:
        self.now += passed
        self.index.expire(self.now)
        self.expected = {key: value for key, value in self.expected.items() if value[2] > self.now}

    @rule(path=PATHS)
    def match(self, path: Path) -> None:
        wanted = {replica: self._depth(replica, path) for replica in self.held}
        assert self.index.match(prompt(path)) == {
            replica: depth for replica, depth in wanted.items() if depth
        }

    @rule()
    def count_own_blocks(self) -> None:
        known = [self.held[replica] for replica in self.held if replica not in self.blind]
        wanted = {
            replica: len(held.difference(*(other for other in known if other is not held)))
            for replica, held in self.held.items()
            if replica not in self.blind
        }
        assert asyncio.run(self.index.own_blocks()) == wanted

    @invariant()
    def holds_together(self) -> None:
        if hasattr(self, "index"):
            self.index.check_integrity()
            for replica, held in self.held.items():
                assert self.index.num_blocks(replica) == len(held)

    def _depth(self, replica: str, path: Path) -> int:
        """Block by block."""
        for depth, each in enumerate(prefixes(path)):
            if not self._holds(replica, each) and not self._expects(replica, each):
                return depth
        return len(path)

    def _holds(self, replica: str, path: Path) -> bool:
        return any((medium, path) in self.held[replica] for medium in (GPU, "host"))

    def _expects(self, replica: str, path: Path) -> bool:
        return any(
            whose == replica and whole[: len(path)] == path for whose, whole, _ in self.expected.values()
        )


TestIndexAgainstNaiveModel = IndexAgainstNaiveModel.TestCase
TestIndexAgainstNaiveModel.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
