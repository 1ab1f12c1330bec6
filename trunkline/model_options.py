"""The options of a model and its engine, shared by `trunkline serve` and `trunkline generate`."""

from __future__ import annotations

import argparse
from typing import Any


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """What `serve` and `generate` share. None means: the default, or what the configuration file says."""
    parser.add_argument("model_name", nargs="?", metavar="MODEL", help="a directory, a hub name, or sapling")
    engine = parser.add_argument_group("model and engine")
    engine.add_argument("--model", help="the same as MODEL (default: sapling)")
    engine.add_argument("--tensor-parallel-size", "-tp", type=int, metavar="N", help="workers of one replica")
    engine.add_argument("--device", help="auto (a GPU where there is one), cpu or cuda")
    engine.add_argument("--dtype", help="auto, float32, bfloat16 or float16")
    engine.add_argument(
        "--quantization", help="fp8: weights and what they are multiplied with (default: none)"
    )
    engine.add_argument("--kv-cache-dtype", help="auto (the model's) or fp8")
    engine.add_argument("--max-model-len", type=int, metavar="TOKENS", help="prompt and answer together")
    engine.add_argument("--block-size", type=int, metavar="TOKENS", help="of one block of KV")
    engine.add_argument("--kv-cache-memory-bytes", type=int, metavar="BYTES", help="of each worker's pool")
    engine.add_argument("--gpu-memory-utilization", type=float, metavar="SHARE", help="default: 0.9")
    engine.add_argument("--max-num-seqs", type=int, metavar="N", help="sequences running at once")
    engine.add_argument("--max-num-batched-tokens", type=int, metavar="TOKENS", help="token budget of a step")
    engine.add_argument(
        "--enable-prefix-caching",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="reuse the KV of equal prompt beginnings (default: yes)",
    )
    engine.add_argument(
        "--deterministic",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="the same outputs whatever the batch, chunks and cache hits, bit for bit (default: no)",
    )
    engine.add_argument(
        "--async-scheduling",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="plan a step while a CPU computes the one before (default: no)",
    )
    engine.add_argument(
        "--enforce-eager",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="launch a GPU's kernels one by one instead of replaying graphs (default: no)",
    )
    engine.add_argument("--seed", type=int, metavar="N", help="of dummy weights and unseeded sampling")
    engine.add_argument("--load-format", help="auto, safetensors or dummy")


ENGINE_OPTIONS = (
    "tensor_parallel_size",
    "device",
    "dtype",
    "quantization",
    "kv_cache_dtype",
    "max_model_len",
    "block_size",
    "kv_cache_memory_bytes",
    "gpu_memory_utilization",
    "max_num_seqs",
    "max_num_batched_tokens",
    "enable_prefix_caching",
    "deterministic",
    "async_scheduling",
    "enforce_eager",
    "seed",
    "load_format",
)


def model_options(options: argparse.Namespace) -> dict[str, Any]:
    """Those that were given, by the names that the configuration and `LLM` have for them."""
    given: dict[str, Any] = {name: getattr(options, name) for name in ENGINE_OPTIONS}
    given["model"] = options.model_name or options.model
    return {name: value for name, value in given.items() if value is not None}
