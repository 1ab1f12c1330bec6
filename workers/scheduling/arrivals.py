"""Turns a request into sequences, or refuses what this replica can never run. Called by `scheduler.py`."""

from __future__ import annotations

from array import array

from protocol.block_hash import split_digests
from protocol.errors import ContextLengthExceeded, InvalidRequest
from protocol.tokens import unpack_tokens
from workers.kv.kv_cache import KvCache
from workers.runner import RunnerFacts
from workers.scheduling.live_request import LiveRequest
from workers.scheduling.request import Request
from workers.scheduling.sequence import Lengths, Sequence


class Arrivals:
    __slots__ = ("_eos_ids", "_facts", "_kv", "_num_arrived")

    def __init__(self, facts: RunnerFacts, kv: KvCache) -> None:
        self._facts = facts
        self._kv = kv
        self._eos_ids = frozenset(facts.eos_token_ids)
        self._num_arrived = 0

    def open(self, request: Request, now_s: float) -> LiveRequest:
        """The request with its sequences, hashed. Raises InvalidRequest or ContextLengthExceeded."""
        self._check_sampling(request)
        prompt = self._checked(request.prompt)
        generated = [self._checked(tokens) for tokens in request.generated] or [array("i")]
        lengths = self._lengths(request, max(map(len, generated)))
        digests = self._digests(request)
        self._num_arrived += 1
        live = LiveRequest(request, self._num_arrived, now_s - request.waited_s)
        for index in request.live_indices:
            tokens = prompt + generated[index % len(generated)]
            table = self._kv.table(tokens, list(digests), request.isolation)
            if not digests:  # hashed here, for the first sequence: the others share the prompt's
                digests = table.digests[: len(prompt) // self._kv.block_size]
            live.sequences.append(Sequence(live, index, tokens, table, lengths, self._eos_ids))
        return live

    def _checked(self, packed: bytes) -> array[int]:
        tokens = unpack_tokens(packed)
        if tokens and not (min(tokens) >= 0 and max(tokens) < self._facts.vocab_size):
            raise InvalidRequest(
                f"token ids must be between 0 and {self._facts.vocab_size - 1}", param="prompt"
            )
        return tokens

    def _check_sampling(self, request: Request) -> None:
        sampling, vocab_size = request.sampling, self._facts.vocab_size
        biased = tuple(token for token, _ in sampling.logit_bias)
        for name, ids in (("logit_bias", biased), ("allowed_token_ids", sampling.allowed_token_ids)):
            if ids and not 0 <= min(ids) <= max(ids) < vocab_size:
                raise InvalidRequest(f"{name} takes token ids between 0 and {vocab_size - 1}", param=name)

    def _digests(self, request: Request) -> list[bytes]:
        digests = split_digests(request.digests)
        if len(digests) > request.num_prompt_tokens // self._kv.block_size:
            raise InvalidRequest("the request brought more block digests than its prompt has full blocks")
        return digests

    def _lengths(self, request: Request, num_generated: int) -> Lengths:
        """Where the sequences may end. They must fit the context, and one of them alone the pool."""
        prompt, wanted = request.num_prompt_tokens, request.sampling.max_tokens
        context = self._facts.max_model_len
        capacity = self._kv.pool.num_usable * self._kv.block_size
        longest = prompt + max(num_generated, 0 if wanted == 0 else 1)
        if longest > context:
            raise ContextLengthExceeded(
                f"the prompt has {prompt} tokens and at least {longest - prompt} must follow, but the model's"
                f" context is {context} tokens: shorten the prompt to {context - (longest - prompt)}",
                param="prompt",
            )
        most = min(context, capacity + 1 if wanted is None else prompt + wanted)
        num_kv_tokens = max(prompt + num_generated, most - 1)  # the last token drawn is never fed
        if num_kv_tokens > capacity:
            raise ContextLengthExceeded(
                f"the prompt has {prompt} tokens and with those to generate needs room for {num_kv_tokens},"
                f" but the KV pool holds {capacity}: shorten the prompt or lower max_tokens",
                param="max_tokens" if prompt <= capacity else "prompt",
            )
        return Lengths(prompt, prompt + request.sampling.min_tokens, most)
