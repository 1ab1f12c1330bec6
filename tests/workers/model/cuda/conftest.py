"""The runner for GPUs on a CPU: over kernels that mean the same in plain torch, and the devices of `host_devices.py`.

The kernels write what they must and nothing else: what padding leaves behind is NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import activations, add_rms_norm, apply_deltas, edited_rows, experts, keep_newest, layer_norm
from kernels.argmax import argmax
from kernels.attention_variant import AttentionVariant, QueryRow
from kernels.counter_random import uniform
from kernels.cut import Cuts, cut
from kernels.dispatch import Kernels
from kernels.edited_rows import EditedRows
from kernels.fp8_linear import Fp8Packer
from kernels.linear import PlainLinear
from kernels.log_probabilities import log_probabilities
from kernels.naive_attention import attend_naively
from kernels.sample import draw
from tests.workers.model.cuda.host_devices import PlainDevice, StrictDevice
from workers.model.runner_config import RunnerConfig
from workers.tensor_parallel import TensorParallelGroup

if find_spec("triton") is None:
    collect_ignore_glob = ["test_*.py"]
else:
    from triton import knobs

    from kernels.gpu.kernel_table import GpuKernels, GpuSizes, make_planner
    from kernels.gpu.sampling.weights import SamplingRows
    from tests.kernels.gpu.checked_launches import LaunchChecker
    from workers.model.cuda_runner import CudaRunner


class PlainAttention:
    def __init__(self, variant: AttentionVariant) -> None:
        self._variant = variant

    def plan(self, rows: Sequence[QueryRow], block_tables: Tensor) -> Any:
        raise AssertionError("the runner plans for all attentions at once")

    def run(self, q: Tensor, kv: Tensor, plan: Any, kv_scales: Tensor | None = None) -> Tensor:
        if kv_scales is not None:
            kv = kv.float() * kv_scales[:, None, :, None, None]
        out = torch.full((len(q), q.shape[1] * q.shape[2]), torch.nan)
        for each in plan.launches:
            for row, token, count, _, start in each.tiles[:, : each.launch.num_tiles].T.tolist():
                if row >= 0:
                    part, rows = q[token : token + count], [QueryRow(row, start, count)]
                    out[token : token + count] = attend_naively(
                        self._variant, part, kv.transpose(1, 2), rows, plan.block_tables.long()
                    )
        return out


def kv_write(qkv: Tensor, kv: Tensor, slots: Tensor, *, scales: Tensor | None = None) -> None:
    kept, kv_heads, block_size = slots >= 0, kv.shape[2], kv.shape[3]
    blocks, offsets = slots[kept] // block_size, slots[kept] % block_size
    new = qkv[kept, -2 * kv_heads :]
    if kv.dtype.itemsize == 1:
        largest = torch.finfo(kv.dtype).max
        divided = new.float() if scales is None else new.float() / scales.view(-1, 1)
        new = divided.clamp(-largest, largest).to(kv.dtype).view(torch.uint8)
        kv = kv.view(torch.uint8)
    kv[0][blocks, :, offsets] = new[:, :kv_heads]
    kv[1][blocks, :, offsets] = new[:, kv_heads:]


def rope_kv_write(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    kv: Tensor,
    slots: Tensor,
    *,
    scales: Tensor | None = None,
    norm: Tensor | None = None,
    eps: float = 0.0,
) -> None:
    dims = cos.shape[2]
    if norm is not None:
        add_rms_norm.rms_norm_heads(qkv[:, : len(norm)], norm, eps)
    turned = qkv[:, : -kv.shape[2], :dims]
    turned.copy_(turned * cos + turned.roll(dims // 2, -1) * sin)
    kv_write(qkv, kv, slots, scales=scales)


def copy_blocks(kv: Tensor, sources: Tensor, destinations: Tensor) -> None:
    numbers = kv.view(torch.uint8)
    numbers[:, destinations] = numbers[:, sources]


class PlainDraw:
    def most_likely(self, logits: Tensor, out: Tensor) -> None:
        out.copy_(argmax(logits))

    def best_pairs(self, part: Tensor, first_id: int, out: Tensor) -> None:
        best = part.float().max(-1)
        keys = best.values.view(torch.int32).long()
        keys = torch.where(keys < 0, keys ^ 0x7FFFFFFF, keys)
        out.copy_((keys << 31) + 0x7FFFFFFF - (best.indices + first_id))

    def best_of_ranks(self, pairs: Tensor, out: Tensor) -> None:
        out.copy_(0x7FFFFFFF - (pairs.amax(0) & 0x7FFFFFFF))

    def draw(self, logits: Tensor, rows: SamplingRows, out: Tensor) -> None:
        size = len(logits)
        temperature = rows.temperature[:size, None]
        warm = torch.where(temperature > 0, temperature, 1.0)
        probabilities = torch.softmax(logits.float() / warm, -1)
        top_k = rows.top_k[:size, None].long()
        cut(
            probabilities,
            Cuts(rows.min_p[:size, None], top_k, max(int(top_k.max()), 1), rows.top_p[:size, None]),
        )
        drawn = draw(probabilities, uniform(rows.seed[:size], rows.position[:size].long()))
        out.copy_(torch.where(temperature[:, 0] > 0, drawn, argmax(logits)))

    def draw_edited(
        self,
        logits: Tensor,
        sampling: SamplingRows,
        rows: Tensor,
        edits: EditedRows,
        out: Tensor,
        scores: Tensor,
    ) -> None:
        edited = torch.full(logits.shape, torch.nan)
        edited_rows.edit_logits(logits, rows, sampling.position, edits, edited)
        edited_rows.forbid_words(edited, rows, edits)
        edited_rows.penalize(edited, rows, edits)
        self.draw(edited, sampling, out)
        edited_rows.remember_drawn(out, rows, edits)
        self.score(logits, out, edits.num_best(rows), scores)

    def score(self, logits: Tensor, token_ids: Tensor, num_best: Tensor, out: Tensor) -> None:
        log_probabilities(logits, token_ids, num_best, out)


def select_plain_kernels(sizes: GpuSizes, variants: Sequence[AttentionVariant]) -> GpuKernels:
    pack_layer: Any = PlainLinear if sizes.fp8_weights is None else Fp8Packer(sizes.deterministic).pack
    return GpuKernels(
        decoder=Kernels(
            attentions=tuple(map(PlainAttention, variants)),
            rope_kv_write=rope_kv_write,
            kv_write=kv_write,
            add_rms_norm=add_rms_norm.add_rms_norm,
            rms_norm=add_rms_norm.rms_norm,
            add_layer_norm=layer_norm.add_layer_norm,
            layer_norm=layer_norm.layer_norm,
            activations=activations.ACTIVATIONS,
            gated_activations=activations.GATED_ACTIVATIONS,
            choose_experts=experts.choose_experts,
            copy_blocks=copy_blocks,
            pack_linear=PlainLinear,
            pack_layer_linear=pack_layer,
            pack_experts=partial(experts.GroupedExperts, pack=pack_layer),
            pack_wide_experts=partial(experts.GroupedExperts, pack=PlainLinear),
        ),
        planner=make_planner(sizes),
        apply_deltas=apply_deltas.apply_deltas,
        keep_newest=keep_newest.keep_newest,
        draw=PlainDraw(),
    )


class Waiting:
    """A runner whose steps have run when they are launched, for the driver."""

    def __init__(self, runner: CudaRunner) -> None:
        self.runner = runner
        self.facts = runner.facts

    def launch(self, plan: Any) -> Any:
        return self.runner.launch(plan).wait()


OpenCudaRunner = Callable[..., "CudaRunner"]


@pytest.fixture(autouse=True)
def launch_checker(monkeypatch: pytest.MonkeyPatch) -> LaunchChecker:
    checker = LaunchChecker()
    if knobs.runtime.interpret:
        checker.patch(monkeypatch)
    return checker


@pytest.fixture
def open_cuda_runner(
    make_checkpoint: Callable[[str], Path], launch_checker: LaunchChecker
) -> Iterator[OpenCudaRunner]:
    """Like `open_runner`, over plain kernels if no others are given."""
    opened: list[CudaRunner] = []

    def open_one(
        directory: Path | str = "untied_llama3",
        *,
        device: PlainDevice | None = None,
        select_kernels: Any = select_plain_kernels,
        group: TensorParallelGroup | None = None,
        **config: Any,
    ) -> CudaRunner:
        path = make_checkpoint(directory) if isinstance(directory, str) else directory
        given = {
            "dtype": "float32",
            "block_size": 4,
            "max_num_seqs": 8,
            "max_num_batched_tokens": 64,
            "kv_cache_memory_bytes": 4 << 20,
            **config,
        }
        # The step that measures memory stores every token in one slot, which nobody reads.
        with launch_checker.forgiving_races():
            runner = CudaRunner(
                RunnerConfig(path, **given),
                group or TensorParallelGroup(),
                device or StrictDevice(),
                select_kernels=select_kernels,
            )
        opened.append(runner)
        return runner

    yield open_one
    for runner in opened:
        runner.close()


@pytest.fixture
def drive_cuda(drive: Any) -> Callable[..., Any]:
    return lambda runner: drive(Waiting(runner))


@pytest.fixture
def cpu_device() -> type[PlainDevice]:
    return PlainDevice


@pytest.fixture
def strict_device() -> type[StrictDevice]:
    return StrictDevice


@pytest.fixture
def plain_kernels() -> Callable[..., GpuKernels]:
    return select_plain_kernels


@pytest.fixture
def plain_draw() -> type[PlainDraw]:
    return PlainDraw
