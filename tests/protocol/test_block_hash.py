"""Block digests: one chain, one definition, on both sides of every border."""

from __future__ import annotations

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from protocol.block_hash import SECRET_BYTES, BlockHasher, isolation_key, join_digests, split_digests
from protocol.tokens import pack_tokens, unpack_tokens

SECRET = bytes(range(SECRET_BYTES))
HASHER = BlockHasher(SECRET, 4)


def test_only_full_blocks_have_a_digest() -> None:
    assert len(HASHER.digests(pack_tokens(range(3)))) == 0
    assert len(HASHER.digests(pack_tokens(range(4)))) == 1
    assert len(HASHER.digests(pack_tokens(range(11)))) == 2


def test_the_definition_is_xxh3_over_parent_and_tokens() -> None:
    first, second = HASHER.digests(pack_tokens(range(8)))
    seed, root = int.from_bytes(SECRET[:8], "little"), SECRET[8:]
    assert first == xxhash.xxh3_128_digest(root + pack_tokens(range(4)), seed)
    assert second == xxhash.xxh3_128_digest(first + pack_tokens(range(4, 8)), seed)


def test_a_digest_depends_on_every_token_before_it() -> None:
    one, other = HASHER.digests(pack_tokens(range(8))), HASHER.digests(pack_tokens([9, *range(1, 8)]))
    assert one[0] != other[0] and one[1] != other[1]


def test_a_salt_changes_the_whole_chain_and_the_same_salt_does_not() -> None:
    tokens = pack_tokens(range(8))
    plain, salted = HASHER.digests(tokens), HASHER.digests(tokens, isolation_key(None, "tenant"))
    assert not set(plain) & set(salted)
    assert salted == HASHER.digests(tokens, isolation_key(None, "tenant"))


def test_an_adapter_and_a_salt_of_the_same_name_differ() -> None:
    assert isolation_key("x", None) != isolation_key(None, "x")
    assert isolation_key(None, None) == b""


def test_another_secret_gives_other_digests_and_another_fingerprint() -> None:
    other = BlockHasher(bytes(SECRET_BYTES), 4)
    assert HASHER.digests(pack_tokens(range(4))) != other.digests(pack_tokens(range(4)))
    assert HASHER.fingerprint != other.fingerprint
    assert HASHER.fingerprint != BlockHasher(SECRET, 8).fingerprint


class OtherAlgorithm(BlockHasher):
    def extend(self, digests: list[bytes], tokens: bytes | memoryview, extra: bytes = b"") -> None:
        super().extend(digests, tokens, extra)
        digests[:] = [xxhash.xxh128_digest(each) for each in digests]


class OtherByteOrder(BlockHasher):
    def extend(self, digests: list[bytes], tokens: bytes | memoryview, extra: bytes = b"") -> None:
        swapped = unpack_tokens(bytes(tokens))
        swapped.byteswap()
        super().extend(digests, swapped.tobytes(), extra)


class WithoutIsolation(BlockHasher):
    def extend(self, digests: list[bytes], tokens: bytes | memoryview, extra: bytes = b"") -> None:
        super().extend(digests, tokens)


class IsolatedEverywhere(BlockHasher):
    def extend(self, digests: list[bytes], tokens: bytes | memoryview, extra: bytes = b"") -> None:
        parent, stride = None, 4 * self.block_size
        for start in range(0, len(tokens) - stride + 1, stride):
            block = bytes(tokens[start : start + stride])
            parent = xxhash.xxh3_128_digest((parent or self.secret[8:]) + block + extra, self._seed)
            digests.append(parent)


class WithoutChain(BlockHasher):
    def extend(self, digests: list[bytes], tokens: bytes | memoryview, extra: bytes = b"") -> None:
        stride = 4 * self.block_size
        for start in range(0, len(tokens) - stride + 1, stride):
            digests.append(self.next_digest(None, bytes(tokens[start : start + stride]), extra))


@pytest.mark.parametrize(
    "drifted", [OtherAlgorithm, OtherByteOrder, WithoutIsolation, IsolatedEverywhere, WithoutChain]
)
def test_a_hasher_that_drifts_in_one_ingredient_has_another_fingerprint(drifted: type[BlockHasher]) -> None:
    assert drifted(SECRET, 4).fingerprint != HASHER.fingerprint


def test_the_fingerprint_stays_what_it_is() -> None:
    """A change of it makes every router of one version refuse the other version's replicas."""
    assert HASHER.fingerprint[:16] == "d0d0bc368237b298"


def test_the_secret_is_not_in_the_repr() -> None:
    assert repr(SECRET) not in repr(HASHER)


@given(st.lists(st.integers(0, 2**31 - 1), max_size=40), st.integers(0, 40), st.binary(max_size=8))
def test_extending_equals_hashing_at_once(tokens: list[int], cut: int, extra: bytes) -> None:
    digests: list[bytes] = []
    HASHER.extend(digests, pack_tokens(tokens[:cut]), extra)
    HASHER.extend(digests, pack_tokens(tokens), extra)
    assert digests == HASHER.digests(pack_tokens(tokens), extra)


@given(st.lists(st.integers(0, 2**31 - 1), min_size=4, max_size=16), st.binary(max_size=8))
def test_one_block_at_a_time_equals_hashing_at_once(tokens: list[int], extra: bytes) -> None:
    parent: bytes | None = None
    chain = []
    for start in range(0, len(tokens) - 3, 4):
        parent = HASHER.next_digest(parent, pack_tokens(tokens[start : start + 4]), extra)
        chain.append(parent)
    assert chain == HASHER.digests(pack_tokens(tokens), extra)


@given(st.lists(st.integers(-(2**31), 2**31 - 1)))
def test_tokens_survive_the_journey(tokens: list[int]) -> None:
    assert list(unpack_tokens(pack_tokens(tokens))) == tokens


def test_digests_survive_being_joined() -> None:
    digests = HASHER.digests(pack_tokens(range(12)))
    assert split_digests(join_digests(digests)) == digests
