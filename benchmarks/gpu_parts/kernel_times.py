"""Single kernels against their floors, many calls in one graph; and attention held to its meaning."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from gpu_parts.ceilings import Ceilings
from gpu_parts.rows import Report, Row
from torch import Tensor

from kernels.attention_variant import AttentionVariant, QueryRow
from kernels.gpu.add_rms_norm import add_rms_norm
from kernels.gpu.kernel_table import GpuKernels, GpuSizes, gpu_kv_shape, select_gpu_kernels
from kernels.gpu.sampling.weights import SamplingRows
from kernels.naive_attention import attend_naively
from workers.model.cuda.device import Device, Replay

Call = Callable[[int], object]  # of the call's number within a graph

_CALLS = 8  # in a graph
_REPLAYS = 5
_ROTATED_BYTES = 240 << 20  # of weights, more than a cache holds
_TOLERANCE = 2e-2


@dataclass(frozen=True, slots=True)
class KernelScope:
    """Of an 8B Llama's layer, or a tiny one's."""

    dtype: torch.dtype = torch.bfloat16
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    hidden: int = 4096
    vocabulary: int = 128_256
    block_size: int = 64
    decodes: tuple[tuple[int, int], ...] = ((1, 32_768), (32, 4096), (256, 1024))  # rows, keys
    prefill: int = 8192
    draws: int = 256
    linears: tuple[tuple[str, int, int], ...] = (
        ("gate_up", 28_672, 4096),
        ("qkv", 6144, 4096),
        ("o", 4096, 4096),
        ("down", 4096, 14_336),
        ("lm_head", 128_256, 4096),
    )


class KernelBench:
    def __init__(self, device: Device, ceilings: Ceilings, scope: KernelScope, report: Report) -> None:
        self._device, self._ceilings, self._scope, self._report = device, ceilings, scope, report
        most_keys = max(scope.prefill, *(keys for _, keys in scope.decodes))
        sizes = GpuSizes(
            device=device.torch_device,
            dtype=scope.dtype,
            num_processors=device.num_processors,
            max_rows=256,
            max_keys=most_keys,
            num_heads=scope.heads,
            kv_heads=scope.kv_heads,
            head_dim=scope.head_dim,
            vocab_size=scope.vocabulary,
        )
        self._variant = AttentionVariant(scope.head_dim**-0.5)
        self._kernels: GpuKernels = select_gpu_kernels(sizes, [self._variant])

    def check_attention(self) -> None:
        """A row that decodes, a chunk, and a chunk behind others, the longer ones over several splits. Where nothing is
        written the output is NaN."""
        rows = [QueryRow(0, 1500, 1), QueryRow(1, 0, 17), QueryRow(2, 2100, 33)]
        with self._device.active(), torch.inference_mode():
            q, kv, tables = self._inputs(sum(row.num_queries for row in rows), 3, 2176)
            out = torch.full((len(q), q[0].numel()), torch.nan, dtype=q.dtype, device=q.device)
            attention = self._kernels.decoder.attentions[0]
            attention.run(q, kv, replace(attention.plan(rows, tables), out=out))
            self._device.mark().wait()
        meant = attend_naively(self._variant, q.cpu(), kv.cpu().transpose(1, 2), rows, tables.cpu().long())
        torch.testing.assert_close(out.float().cpu(), meant, rtol=_TOLERANCE, atol=_TOLERANCE)

    def run(self) -> None:
        with self._device.active(), torch.inference_mode():
            for rows, keys in self._scope.decodes:
                self._decode(rows, keys)
            self._prefill(self._scope.prefill)
            self._norm()
            self._draw()
            for name, outputs, features in self._scope.linears:
                self._linear(name, outputs, features)

    def _decode(self, rows: int, keys: int) -> None:
        scope, queries = self._scope, [QueryRow(row, keys - 1, 1) for row in range(rows)]
        floor_s = 2 * rows * keys * scope.kv_heads * scope.head_dim * 2 / self._ceilings.read_bytes_per_s
        target = 0.65 if rows == 1 else 0.85
        make = partial(self._attention, queries, keys)
        self._time(f"attention, decode {rows} x {keys}", make, floor_s, target)

    def _prefill(self, tokens: int) -> None:
        products = 4 * self._scope.heads * self._scope.head_dim * tokens * (tokens + 1) // 2
        name = f"attention, prefill {tokens}"
        make = partial(self._attention, [QueryRow(0, 0, tokens)], tokens)
        seconds = self._time(name, make, products / self._ceilings.flops, None)
        if seconds is not None:
            flops = products / seconds / 1e12
            self._report.add(
                Row(f"{name}, products", "TFLOP/s", flops, floor=self._ceilings.flops / 1e12, least=400)
            )

    def _attention(self, rows: list[QueryRow], keys: int) -> Call:
        q, kv, tables = self._inputs(sum(row.num_queries for row in rows), len(rows), keys)
        attention = self._kernels.decoder.attentions[0]
        plan = attention.plan(rows, tables)
        return lambda _: attention.run(q, kv, plan)

    def _inputs(self, tokens: int, rows: int, keys: int) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, a pool of random numbers, and block tables whose blocks lie anywhere in it."""
        scope, device = self._scope, self._device.torch_device
        num_blocks = -(-keys // scope.block_size)
        shape = gpu_kv_shape(rows * num_blocks + 1, scope.block_size, scope.kv_heads, scope.head_dim)
        order = torch.randperm(rows * num_blocks, device=device).to(torch.int32) + 1
        q, kv = self._random(tokens, scope.heads, scope.head_dim), self._random(*shape)
        return q, kv, order.view(rows, num_blocks)

    def _norm(self) -> None:
        tokens, hidden = self._scope.prefill, self._scope.hidden

        def make() -> Call:
            x, residual = (self._random(tokens, hidden) for _ in range(2))
            weight = torch.ones_like(x[0])
            return lambda _: add_rms_norm(x, residual, weight, 1e-5)

        floor_s = 4 * tokens * hidden * 2 / self._ceilings.copied_bytes_per_s
        self._time(f"add_rms_norm {tokens}", make, floor_s, 0.85)

    def _draw(self) -> None:
        rows, vocabulary, device = self._scope.draws, self._scope.vocabulary, self._device.torch_device

        def make() -> Call:
            logits = torch.randn(rows, vocabulary, device=device) * 2.0
            wishes = SamplingRows.empty(rows, device)
            wishes.temperature.fill_(0.8)
            wishes.top_p.fill_(0.95)
            wishes.seed.copy_(torch.from_numpy(np.arange(rows)))
            out = torch.empty(rows, dtype=torch.int64, device=device)
            return lambda _: self._kernels.draw.draw(logits, wishes, out)

        floor_s = 6 * rows * vocabulary * 4 / self._ceilings.read_bytes_per_s
        self._time(f"draw {rows}, top-p", make, floor_s, 1.0)

    def _linear(self, name: str, outputs: int, features: int) -> None:
        num_bytes = 2 * outputs * features
        num_weights = max(1, min(_CALLS, -(-_ROTATED_BYTES // num_bytes)))

        def make() -> Call:
            weights = [self._random(outputs, features) for _ in range(num_weights)]
            x = self._random(1, features)
            return lambda call: F.linear(x, weights[call % num_weights])

        self._time(f"one row, {name}", make, num_bytes / self._ceilings.read_bytes_per_s, 0.7)

    def _random(self, *shape: int) -> Tensor:
        return torch.randn(shape, dtype=self._scope.dtype, device=self._device.torch_device)

    def _time(
        self, name: str, make: Callable[[], Call], floor_s: float, target: float | None
    ) -> float | None:
        """What fails in making the call is this row's failure alone."""

        def prepare() -> tuple[Call, Replay]:
            call = make()
            return call, self._device.capture(lambda: _repeat(call))

        prepared = self._report.attempt(name, prepare)
        if prepared is None:
            return None
        _call, replay = prepared  # whose tensors the graph reads

        def seconds() -> float:
            self._device.mark().wait()
            begun_s = time.perf_counter()
            for _ in range(_REPLAYS):
                replay()
            self._device.mark().wait()
            return (time.perf_counter() - begun_s) / (_REPLAYS * _CALLS)

        return self._report.time(name, seconds, floor_s, target)


def _repeat(call: Call) -> None:
    for number in range(_CALLS):
        call(number)
