"""One tensor of a checkpoint and which stretches of it are a rank's. `weight_layout.py` makes pieces, `checkpoint.py`
reads them, `load_weights.py` puts them together. Knows nothing of models, and no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from workers.shard import Shard


@dataclass(frozen=True, slots=True)
class Units:
    """Stretches of equal width along a tensor's axis that go to ranks whole: heads, features, rows of a vocabulary."""

    starts: Sequence[int]  # of each unit along the axis, in the order in which we want them
    width: int = 1

    def share(self, shard: Shard) -> Sequence[int]:
        """The starts of this rank's units: neighbours in `starts`, as many for every rank but the last, which may get
        fewer. Where there are fewer units than ranks, as many ranks share each: the one that serves their queries."""
        total = len(self.starts)
        if total < shard.size:
            assert shard.size % total == 0, f"{total} units cannot be shared by {shard.size} ranks"
            only = shard.rank * total // shard.size
            return self.starts[only : only + 1]
        share = -(-total // shard.size)
        return self.starts[shard.rank * share : (shard.rank + 1) * share]

    def slices(self, shard: Shard) -> list[slice]:
        """This rank's units, neighbours joined."""
        share = self.share(shard)
        if isinstance(share, range) and share.step == self.width:
            return [slice(share[0], share[-1] + self.width)] if share else [slice(0, 0)]
        joined: list[slice] = []
        for start in share:
            if joined and joined[-1].stop == start:
                joined[-1] = slice(joined[-1].start, start + self.width)
            else:
                joined.append(slice(start, start + self.width))
        return joined


def stacked(num_units: int, width: int = 1, offset: int = 0) -> Units:
    """Units side by side from `offset` on."""
    return Units(range(offset, offset + num_units * width, width), width)


@dataclass(frozen=True, slots=True)
class Piece:
    """One tensor of the checkpoint.

    What `Checkpoint.read(piece, shard)` returns: the tensor's `parts(shard)` along `axis`, joined in their order (all
    of it where `axis` is None), and then, where `transposed`, its transpose. So it has `part_shape(shard)`.
    """

    name: str
    shape: tuple[int, ...]  # whole, as in the checkpoint: before any transpose
    axis: int | None = (
        None  # of `shape`; the parts lie along it. None: every rank has the tensor whole, as it is
    )
    units: tuple[
        Units, ...
    ] = ()  # what is divided along `axis`; several where one tensor holds several of our weights
    transposed: bool = False  # the checkpoint holds [inputs, outputs], and we want [outputs, inputs]
    mean: float = 0.0  # of dummy values

    def __post_init__(self) -> None:
        assert (self.axis is None) == (not self.units), f"{self.name}: an axis goes with units along it"
        assert not self.transposed or len(self.shape) == 2, f"{self.name}: only a matrix can be transposed"

    def parts(self, shard: Shard) -> tuple[slice, ...]:
        """This rank's stretches along `axis`, to be joined in this order: not always ascending, never overlapping."""
        assert self.axis is not None, f"{self.name} is not divided"
        return tuple(part for units in self.units for part in units.slices(shard))

    def part_shape(self, shard: Shard) -> tuple[int, ...]:
        """Of this rank's share, transposed where `transposed`."""
        shape = list(self.shape)
        if self.axis is not None:
            shape[self.axis] = sum(part.stop - part.start for part in self.parts(shard))
        return tuple(reversed(shape)) if self.transposed else tuple(shape)
