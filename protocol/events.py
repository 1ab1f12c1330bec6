"""KV events: what a replica's cache gained and lost, in the order in which it happened.

They ride in the step's frame, so every router sees them in order with the tokens. `medium` names the tier.
"""

from __future__ import annotations

from dataclasses import dataclass

from protocol.codec import message

GPU = "gpu"  # the tier that the model computes on; host memory on a machine without a GPU


@message(40)
@dataclass(frozen=True, slots=True)
class Stored:
    """Blocks that can now be hit: a run of one chain, the first one's parent first."""

    digests: bytes  # 16 bytes each, joined
    parent: bytes | None  # digest before the first; None at a chain's head
    medium: str = GPU


@message(41)
@dataclass(frozen=True, slots=True)
class Removed:
    """Blocks whose last copy on the medium is gone."""

    digests: bytes
    medium: str = GPU


@message(42)
@dataclass(frozen=True, slots=True)
class Cleared:
    """Everything is gone, on every medium."""


KvEvent = Stored | Removed | Cleared
