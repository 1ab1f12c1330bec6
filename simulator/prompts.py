"""Token ids and digests for the blocks of a trace, which names contents but does not tell them.

Used by `exact.py`, whose schedulers want tokens, and by `exact_policy.py`. Turns digests back into the trace's blocks,
so that policies that know only these can be run over exact replicas.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from protocol.block_hash import SECRET_BYTES, BlockHasher, split_digests
from protocol.errors import InvalidRequest
from protocol.tokens import TOKEN_BYTES
from simulator.trace import TraceRequest

VOCABULARY = 2**31 - 1
_SECRET = bytes(SECRET_BYTES)  # nobody is to be kept out of a simulation


@dataclass(frozen=True, slots=True)
class Prompt:
    tokens: bytes  # packed int32
    digests: list[bytes]  # of its full blocks


def check_block_size(trace_block_tokens: int, block_size: int) -> None:
    """Raises InvalidRequest with a sentence."""
    if block_size < 1 or trace_block_tokens % block_size:
        raise InvalidRequest(
            f"--block-size must divide the trace's blocks of {trace_block_tokens} tokens, not {block_size}",
            param="--block-size",
        )


class Prompts:
    """Of one simulation. An id of the trace stands for `trace_block_tokens`, a replica's block has `block_size`."""

    def __init__(self, trace_block_tokens: int, block_size: int) -> None:
        check_block_size(trace_block_tokens, block_size)
        self.hasher = BlockHasher(_SECRET, block_size)
        self.trace_block_tokens = trace_block_tokens
        self._names: dict[bytes, int] = {}  # the last digest in a block of the trace -> that block
        self._newest: tuple[int, Prompt] | None = None  # router and replica ask for it in turn

    def of(self, request: TraceRequest) -> Prompt:
        if self._newest is None or self._newest[0] != request.index:
            tokens = self._tokens(request)
            prompt = Prompt(tokens, self.hasher.digests(tokens))
            self._name(request, prompt.digests)
            self._newest = request.index, prompt
        return self._newest[1]

    def trace_blocks(self, digests: bytes) -> Iterable[int]:
        """The blocks of the trace whose last digest is among these, joined ones: so much of a chain is there."""
        names = map(self._names.get, split_digests(digests))
        return [name for name in names if name is not None]

    def _tokens(self, request: TraceRequest) -> bytes:
        """A block of the trace is its id over and over: different ids differ in every token, and a chain tells places.

        Another trace block begins with another token, the same one always with the same.
        """
        ids = (block % VOCABULARY for block in request.blocks)
        tokens = b"".join(each.to_bytes(TOKEN_BYTES, "little") * self.trace_block_tokens for each in ids)
        return tokens[: TOKEN_BYTES * request.num_tokens]

    def _name(self, request: TraceRequest, digests: list[bytes]) -> None:
        """The last block of a prompt may be partial: it counts as there when all its full digests are."""
        size, length = self.hasher.block_size, self.trace_block_tokens
        for depth, block in enumerate(request.blocks):
            first, end = depth * length // size, min((depth + 1) * length, request.num_tokens) // size
            if end > first:
                self._names[digests[end - 1]] = block
