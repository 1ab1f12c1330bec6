"""The prefix index: exact from events, expectations on top, BLIND until a snapshot has ended."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from protocol.block_hash import join_digests
from protocol.events import GPU, Cleared, Removed, Stored
from router.prefix_index import IndexState, PrefixIndex


def digest(number: int) -> bytes:
    return number.to_bytes(16, "little")


def chain(*numbers: int) -> list[bytes]:
    return [digest(number) for number in numbers]


def stored(*numbers: int, medium: str = GPU) -> Stored:
    return Stored(join_digests(chain(*numbers)), None, medium)


def removed(*numbers: int, medium: str = GPU) -> Removed:
    return Removed(join_digests(chain(*numbers)), medium)


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
    index.apply("a", stored(1, 3))
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
    index.apply("b", removed(1))
    assert index.match(chain(1)) == {"a": 1}


def test_cleared_empties_every_medium_of_one_replica(index: PrefixIndex) -> None:
    synced(index, "a", "b")
    for replica in ("a", "b"):
        index.apply(replica, stored(1))
        index.apply(replica, stored(2, medium="host"))
    index.apply("a", Cleared())
    assert index.match(chain(1, 2)) == {"b": 2}
    assert index.state("a") is IndexState.SYNCED


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


def test_withdrawing_leaves_what_a_later_dispatch_expects_too(index: PrefixIndex) -> None:
    synced(index, "a")
    first = index.expect("a", chain(1, 2), now=0.0)
    second = index.expect("a", chain(1), now=1.0)
    index.withdraw(first)
    assert index.match(chain(1, 2)) == {"a": 1}
    index.withdraw(second)
    assert index.match(chain(1, 2)) == {}


def test_a_lost_replica_matches_nothing_and_its_entries_are_swept_later(index: PrefixIndex) -> None:
    synced(index, "a", "b")
    index.apply("a", stored(*range(90)))
    index.disconnect("a")
    assert index.match(chain(0)) == {}
    assert index.num_entries > 0
    index.check_integrity()
    for number in range(20):
        index.apply("b", stored(number + 1000))
    assert index.num_entries == 20
    index.check_integrity()


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
NUMBERS = st.lists(st.integers(0, 11), max_size=6)
MEDIA = st.sampled_from([GPU, "host"])


class IndexAgainstNaiveModel(RuleBasedStateMachine):
    """The model: per replica and medium a set of held blocks, and a dict from expected block to its dispatch."""

    @initialize()
    def begin(self) -> None:
        self.index = PrefixIndex(expectation_ttl_s=5.0)
        self.now = 0.0
        self.held: dict[str, set[tuple[str, int]]] = {}
        self.expected: dict[tuple[str, int], tuple[int, float]] = {}
        self.blind: set[str] = set()
        self.numbers: list[int] = []

    @rule(replica=REPLICAS)
    def connect_or_disconnect(self, replica: str) -> None:
        if replica in self.held:
            self.index.disconnect(replica)
            del self.held[replica]
            self.expected = {key: value for key, value in self.expected.items() if key[0] != replica}
        else:
            self.index.connect(replica)
            self.held[replica] = set()
            self.blind.add(replica)

    @rule(replica=REPLICAS, numbers=NUMBERS, medium=MEDIA)
    def snapshot(self, replica: str, numbers: list[int], medium: str) -> None:
        if replica in self.held:
            self.index.begin_snapshot(replica)
            self.index.add_to_snapshot(replica, join_digests(chain(*numbers)), medium)
            self.index.end_snapshot(replica)
            self.held[replica] = {(medium, number) for number in numbers}
            self.blind.discard(replica)
            self._confirm(replica, numbers)

    @rule(replica=REPLICAS, numbers=NUMBERS, medium=MEDIA)
    def store(self, replica: str, numbers: list[int], medium: str) -> None:
        if replica in self.held:
            self.index.apply(replica, stored(*numbers, medium=medium))
            if replica not in self.blind:
                self.held[replica] |= {(medium, number) for number in numbers}
                self._confirm(replica, numbers)

    @rule(replica=REPLICAS, numbers=NUMBERS, medium=MEDIA)
    def remove(self, replica: str, numbers: list[int], medium: str) -> None:
        if replica in self.held:
            self.index.apply(replica, removed(*numbers, medium=medium))
            self.held[replica] -= {(medium, number) for number in numbers}

    @rule(replica=REPLICAS, forget=st.booleans())
    def clear_or_blind(self, replica: str, forget: bool) -> None:
        if replica in self.held:
            self.held[replica] = set()
            if forget:
                self.index.blind(replica)
                self.blind.add(replica)
            else:
                self.index.apply(replica, Cleared())

    @rule(replica=REPLICAS, numbers=NUMBERS)
    def expect(self, replica: str, numbers: list[int]) -> None:
        if replica in self.held:
            number = self.index.expect(replica, chain(*numbers), self.now)
            self.numbers.append(number)
            for each in numbers:
                if not self._holds(replica, each):
                    self.expected[replica, each] = (number, self.now + 5.0)

    @precondition(lambda self: self.numbers)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(self.numbers))
        self.index.withdraw(number)
        self.expected = {key: value for key, value in self.expected.items() if value[0] != number}

    @rule(passed=st.floats(0.0, 4.0))
    def expire(self, passed: float) -> None:
        self.now += passed
        self.index.expire(self.now)
        self.expected = {key: value for key, value in self.expected.items() if value[1] > self.now}

    @rule(numbers=NUMBERS)
    def match(self, numbers: list[int]) -> None:
        wanted = {replica: self._depth(replica, numbers) for replica in self.held}
        found = self.index.match(chain(*numbers))
        assert found == {replica: depth for replica, depth in wanted.items() if depth}

    @invariant()
    def holds_together(self) -> None:
        if hasattr(self, "index"):
            self.index.check_integrity()

    def _holds(self, replica: str, number: int) -> bool:
        return any((medium, number) in self.held[replica] for medium in (GPU, "host"))

    def _depth(self, replica: str, numbers: list[int]) -> int:
        for depth, number in enumerate(numbers):
            if not self._holds(replica, number) and (replica, number) not in self.expected:
                return depth
        return len(numbers)

    def _confirm(self, replica: str, numbers: list[int]) -> None:
        for number in numbers:
            self.expected.pop((replica, number), None)


TestIndexAgainstNaiveModel = IndexAgainstNaiveModel.TestCase
TestIndexAgainstNaiveModel.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
