"""OPT, and Galactica, which is OPT without some of its parts. The 350m model normalizes after each part and projects
its smaller embeddings.
"""

from __future__ import annotations

from workers.model.families.activations import activation
from workers.model.families.heads import head_size
from workers.model.hf_config import HfConfig
from workers.model.model_spec import (
    AttentionSpec,
    EmbeddingSpec,
    LayerSpec,
    LearnedPositions,
    MlpSpec,
    ModelSpec,
    NormKind,
    NormSpec,
    ResidualOrder,
    WeightNames,
)

_OFFSET = 2  # rows of the table of positions that no position has


def spec(config: HfConfig) -> ModelSpec:
    hidden_size, num_heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    max_positions, size = config.integer("max_position_embeddings", 2048), embedding_size(config)
    norm_before, learned_norms = (
        config.flag(name, True) for name in ("do_layer_norm_before", "layer_norm_elementwise_affine")
    )
    bias = config.flag("enable_bias", True)
    mlp = MlpSpec(
        config.integer("ffn_dim"), activation(config, "activation_function", "relu"), gated=False, bias=bias
    )
    return ModelSpec(
        vocab_size=config.integer("vocab_size"),
        hidden_size=hidden_size,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=head_size(config, hidden_size, num_heads),
        max_positions=max_positions,
        norm=NormSpec(1e-5, NormKind.LAYER, weight=learned_norms, bias=learned_norms),
        layers=(LayerSpec(mlp),) * config.integer("num_hidden_layers"),
        attention=AttentionSpec(bias=bias, output_bias=bias),
        order=ResidualOrder.NORM_BEFORE if norm_before else ResidualOrder.NORM_AFTER,
        embedding=EmbeddingSpec(size=size, positions=LearnedPositions(max_positions + _OFFSET, _OFFSET)),
        final_norm=norm_before and not config.flag("_remove_final_layer_norm"),
        tied_embeddings=config.flag("tie_word_embeddings", True),
    )


def embedding_size(config: HfConfig) -> int | None:
    """None: the hidden size, with no projection."""
    hidden_size = config.integer("hidden_size")
    size = config.integer("word_embed_proj_dim", hidden_size)
    return None if size == hidden_size else size


def names(config: HfConfig) -> WeightNames:
    return WeightNames(
        embedding="decoder.embed_tokens",
        positions="decoder.embed_positions",
        project_in="decoder.project_in",
        attention_norm="decoder.layers.{}.self_attn_layer_norm",
        qkv=(
            "decoder.layers.{}.self_attn.q_proj",
            "decoder.layers.{}.self_attn.k_proj",
            "decoder.layers.{}.self_attn.v_proj",
        ),
        o="decoder.layers.{}.self_attn.out_proj",
        mlp_norm="decoder.layers.{}.final_layer_norm",
        gate_up=("decoder.layers.{}.fc1",),
        down="decoder.layers.{}.fc2",
        final_norm="decoder.final_layer_norm",
        project_out="decoder.project_out",
        lm_head="lm_head",
        prefix="model.",
    )
