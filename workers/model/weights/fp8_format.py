"""What config.json's `quantization_config` says of weights that are stored in fp8. Read where a model is described, and
before anything is started, so torch-free; which tensors are fp8, and their scales, the files themselves say.

compressed-tensors    as llm-compressor writes it: `FP8_DYNAMIC` a scale per output channel, `FP8` one per tensor,
                      `FP8_BLOCK` one per block
fp8                   as transformers, DeepSeek and Qwen do: one per block of `weight_block_size`, or one per tensor
modelopt              with `quant_algo` FP8, here or in hf_quant_config.json: one per tensor
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from workers.model.hf_config import HfConfig

_KNOWN = (
    "known are weights in fp8 (e4m3) with scales per channel, tensor or block, by compressed-tensors, fp8 or modelopt;"
    " or use a checkpoint in bfloat16, float16 or float32"
)
_STRATEGIES = ("tensor", "channel", "block")


@dataclass(frozen=True, slots=True)
class Fp8Format:
    block: tuple[int, int] | None = None  # [outputs, inputs] that share a scale, where weights have blocks
    fixed_inputs: bool = False  # it has a scale for all inputs of a layer, too
    fp8_kv: bool = False  # it says that keys and values are fp8


def read_fp8_format(config: HfConfig) -> Fp8Format | None:
    """`config`: the whole file's. None: its weights are not quantised. Raises UnsupportedModel for all but fp8."""
    section = config.section("quantization_config")
    if not section:
        return None
    method = section.text("quant_method", "a method that it does not name")
    fp8_kv = bool(section.section("kv_cache_scheme"))
    if method == "compressed-tensors" and _is_fp8(section):
        blocks = {_block(weights, "block_structure") for weights in _parts(section, "weights")} - {None}
        if len(blocks) > 1:
            raise section.unsupported("its weights have blocks of several sizes, and only one can be had")
        dynamic = all(inputs.flag("dynamic") for inputs in _parts(section, "input_activations"))
        return Fp8Format(next(iter(blocks), None), not dynamic, fp8_kv)
    if method == "fp8" and section.text("fmt", "e4m3") == "e4m3":
        static = section.text("activation_scheme", "dynamic") == "static"
        return Fp8Format(_block(section, "weight_block_size"), static, fp8_kv)
    if method == "modelopt" and section.text("quant_algo", "none named") == "FP8":
        return Fp8Format(None, True, fp8_kv or section.text("kv_cache_quant_algo", "none") == "FP8")
    raise section.unsupported(f"its weights are quantized by {' '.join(_said(section, method))}; {_KNOWN}")


def _is_fp8(section: HfConfig) -> bool:
    """Of compressed-tensors: what is multiplied is, and nothing is done besides."""
    weights, inputs = _parts(section, "weights"), _parts(section, "input_activations")
    return (
        bool(weights)
        and all(weight.text("strategy", "none") in _STRATEGIES for weight in weights)
        and all(
            numbers.text("type", "int") == "float" and numbers.integer("num_bits", 0) == 8
            for numbers in (*weights, *inputs)
        )
        and not section.section("transform_config")
        and section.section("sparsity_config").text("format", "dense") == "dense"
    )


def _parts(section: HfConfig, kind: str) -> list[HfConfig]:
    """Of each group of modules: what is said of its weights, or of its inputs."""
    groups = section.section("config_groups")
    return [groups.section(name).section(kind) for name in groups.values]


def _said(section: HfConfig, method: str) -> Iterator[str]:
    """The method, as closely as it is told."""
    yield method
    for name in ("format", "quant_algo", "fmt", "bits"):
        if name in section:
            yield f"({name} {section.values[name]})"


def _block(section: HfConfig, name: str) -> tuple[int, int] | None:
    sizes = section.integers(name)
    if sizes and (len(sizes) != 2 or min(sizes) < 1):
        raise section.unsupported(f"{name} must be two numbers above 0, not {list(sizes)}")
    return (sizes[0], sizes[1]) if sizes else None
