"""What of the rows lies on the device from step to step, and how a plan's changes reach it: block tables by the blocks
that are new in them, and blocks that are copied within the pool. Called by `step_executor.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kernels.gpu.kernel_table import GpuKernels
from workers.model.cuda.step_upload import Section, StepUpload
from workers.model.step_batch import BlockTables
from workers.step_plan import StepPlan

DELTA_BYTES = 12  # of a new block
COPY_BYTES = 16  # of a copied one


@dataclass(frozen=True, slots=True)
class Changes:
    """Of one step, on their way."""

    deltas: Section | None  # [3, new blocks] int32: rows, columns, blocks
    copies: tuple[Section, Section] | None  # sources, destinations: [blocks] int64


class ResidentState:
    """The same tables as the host's, row by row. What lies behind a row's last block is of no meaning."""

    def __init__(self, tables: BlockTables, kernels: GpuKernels, device: torch.device) -> None:
        self._tables = tables
        self._kernels = kernels
        self.block_tables = torch.zeros(
            tables.array.shape, dtype=torch.int32, device=device
        )  # [rows, blocks]

    def put(self, upload: StepUpload, plan: StepPlan) -> Changes:
        """Behind the host's tables, which have the plan's new blocks already."""
        return Changes(self._put_deltas(upload, plan), _put_copies(upload, plan))

    def apply(self, upload: StepUpload, changes: Changes, pool: Sequence[Tensor]) -> None:
        if changes.deltas is not None:
            self._kernels.apply_deltas(self.block_tables, upload.on_device(changes.deltas))
        if changes.copies is not None:
            sources, destinations = map(upload.on_device, changes.copies)
            for kv in pool:
                self._kernels.decoder.copy_blocks(kv, sources, destinations)

    def _put_deltas(self, upload: StepUpload, plan: StepPlan) -> Section | None:
        num_blocks = sum(len(blocks) for _, blocks in plan.grown)
        if not num_blocks:
            return None
        section, deltas = upload.room((3, num_blocks), np.int32)
        begin = 0
        for row, blocks in plan.grown:
            end, length = begin + len(blocks), self._tables.length(row)
            deltas[0, begin:end] = row
            deltas[1, begin:end] = np.arange(length - len(blocks), length)
            deltas[2, begin:end] = blocks
            begin = end
        return section


def _put_copies(upload: StepUpload, plan: StepPlan) -> tuple[Section, Section] | None:
    """A section each, which begins where triton expects it: one kernel does for any number of blocks."""
    if not plan.copies:
        return None
    sources, destinations = np.array(plan.copies, np.int64).T
    return upload.put(sources), upload.put(destinations)
