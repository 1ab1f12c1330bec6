"""Every message of the data plane between a router and a replica's rank 0. See `codec.py` for how they travel.

    connection   Challenge -> Hello -> Welcome | Refused        (`handshake.py`)
    router  ->   Submit, Cancel, Touch, ResetCache, Resync, Ping
    replica ->   SnapshotChunk…, then one StepFrame a step; Rejected, CacheReset, Pong between them

Type numbers are never reused; fields are only appended, with a default. Deadlines are remaining seconds.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from protocol.codec import message
from protocol.events import GPU, KvEvent
from protocol.sampling import SamplingParams
from protocol.speeds import UNMEASURED, Speeds

PROTOCOL_VERSION = 1


class FinishReason(enum.Enum):
    STOP = "stop"  # end of sequence, stop id or stop string
    LENGTH = "length"
    ABORT = "abort"


@dataclass(frozen=True, slots=True)
class Identity:
    """What must be equal on both sides. None in a Hello: not known yet, adopt the replica's.

    `handshake.py` says what to do about each that is not.
    """

    model: str
    model_digest: str
    tokenizer_digest: str
    block_size: int | None = None
    hash_fingerprint: str | None = field(default=None, repr=False)
    hash_algorithm: str | None = None  # from here on None in a Welcome too: the replica is older
    template_digest: str | None = None


@message(1)
@dataclass(frozen=True, slots=True)
class Challenge:
    version: int
    nonce: bytes


@message(2)
@dataclass(frozen=True, slots=True)
class Hello:
    version: int
    nonce: bytes
    proof: bytes = field(repr=False)  # HMAC of the challenge's nonce under the cluster's key
    router_id: str
    identity: Identity


@message(3)
@dataclass(frozen=True, slots=True)
class Welcome:
    version: int
    proof: bytes = field(repr=False)  # HMAC of the Hello's nonce: the replica proves itself too
    replica_id: str
    incarnation: int
    identity: Identity
    max_model_len: int
    num_blocks: int


@message(4)
@dataclass(frozen=True, slots=True)
class Refused:
    code: str
    reason: str


@message(10)
@dataclass(frozen=True, slots=True)
class Submit:
    """One request with its `sampling.n` sequences. `generated` resumes a moved request: one entry a sequence.

    Its arrival is its touch: the cached blocks that it matches are reused last from then on.
    """

    request_id: str  # made by the router, unique in the cluster
    token_ids: bytes = field(repr=False)  # the prompt, packed int32
    sampling: SamplingParams  # seed always filled in, max_tokens too
    digests: bytes = field(default=b"", repr=False)  # of the prompt's full blocks
    isolation: bytes = b""  # block_hash.isolation_key
    generated: tuple[bytes, ...] = ()
    priority: int = 0  # lower is earlier
    deadline_s: float | None = None
    adapter: str | None = None
    finished: tuple[int, ...] = ()  # sequences that ended before a move: they do not run again
    tenant: bytes = b""  # between whom a replica is shared fairly: an opaque id, never a key
    weight: float = 1.0  # the tenant's share against others' of 1
    waited_s: float = 0.0  # its client has, for the next token: that counts for its turn here

    @property
    def num_live_sequences(self) -> int:
        return self.sampling.n - len(self.finished)


@message(11)
@dataclass(frozen=True, slots=True)
class Cancel:
    """Stop a request, or the one of its sequences that `index` names (a stop string has ended it)."""

    request_id: str
    index: int | None = None


@message(12)
@dataclass(frozen=True, slots=True)
class Touch:
    """Refresh the age of these cached blocks: a request that will hit them is on its way.

    Not needed with a `Submit`, whose arrival refreshes what it matches; for a router that holds a request back.
    """

    digests: bytes


@message(13)
@dataclass(frozen=True, slots=True)
class ResetCache:
    call_id: int


@message(14)
@dataclass(frozen=True, slots=True)
class Resync:
    """Asks for a new snapshot."""


@message(15)
@dataclass(frozen=True, slots=True)
class Ping:
    number: int


@message(20)
@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The drawn token's own logprob, and the most likely alternatives as (token id, logprob) pairs."""

    logprob: float
    rank: int  # 1: the most likely
    top: tuple[tuple[int, float], ...] = ()


