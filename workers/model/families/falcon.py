"""Falcon in its two layouts: the old one (7B, RW) with one or all KV heads, the new one (40B, 180B, 2) with groups.

Positions are rotary or ALiBi's; attention and MLP run beside each other, with a norm each or one for both, or in turn.
"""

from __future__ import annotations

from workers.model.families.activations import activation
from workers.model.families.heads import head_size
from workers.model.families.positions import alibi_slopes, context, rotary
from workers.model.hf_config import HfConfig
from workers.model.model_spec import (
    AlibiSpec,
    AttentionSpec,
    LayerSpec,
    MlpSpec,
    ModelSpec,
    NormKind,
    NormSpec,
    QkvOrder,
    ResidualOrder,
    WeightNames,
)

_MAX_POSITIONS = 2048


def spec(config: HfConfig) -> ModelSpec:
    if config.flag("apply_residual_connection_post_layernorm"):
        raise config.unsupported(
            "its apply_residual_connection_post_layernorm asks for residuals behind the norms, and only those"
            " before them are known"
        )
    hidden_size, num_heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    bias = config.flag("bias")
    layer, longest, usual = _layer(config)
    return ModelSpec(
        vocab_size=config.integer("vocab_size"),
        hidden_size=hidden_size,
        num_heads=num_heads,
        num_kv_heads=_num_kv_heads(config),
        head_dim=head_size(config, hidden_size, num_heads),
        max_positions=longest,
        norm=NormSpec(config.number("layer_norm_epsilon", 1e-5), NormKind.LAYER, bias=True),
        layers=(layer,) * config.integer("num_hidden_layers"),
        attention=AttentionSpec(bias=bias, output_bias=bias),
        order=residual_order(config),
        tied_embeddings=config.flag("tie_word_embeddings", True),
        default_positions=usual,
    )


def residual_order(config: HfConfig) -> ResidualOrder:
    """Raises UnsupportedModel for combinations that no Falcon has and transformers cannot run either."""
    new, parallel = config.flag("new_decoder_architecture"), config.flag("parallel_attn", True)
    num_norms = config.integer("num_ln_in_parallel_attn", 2 if new else 1)
    if not parallel and not new:
        return ResidualOrder.NORM_BEFORE
    if parallel and num_norms == 1:
        return ResidualOrder.PARALLEL_ONE_NORM
    if parallel and num_norms == 2 and new:
        return ResidualOrder.PARALLEL
    raise config.unsupported(
        f"new_decoder_architecture {new}, parallel_attn {parallel} and num_ln_in_parallel_attn {num_norms} do not go"
        " together: the new architecture is parallel with 1 or 2 norms, the old one in sequence or parallel with 1"
    )


def names(config: HfConfig) -> WeightNames:
    two_norms = residual_order(config) is ResidualOrder.PARALLEL
    return WeightNames(
        embedding="word_embeddings",
        attention_norm="h.{}.ln_attn" if two_norms else "h.{}.input_layernorm",
        qkv=("h.{}.self_attention.query_key_value",),
        qkv_order=QkvOrder.PER_KV_HEAD,
        o="h.{}.self_attention.dense",
        mlp_norm="h.{}.ln_mlp" if two_norms else "h.{}.post_attention_layernorm",
        gate_up=("h.{}.mlp.dense_h_to_4h",),
        down="h.{}.mlp.dense_4h_to_h",
        final_norm="ln_f",
        lm_head="lm_head",
        prefix="transformer.",
        ignored=(".rotary_emb.inv_freq", ".maybe_rotary.inv_freq"),
    )


def _num_kv_heads(config: HfConfig) -> int:
    num_heads = config.integer("num_attention_heads")
    if config.flag("new_decoder_architecture"):
        return config.integer("num_kv_heads", num_heads)
    return 1 if config.flag("multi_query", True) else num_heads


def _layer(config: HfConfig) -> tuple[LayerSpec, int, int | None]:
    """Each of its layers, and ModelSpec's `max_positions` and `default_positions`."""
    hidden_size, num_heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    mlp = MlpSpec(
        features=config.integer("ffn_hidden_size", 4 * hidden_size),
        activation=activation(config, "activation", "gelu"),
        gated=False,
        bias=config.flag("bias"),
    )
    max_positions = config.integer("max_position_embeddings", _MAX_POSITIONS)
    if config.flag("alibi"):
        return LayerSpec(mlp, AlibiSpec(alibi_slopes(num_heads), in_bfloat16=True)), max_positions, None
    turned = rotary(config, head_size(config, hidden_size, num_heads), max_positions=_MAX_POSITIONS)
    return LayerSpec(mlp, turned), *context(turned, max_positions)
