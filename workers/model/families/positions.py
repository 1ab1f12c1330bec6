"""How config.json describes positions: rotary with its scalings, ALiBi's slopes, and how far a context may grow."""

from __future__ import annotations

import math

from workers.model.hf_config import HfConfig
from workers.model.model_spec import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongScaling,
    RotaryScaling,
    RotarySpec,
    YarnScaling,
)

_KINDS = "default, linear, dynamic, yarn, llama3, longrope"


def rotary(
    config: HfConfig, head_dim: int, *, share: float = 1.0, theta: float = 10000.0, max_positions: int = 2048
) -> RotarySpec:
    """`rope_parameters` is transformers 5's name; before, it was `rope_theta` beside `rope_scaling`. What the config
    does not say: the `share` of a head's dimensions that turn, `theta`, and `max_position_embeddings`."""
    section = config.section("rope_parameters") or config.section("rope_scaling")
    theta = config.number("rope_theta", theta)
    return rotary_of(config, section, head_dim, share=share, theta=theta, max_positions=max_positions)


def rotary_of(
    config: HfConfig, section: HfConfig, head_dim: int, *, share: float, theta: float, max_positions: int
) -> RotarySpec:
    """As `section` describes it, one of several that a config may have."""
    share = section.number("partial_rotary_factor", config.number("partial_rotary_factor", share))
    dims = int(head_dim * share)
    if dims % 2 or not dims:
        raise config.unsupported(f"{dims} of a head's {head_dim} dimensions turn, and only pairs can")
    return RotarySpec(
        theta=section.number("rope_theta", theta),
        scaling=_scaling(config, section, dims, config.integer("max_position_embeddings", max_positions)),
        dims=None if dims == head_dim else dims,
    )


def context(spec: RotarySpec, max_positions: int) -> tuple[int, int | None]:
    """ModelSpec's `max_positions` and `default_positions` for a config's `max_position_embeddings`."""
    scaling = spec.scaling
    if isinstance(scaling, LinearScaling | DynamicScaling):
        return int(max_positions * scaling.factor), max_positions
    if isinstance(scaling, YarnScaling):
        return max(max_positions, int(scaling.original_max_positions * scaling.factor)), None
    if isinstance(scaling, LongScaling):  # beyond the original context, short texts too are turned otherwise
        return max_positions, min(max_positions, scaling.original_max_positions)
    return max_positions, None


def alibi_slopes(num_heads: int, max_bias: float = 8.0) -> tuple[float, ...]:
    """2^(-max_bias · i / n) for the n = 2^k next above the number of heads; where that is not the number itself, every
    second one first, which are those of 2^(k-1) heads, and then as many of the others as are needed."""
    power = 1 << (num_heads - 1).bit_length()
    slopes = [2.0 ** (-max_bias * (index + 1) / power) for index in range(power)]
    if power != num_heads:
        slopes = [*slopes[1::2], *slopes[::2]]
    return tuple(slopes[:num_heads])


def _scaling(config: HfConfig, rope: HfConfig, dims: int, max_positions: int) -> RotaryScaling | None:
    kind = rope.text("rope_type", rope.text("type", "default"))
    original = config.integer(
        "original_max_position_embeddings", rope.integer("original_max_position_embeddings", max_positions)
    )
    if kind == "default":
        return None
    if kind == "linear":
        return LinearScaling(rope.number("factor"))
    if kind == "dynamic":
        return DynamicScaling(rope.number("factor"), max_positions)
    if kind == "llama3":
        return Llama3Scaling(
            rope.number("factor"), rope.number("low_freq_factor"), rope.number("high_freq_factor"), original
        )
    if kind == "yarn":
        return _yarn(rope, original, max_positions)
    if kind in ("longrope", "su"):
        return _longrope(rope, dims // 2, original, max_positions)
    raise config.unsupported(f"its rotary scaling {kind!r} is not one of {_KINDS}")


def _yarn(rope: HfConfig, original: int, max_positions: int) -> YarnScaling:
    factor = rope.number("factor", max_positions / original)

    def growth(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1.0 else 1.0

    weights = rope.number("mscale", 0.0), rope.number("mscale_all_dim", 0.0)
    return YarnScaling(
        factor=factor,
        original_max_positions=original,
        attention_factor=rope.number(
            "attention_factor", growth(weights[0]) / growth(weights[1]) if all(weights) else growth(1.0)
        ),
        beta_fast=rope.number("beta_fast", 0.0) or 32.0,
        beta_slow=rope.number("beta_slow", 0.0) or 1.0,
        truncated=rope.flag("truncate", True),
    )


def _longrope(rope: HfConfig, num_pairs: int, original: int, max_positions: int) -> LongScaling:
    factors = {name: rope.numbers(name) for name in ("short_factor", "long_factor")}
    for name, found in factors.items():
        if len(found) != num_pairs:
            raise rope.unsupported(f"its {name} has {len(found)} entries for {num_pairs} pairs of dimensions")
    factor = rope.number("factor", max_positions / original)
    growth = math.sqrt(1.0 + math.log(factor) / math.log(original)) if factor > 1.0 else 1.0
    return LongScaling(
        short_factors=factors["short_factor"],
        long_factors=factors["long_factor"],
        original_max_positions=original,
        attention_factor=rope.number("attention_factor", growth),
    )
