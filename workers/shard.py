"""Which part of the model is one rank's. Torch-free: a launch is checked where torch is not loaded."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shard:
    """Which part of everything that is divided among `size` ranks is this rank's."""

    rank: int = 0
    size: int = 1
