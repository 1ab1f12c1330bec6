"""Loads one rank's weights as a process of its own and prints how much memory that took, as JSON, in bytes.

python load_memory.py DIRECTORY RANK RANKS DTYPE. Started by `test_load_memory.py`.
"""

from __future__ import annotations

import json
import math
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from kernels.dispatch import select_kernels
from kernels.experts import GroupedExperts
from kernels.linear import Linear
from kernels.quantize_fp8 import Weight
from workers.model.families.registry import find_family
from workers.model.hf_config import read_config
from workers.model.weights.checkpoint import open_checkpoint
from workers.model.weights.fp8_format import read_fp8_format
from workers.model.weights.fp8_pieces import SCALE_NAMES
from workers.model.weights.fused_tensors import Fp8Use
from workers.model.weights.load_weights import load_weights
from workers.model.weights.weight_layout import decoder_layout
from workers.model.weights.weight_piece import Piece
from workers.shard import Shard


class AnonymousMemory:
    """What this process holds besides mapped files, whose pages the system drops when it likes."""

    def __init__(self) -> None:
        self._page_bytes = os.sysconf("SC_PAGE_SIZE")
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.start_bytes = self.peak_bytes = self.now()

    def now(self) -> int:
        _, resident, of_files, *_ = Path("/proc/self/statm").read_text().split()
        return (int(resident) - int(of_files)) * self._page_bytes

    def look(self) -> None:
        self.peak_bytes = max(self.peak_bytes, self.now())

    def _watch(self) -> None:
        while not self._done.wait(0.0005):
            self.look()

    def __enter__(self) -> AnonymousMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def is_of_layer(piece: Piece) -> bool:
    return ".layers." in piece.name and len(piece.shape) == 2


def main(directory: str, rank: str, num_ranks: str, dtype_name: str) -> None:
    torch.set_num_threads(1)
    dtype: torch.dtype = getattr(torch, dtype_name)
    shard = Shard(int(rank), int(num_ranks))
    config = read_config(Path(directory))
    family = find_family(config)
    layout = decoder_layout(family.spec(config), family.names(config))
    stored = read_fp8_format(config)
    fp8 = Fp8Use(stored, None if stored is None else torch.float8_e4m3fn)
    if stored is not None:
        layout = replace(layout, ignored=(*layout.ignored, *SCALE_NAMES))
    kernels = select_kernels(
        dtype, block_size=16, token_elements=1, variants=(), fp8_weights=stored is not None
    )
    sizes = [
        math.prod(piece.part_shape(shard)) * (1 if stored and is_of_layer(piece) else dtype.itemsize)
        for piece in layout.pieces()
    ]
    with AnonymousMemory() as memory, torch.inference_mode():

        def watch(pack: Callable[..., Linear]) -> Callable[..., Linear]:
            def watched(weight: Weight, bias: Tensor | None) -> Linear:
                packed = pack(weight, bias)
                memory.look()  # the plain weight and the packed one are both there
                return packed

            return watched

        watched = replace(
            kernels,
            pack_linear=watch(kernels.pack_linear),
            pack_layer_linear=watch(kernels.pack_layer_linear),
            pack_experts=partial(GroupedExperts, pack=watch(kernels.pack_layer_linear)),
        )

        checkpoint = open_checkpoint(Path(directory), "auto", seed=0)
        weights = load_weights(checkpoint, layout, shard, dtype, watched, lambda *_: memory.look(), fp8=fp8)
        end_bytes = memory.now()
    assert weights.layers
    found = {
        "weights": sum(sizes),
        "largest": max(sizes),
        "peak": memory.peak_bytes - memory.start_bytes,
        "end": end_bytes - memory.start_bytes,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
