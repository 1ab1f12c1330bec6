"""What a completed step brought its sequences. Filled by `scheduler.py`, reported by the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from protocol.messages import SequenceOutput


@dataclass(slots=True)
class StepOutputs:
    """Whole outputs, and plain tokens of announced rows as two columns."""

    outputs: list[SequenceOutput] = field(default_factory=list)
    rows: Sequence[int] = ()
    tokens: Sequence[int] = ()
