"""A random walk over the pool and the prefix cache: what is found is always what was put there, nothing leaks."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from protocol.block_hash import BlockHasher, split_digests
from protocol.events import Removed, Stored

SECRET = bytes(range(24))
BLOCK_SIZE = 4
TOKENS = st.lists(st.integers(0, 1), min_size=1, max_size=22)
EXTRAS = st.sampled_from([b"", b"salt"])


class NarrowHasher(BlockHasher):
    """Sixteen different digests in all: most lookups meet a collision."""

    def extend(self, digests: list[bytes], tokens: bytes | memoryview, extra: bytes = b"") -> None:
        stride = self.block_size * 4
        for end in range((len(digests) + 1) * stride, len(tokens) + 1, stride):
            block = bytes(tokens[end - stride : end])
            digests.append(self.next_digest(digests[-1] if digests else None, block, extra))

    def next_digest(self, parent: bytes | None, tokens: bytes, extra: bytes = b"") -> bytes:
        digest = BlockHasher(self.secret, self.block_size).next_digest(parent, tokens, extra)
        return bytes([digest[0] % 16]) * 16


class KvWalk(RuleBasedStateMachine):
    """Keeps what each block really holds: all tokens and the salt before its end."""

    def __init__(self, prompts: Any) -> None:
        super().__init__()
        self.prompts = prompts
        self.kv = prompts.kv
        self.taken: list[tuple[Any, array[int], bytes]] = []
        self.contents: dict[int, tuple[bytes, list[int]]] = {}
        self.told: set[bytes] = set()  # what a router would believe

    def fill(self, table: Any, tokens: array[int], extra: bytes, start: int) -> None:
        for index in range(start, len(tokens) // BLOCK_SIZE):
            self.contents[table.blocks[index].id] = (extra, list(tokens[: (index + 1) * BLOCK_SIZE]))
        self.kv.fill(table, tokens, len(tokens))

    @rule(tokens=TOKENS, extra=EXTRAS, bypass=st.booleans())
    def take(self, tokens: list[int], extra: bytes, bypass: bool) -> None:
        ids = array("i", tokens)
        table = self.kv.table(ids, [], extra)
        matched = [] if bypass else self.kv.lookup(table, ids)
        for number, node in enumerate(matched):
            assert self.contents[node.block.id] == (extra, tokens[: (number + 1) * BLOCK_SIZE])
        before = [(block.id, block.ref_count) for block in self.kv.pool.blocks]
        if not self.kv.admit(table, ids, matched):
            assert before == [(block.id, block.ref_count) for block in self.kv.pool.blocks]
            return
        self.fill(table, ids, extra, len(matched))
        self.prompts.open.append(table)
        self.taken.append((table, ids, extra))

    @precondition(lambda self: self.taken)
    @rule(data=st.data(), more=st.integers(0, 1))
    def grow(self, data: st.DataObject, more: int) -> None:
        table, tokens, extra = data.draw(st.sampled_from(self.taken))
        if len(tokens) % BLOCK_SIZE == 0 and not self.kv.grow(table):
            return
        tokens.append(more)
        self.fill(table, tokens, extra, table.num_registered)

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        self.prompts.free(self.taken.pop(data.draw(st.integers(0, len(self.taken) - 1)))[0])

    @precondition(lambda self: self.told)
    @rule(data=st.data())
    def touch(self, data: st.DataObject) -> None:
        self.kv.touch(
            b"".join(data.draw(st.lists(st.sampled_from(sorted(self.told)), max_size=3, unique=True)))
        )

    @rule()
    def reset(self) -> None:
        assert (self.kv.reset() == 0) == (not self.taken)

    @invariant()
    def nothing_is_lost(self) -> None:
        self.prompts.check()

    @invariant()
    def a_router_that_follows_the_events_knows_the_cache(self) -> None:
        for event in self.kv.prefixes.events.take():
            if isinstance(event, Stored):
                assert event.parent is None or event.parent in self.told
                self.told.update(split_digests(event.digests))
            elif isinstance(event, Removed):
                self.told.difference_update(split_digests(event.digests))
            else:
                self.told.clear()
        assert self.told == set(split_digests(self.kv.prefixes.snapshot()))

    def teardown(self) -> None:
        for table, _, _ in self.taken:
            self.prompts.free(table)
        assert self.kv.reset() == 0
        assert self.kv.pool.num_free == self.kv.pool.num_usable


WALK = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_any_walk_keeps_pool_and_cache_whole(make_prompts: Callable[..., Any]) -> None:
    run_state_machine_as_test(
        lambda: KvWalk(make_prompts(num_blocks=12, block_size=BLOCK_SIZE)), settings=WALK
    )


def test_any_walk_with_collisions_finds_only_its_own(make_prompts: Callable[..., Any]) -> None:
    hasher = NarrowHasher(SECRET, BLOCK_SIZE)
    run_state_machine_as_test(
        lambda: KvWalk(make_prompts(num_blocks=12, block_size=BLOCK_SIZE, hasher=hasher)), settings=WALK
    )
