"""From a configuration to a running engine. Called by `worker.py` and by the offline `LLM`; imports torch."""

from __future__ import annotations

from protocol.block_hash import BlockHasher
from protocol.messages import Submit
from protocol.model_source import ModelSource
from protocol.sampling import SamplingParams
from protocol.tokens import pack_tokens
from workers.background_runner import BackgroundRunner
from workers.engine import Engine
from workers.engine_config import EngineConfig
from workers.model.cpu_runner import CpuRunner
from workers.model.runner_config import RunnerConfig
from workers.model.weights.fused_tensors import Progress
from workers.runner import Runner
from workers.scheduling.scheduler import SchedulerConfig
from workers.tensor_parallel import TensorParallelGroup

WARM_UP_REQUEST = "warm-up"


def build_runner(
    config: EngineConfig,
    source: ModelSource,
    group: TensorParallelGroup,
    on_progress: Progress | None = None,
) -> Runner:
    """This rank's share of the model, loaded, on the device that its group exchanges from.

    Raises UnsupportedModel, ModelNotFound, InvalidRequest.
    """
    device = group.device
    runner_config = RunnerConfig(
        directory=source.directory,
        dtype=config.dtype,
        quantization=config.quantization,
        kv_cache_dtype=config.kv_cache_dtype,
        block_size=config.block_size_on(device.type),
        max_model_len=config.max_model_len,
        kv_cache_memory_bytes=config.kv_cache_memory_bytes,
        gpu_memory_utilization=config.gpu_memory_utilization,
        enforce_eager=config.enforce_eager,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        deterministic=config.deterministic,
        load_format=config.load_format,
        seed=config.seed,
    )
    if device.type == "cpu":
        return CpuRunner(runner_config, group, on_progress)
    from workers.model.cuda.cuda_device import CudaDevice  # with its kernels it brings triton
    from workers.model.cuda_runner import CudaRunner

    return CudaRunner(runner_config, group, CudaDevice(device), on_progress)


def build_engine(config: EngineConfig, runner: Runner, hash_secret: bytes) -> Engine:
    scheduler_config = SchedulerConfig(
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        enable_prefix_caching=config.enable_prefix_caching,
    )
    if config.async_scheduling and runner.facts.max_in_flight == 1:
        runner = BackgroundRunner(runner)
    return Engine(runner, scheduler_config, BlockHasher(hash_secret, runner.facts.block_size))


def warm_up(engine: Engine) -> None:
    """Run one short request through every rank and forget it: what is not ready fails here, not in traffic."""
    prompt = pack_tokens([1] * min(8, engine.facts.max_model_len - 2))
    engine.submit(Submit(WARM_UP_REQUEST, prompt, SamplingParams(max_tokens=2, ignore_eos=True, seed=0)))
    while engine.has_work:
        engine.step()
    engine.reset_prefix_cache()
    engine.idle_report()  # its events are nobody's
