"""A request as the engine got it: token ids and wishes, checked as far as that needs no model.

Made from the router's `Submit`, or by the offline library; never changed afterwards. What happens to it is kept in
`live_request.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from protocol.block_hash import DIGEST_BYTES
from protocol.errors import InvalidRequest
from protocol.messages import Submit
from protocol.sampling import SamplingParams
from protocol.tokens import TOKEN_BYTES


@dataclass(frozen=True, slots=True)
class Request:
    request_id: str
    prompt: bytes = field(repr=False)  # packed int32
    sampling: SamplingParams  # a seed of None counts as 0
    digests: bytes = field(default=b"", repr=False)  # of the prompt's first full blocks, joined
    isolation: bytes = b""  # block_hash.isolation_key
    generated: tuple[bytes, ...] = ()  # of a request that moved here, one entry a sequence
    priority: int = 0  # lower is earlier
    adapter: str | None = None
    finished: tuple[int, ...] = ()  # sequences that ended before a move: they do not run again
    tenant: bytes = b""  # between whom this replica is shared fairly; an opaque id
    weight: float = 1.0  # the tenant's share against others' of 1
    waited_s: float = 0.0  # before it came here: at its router, or where it ran before

    def __post_init__(self) -> None:
        if not self.prompt:
            raise InvalidRequest("the prompt is empty: send at least one token", param="prompt")
        if any(len(tokens) % TOKEN_BYTES for tokens in (self.prompt, *self.generated)):
            raise InvalidRequest("token ids must be packed as four bytes each", param="prompt")
        if len(self.digests) % DIGEST_BYTES:
            raise InvalidRequest(f"block digests must have {DIGEST_BYTES} bytes each", param="prompt")
        if self.generated and len(self.generated) != self.sampling.n:
            raise InvalidRequest(
                f"a moved request with n={self.sampling.n} brought the tokens of {len(self.generated)} sequences",
                param="n",
            )
        if not 0.0 < self.weight < float("inf"):
            raise InvalidRequest(f"a tenant's weight must be above zero, not {self.weight}", param="weight")
        if len(self.live_indices) != self.sampling.n - len(self.finished) or not self.live_indices:
            raise InvalidRequest(
                "a request needs sequences that have not finished, each named once", param="n"
            )

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.prompt) // TOKEN_BYTES

    @property
    def live_indices(self) -> list[int]:
        return [index for index in range(self.sampling.n) if index not in self.finished]

    @classmethod
    def from_submit(cls, submit: Submit) -> Request:
        return cls(
            request_id=submit.request_id,
            prompt=submit.token_ids,
            sampling=submit.sampling,
            digests=submit.digests,
            isolation=submit.isolation,
            generated=submit.generated,
            priority=submit.priority,
            adapter=submit.adapter,
            finished=submit.finished,
            tenant=submit.tenant,
            weight=submit.weight,
            waited_s=submit.waited_s,
        )