@message(21)
@dataclass(frozen=True, slots=True)
class SequenceOutput:
    """What one step added to one sequence of a request.

    `row` announces it: from here on its plain tokens may come in `StepFrame`'s columns under this number, until that
    is announced for another sequence.
    """

    request_id: str
    index: int  # which of the request's n
    token_ids: tuple[int, ...]
    num_cached_tokens: int  # of the prompt, really reused
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None  # the stop id that ended it; None for end of sequence
    logprobs: tuple[TokenLogprob, ...] | None = None
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None  # of every prompt token but the first, sent once
    row: int | None = None


@dataclass(frozen=True, slots=True)
class CacheCounts:
    """What lookups in a prefix cache came to, in prompt tokens since its start. `queried` is the sum of the others."""

    queried: int = 0
    hit: int = 0
    below_block: int = 0  # missed: the tail that no full block holds, the last token always in it
    bypassed: int = 0  # missed: the request asked not to read the cache
    evicted: int = 0  # missed: was there not long ago
    absent: int = 0  # missed: never seen, or forgotten, or another tenant's

    def __add__(self, other: CacheCounts) -> CacheCounts:
        return CacheCounts(
            self.queried + other.queried,
            self.hit + other.hit,
            self.below_block + other.below_block,
            self.bypassed + other.bypassed,
            self.evicted + other.evicted,
            self.absent + other.absent,
        )


@message(22)
@dataclass(frozen=True, slots=True)
class Load:
    """A replica's state after a step. Counts are of now; speeds are learnt from its own steps."""

    num_running: int  # sequences
    num_waiting: int  # requests
    num_blocks: int
    num_used_blocks: int  # some sequence holds them
    num_cached_blocks: int  # free, but still hold a digest
    waiting_prefill_tokens: int  # uncached, of requests waiting or in prefill
    num_preemptions: int = 0
    prefill_s_per_token: float = 0.0  # of an average step; 0: not measured yet
    decode_step_s: float = 0.0  # of an average batch
    cache: CacheCounts = CacheCounts()  # first lookups: those of preempted sequences are not among them
    speeds: Speeds = UNMEASURED  # what the averages above leave out: length, and the batch's size
    prefill_utilization: float = 0.0  # share of the last minute, about, that went to prefill (`PrefillRate`)


@message(23)
@dataclass(frozen=True, slots=True)
class StepFrame:
    """All that one step means to one router. The events are everybody's, outputs and tokens this router's.

    Most sequences only gain one token a step: those come as two columns, `rows` and `tokens`, both packed int32, of
    sequences that an output has announced. `token_rows.py` turns them back into outputs.
    """

    step: int
    outputs: tuple[SequenceOutput, ...]
    events: tuple[KvEvent, ...]
    load: Load
    rows: bytes = b""
    tokens: bytes = b""
    num_submits: int | None = None  # of this connection's, those that the load contains; None: not told


@message(24)
@dataclass(frozen=True, slots=True)
class SnapshotChunk:
    """Part of the cache's whole content. The chunk with `last` closes it; it is true for `step`."""

    step: int
    digests: bytes
    last: bool
    medium: str = GPU


@message(25)
@dataclass(frozen=True, slots=True)
class Rejected:
    """A request that will not run: `code` names an error of `errors.py`."""

    request_id: str
    code: str
    reason: str
    param: str | None = None


@message(26)
@dataclass(frozen=True, slots=True)
class CacheReset:
    call_id: int
    blocks_in_use: int  # 0: done


@message(27)
@dataclass(frozen=True, slots=True)
class Pong:
    number: int


RouterMessage = Submit | Cancel | Touch | ResetCache | Resync | Ping
ReplicaMessage = StepFrame | SnapshotChunk | Rejected | CacheReset | Pong
