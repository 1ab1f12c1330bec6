"""Lines of matrices on the device that the host writes now and then, by as few copies as have room for them.

Used by `device_sampler.py` for what rows wish when they start, which may be more than a step's upload holds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from workers.model.cuda.step_upload import Section, StepUpload
from workers.model.sampling.places import Numbers


@dataclass(frozen=True, slots=True)
class Lines:
    target: Tensor  # [lines, ...], on the device
    places: Numbers  # [n] int64, each once
    values: Numbers  # [n, ...], what those lines become

    @property
    def line_bytes(self) -> int:
        return 8 + self.values.nbytes // len(self.values)

    def split(self, length: int) -> tuple[Lines, Lines]:
        first, rest = slice(None, length), slice(length, None)
        return (
            Lines(self.target, self.places[first], self.values[first]),
            Lines(self.target, self.places[rest], self.values[rest]),
        )


def send_lines(upload: StepUpload, lines: Iterable[Lines]) -> None:
    """Between steps. The host waits only where it takes more than one copy."""
    left = [each for each in lines if len(each.places)]
    while left:
        upload.begin()
        sections, left = _put(upload, left)
        upload.send()
        for target, places, values in sections:
            target.index_copy_(0, upload.on_device(places), upload.on_device(values))


def _put(upload: StepUpload, lines: list[Lines]) -> tuple[list[tuple[Tensor, Section, Section]], list[Lines]]:
    """What there is room for, and what there is not."""
    put, left = [], list[Lines]()
    for each in lines:
        room = upload.left_bytes - 2 * Section.room_for(1)
        now, later = each.split(max(room // each.line_bytes, 0))
        if len(now.places):
            put.append((each.target, upload.put(now.places), upload.put(now.values)))
        if len(later.places):
            left.append(later)
    assert put, "the upload has no room for a single line"
    return put, left


def lines_of(target: Tensor, places: Iterable[Numbers], values: Iterable[Numbers]) -> list[Lines]:
    """None or one, of several rows'."""
    joined = list(places)
    return [Lines(target, np.concatenate(joined), np.concatenate(list(values)))] if joined else []
