"""Gemma 2, and the text of Gemma 3: scaled embeddings, norms around both parts, full attention every few layers."""

from __future__ import annotations

from dataclasses import replace

from workers.model.families import llama
from workers.model.families.activations import activation
from workers.model.families.positions import context, rotary, rotary_of
from workers.model.families.windows import FULL, SLIDING, layer_kinds, with_window
from workers.model.hf_config import HfConfig
from workers.model.model_spec import (
    AttentionSpec,
    EmbeddingSpec,
    LayerSpec,
    MlpSpec,
    ModelSpec,
    NormSpec,
    ResidualOrder,
    RotarySpec,
    WeightNames,
)

_HEAD_DIM = 256
_GEMMA_2_POSITIONS, _GEMMA_3_POSITIONS = 8192, 131072


def gemma2_spec(config: HfConfig) -> ModelSpec:
    """Every second layer slides, the first one too."""
    kinds = _kinds(config, default_stride=2)
    positions = rotary(config, config.integer("head_dim", _HEAD_DIM), max_positions=_GEMMA_2_POSITIONS)
    base = _spec(config, kinds, {SLIDING: positions, FULL: positions}, _GEMMA_2_POSITIONS)
    softcap = _softcap(config, "attn_logit_softcapping", 50.0)
    return replace(
        base,
        attention=replace(base.attention, softcap=softcap),
        logits_softcap=_softcap(config, "final_logit_softcapping", 30.0),
    )


def gemma3_spec(config: HfConfig) -> ModelSpec:
    """Five layers that slide, one that does not; each kind has its own theta, and heads are normed."""
    kinds = _kinds(config, default_stride=config.integer("sliding_window_pattern", 6))
    base = _spec(config, kinds, _gemma3_rotaries(config), _GEMMA_3_POSITIONS)
    return replace(
        base,
        attention=replace(base.attention, head_norm=base.norm),
        logits_softcap=_softcap(config, "final_logit_softcapping", None),
    )


def gemma2_names(config: HfConfig) -> WeightNames:
    return replace(
        llama.names(config),
        attention_post_norm="layers.{}.post_attention_layernorm",
        mlp_norm="layers.{}.pre_feedforward_layernorm",
        mlp_post_norm="layers.{}.post_feedforward_layernorm",
    )


def gemma3_names(config: HfConfig) -> WeightNames:
    return replace(
        gemma2_names(config), q_norm="layers.{}.self_attn.q_norm", k_norm="layers.{}.self_attn.k_norm"
    )


def _spec(
    config: HfConfig, kinds: tuple[str, ...], rotaries: dict[str, RotarySpec], max_positions: int
) -> ModelSpec:
    if config.flag("use_bidirectional_attention"):
        raise config.unsupported("its tokens see those behind them, so it generates no text")
    hidden_size, bias = config.integer("hidden_size"), config.flag("attention_bias")
    mlp = MlpSpec(
        features=config.integer("intermediate_size"),
        activation=activation(config, "hidden_activation", "gelu_pytorch_tanh"),
        gated=True,
    )
    longest, usual = context(rotaries[FULL], config.integer("max_position_embeddings", max_positions))
    return ModelSpec(
        vocab_size=config.integer("vocab_size"),
        hidden_size=hidden_size,
        num_heads=config.integer("num_attention_heads"),
        num_kv_heads=config.integer("num_key_value_heads", 4),
        head_dim=config.integer("head_dim", _HEAD_DIM),
        max_positions=longest,
        norm=NormSpec(config.number("rms_norm_eps", 1e-6), one_plus=True),
        layers=tuple(with_window(LayerSpec(mlp, rotaries[kind]), kind, config) for kind in kinds),
        attention=AttentionSpec(
            bias=bias, output_bias=bias, scale=config.number("query_pre_attn_scalar", 256.0) ** -0.5
        ),
        order=ResidualOrder.NORM_AROUND,
        embedding=EmbeddingSpec(scale=hidden_size**0.5),
        tied_embeddings=config.flag("tie_word_embeddings", True),
        default_positions=usual,
    )


def _kinds(config: HfConfig, default_stride: int) -> tuple[str, ...]:
    num_layers = config.integer("num_hidden_layers")
    return layer_kinds(config, num_layers, lambda index: bool((index + 1) % default_stride))


def _gemma3_rotaries(config: HfConfig) -> dict[str, RotarySpec]:
    """transformers 5 describes each kind by itself; before, `rope_scaling` was that of full attention alone."""
    described = config.section("rope_parameters")
    sections = {
        FULL: described.section(FULL) or config.section("rope_scaling"),
        SLIDING: described.section(SLIDING),
    }
    thetas = {
        FULL: config.number("rope_theta", 1e6),
        SLIDING: config.number("rope_local_base_freq", 10000.0),
    }
    head_dim = config.integer("head_dim", _HEAD_DIM)
    return {
        kind: rotary_of(
            config, section, head_dim, share=1.0, theta=thetas[kind], max_positions=_GEMMA_3_POSITIONS
        )
        for kind, section in sections.items()
    }


def _softcap(config: HfConfig, name: str, default: float | None) -> float | None:
    """An explicit null means that there is none."""
    return config.optional_number(name) if name in config.values else default
