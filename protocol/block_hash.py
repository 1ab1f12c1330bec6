"""The one definition of a block's digest, shared by the router's index and the workers' pool.

    digest_0 = xxh3_128(root ‖ tokens as little-endian int32 ‖ extra, seed)
    digest_i = xxh3_128(digest_{i-1} ‖ tokens, seed)

`root` and `seed` come from the deployment's secret, so nobody outside can aim at a collision; `extra` (adapter,
cache salt) enters at the first block and reaches the others through the chain. xxHash is fast, not
collision-resistant: a hit on the worker also compares token ids and parent (`workers/kv/prefix_cache.py`).
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgpack
import xxhash

from protocol.tokens import TOKEN_BYTES, pack_tokens

ALGORITHM = "xxh3_128 of parent, int32 tokens, isolation"  # another one needs another name
DIGEST_BYTES = 16
SEED_BYTES = 8
SECRET_BYTES = SEED_BYTES + DIGEST_BYTES
_CANARY_STEP = 715_827_881  # tokens of four bytes that all differ: a drift in byte order shows


@dataclass(frozen=True, slots=True)
class BlockHasher:
    """Digests of full blocks. `secret` is 24 bytes and never logged; `block_size` is in tokens."""

    secret: bytes = field(repr=False)
    block_size: int
    _seed: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        assert len(self.secret) == SECRET_BYTES, (
            f"the hash secret has {len(self.secret)} bytes, not {SECRET_BYTES}"
        )
        assert self.block_size > 0, "block_size must be positive"
        # Frozen for everyone else; this is still construction.
        object.__setattr__(self, "_seed", int.from_bytes(self.secret[:SEED_BYTES], "little"))

    def digests(self, tokens: bytes | memoryview, extra: bytes = b"") -> list[bytes]:
        """Digests of every full block of `tokens` (packed int32)."""
        found: list[bytes] = []
        self.extend(found, tokens, extra)
        return found

    def extend(self, digests: list[bytes], tokens: bytes | memoryview, extra: bytes = b"") -> None:
        """Append to `digests` those of the full blocks of `tokens` that it does not cover yet."""
        stride = self.block_size * TOKEN_BYTES
        seed = self._seed
        hash_block = xxhash.xxh3_128_digest
        data = memoryview(tokens)
        parent = digests[-1] if digests else self.secret[SEED_BYTES:]
        for end in range((len(digests) + 1) * stride, len(data) + 1, stride):
            block = parent + data[end - stride : end]
            parent = hash_block(block if digests else block + extra, seed)
            digests.append(parent)

    def next_digest(self, parent: bytes | None, tokens: bytes, extra: bytes = b"") -> bytes:
        """The digest of one full block after `parent` (None: the first block)."""
        assert len(tokens) == self.block_size * TOKEN_BYTES, "only full blocks are hashed"
        data = self.secret[SEED_BYTES:] + tokens + extra if parent is None else parent + tokens
        return xxhash.xxh3_128_digest(data, self._seed)

    @property
    def fingerprint(self) -> str:
        """Of a canary prompt's digests, with isolation and without: equal where every prompt's are equal.

        So it depends on all that a digest depends on (secret, block size, algorithm, byte order, how isolation
        enters and how the chain goes on) and on nothing else, and tells nothing about the secret. What changes a
        block's bits but not its digest, such as the dtype of the KV, has no place here while no KV leaves its replica.
        """
        tokens = pack_tokens(_CANARY_STEP * place % 2**31 for place in range(3 * self.block_size))
        canary = self.digests(tokens) + self.digests(tokens, isolation_key("adapter", "salt"))
        return hmac.new(self.secret, b"".join(canary), hashlib.sha256).hexdigest()


def isolation_key(adapter: str | None, salt: str | None) -> bytes:
    """The `extra` of a request's first block; empty when neither is given."""
    return b"" if adapter is None and salt is None else bytes(msgpack.packb([adapter, salt]))


def join_digests(digests: Sequence[bytes]) -> bytes:
    return b"".join(digests)


def split_digests(joined: bytes) -> list[bytes]:
    assert len(joined) % DIGEST_BYTES == 0, "joined digests are sixteen bytes each"
    return [joined[start : start + DIGEST_BYTES] for start in range(0, len(joined), DIGEST_BYTES)]
