"""Opens the models that `gpu.py` asks: a runner with an engine over it, closed before the next one takes the memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from gpu_parts.ceilings import Ceilings
from gpu_parts.rows import Report
from gpu_parts.scopes import Scope

from protocol.block_hash import SECRET_BYTES
from protocol.model_source import ModelSource, resolve_model
from workers.engine import Engine
from workers.engine_builder import build_engine, build_runner
from workers.engine_config import EngineConfig
from workers.model.devices import choose_device
from workers.runner import Runner
from workers.tensor_parallel import TensorParallelGroup

_SECRET = b"h" * SECRET_BYTES


@dataclass(frozen=True, slots=True)
class Machine:
    """What every stage needs: where it runs, how much of it there is to do, and where its rows go."""

    device: torch.device
    scope: Scope
    ceilings: Ceilings
    directory: Path  # of the model
    report: Report


@dataclass(frozen=True, slots=True)
class Model:
    config: EngineConfig
    runner: Runner
    engine: Engine

    def engine_with(self, runner: Runner | None = None, **options: Any) -> Engine:
        """Another engine over the same runner, or over what watches it; for use while this one has no work, and not to
        be closed."""
        return build_engine(replace(self.config, **options), runner or self.runner, _SECRET)


@contextmanager
def open_model(machine: Machine, **options: Any) -> Iterator[Model]:
    """The scope's model, with noise for weights."""
    scope = machine.scope
    config = EngineConfig(
        model=str(machine.directory),
        device=machine.device.type,
        dtype=str(scope.dtype).removeprefix("torch."),
        max_model_len=max(scope.hit + 128, 4 * max(scope.lengths)),
        max_num_seqs=scope.max_num_seqs,
        max_num_batched_tokens=scope.max_num_batched_tokens,
        load_format="dummy",
    )
    with _opened(replace(config, **options), ModelSource("bench", machine.directory, "", "", "")) as model:
        yield model


@contextmanager
def open_small_model(device: str, **options: Any) -> Iterator[Model]:
    """The one that is built in."""
    config = EngineConfig(
        device=device, block_size=16, kv_cache_memory_bytes=64 << 20, max_num_seqs=4, **options
    )
    with _opened(config, resolve_model(config.model)) as model:
        yield model


@contextmanager
def _opened(config: EngineConfig, source: ModelSource) -> Iterator[Model]:
    group = TensorParallelGroup(device=choose_device(config.device, rank=0))
    runner = build_runner(config, source, group)
    engine = build_engine(config, runner, _SECRET)
    try:
        yield Model(config, runner, engine)
    finally:
        engine.close()
        if config.device == "cuda":
            torch.cuda.empty_cache()  # other processes may want it
