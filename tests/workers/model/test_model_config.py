"""config.json and generation_config.json, read without transformers."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from protocol.errors import ModelNotFound, UnsupportedModel
from workers.model.families import gemma, llama, mistral, qwen2, qwen3_moe
from workers.model.families.positions import alibi_slopes, context, rotary
from workers.model.families.registry import find_family
from workers.model.hf_config import HfConfig, read_config, read_eos_token_ids
from workers.model.model_spec import (
    DynamicScaling,
    ExpertsSpec,
    LinearScaling,
    Llama3Scaling,
    LongScaling,
    RotarySpec,
    YarnScaling,
)

LLAMA_1 = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
}


def config(**values: Any) -> HfConfig:
    return HfConfig({**LLAMA_1, **values}, "config.json")


def test_an_old_config_gets_the_defaults_of_its_time() -> None:
    spec = llama.spec(config())
    assert (spec.num_kv_heads, spec.head_dim, spec.max_positions) == (32, 128, 2048)
    assert (spec.rotaries, spec.norm.eps, spec.tied_embeddings) == ((RotarySpec(10000.0),), 1e-6, False)


def test_rotary_scaling_of_before_transformers_5_is_read() -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    found = rotary(config(rope_theta=500000.0, rope_scaling=scaling), 128)
    assert found == RotarySpec(500000.0, Llama3Scaling(32.0, 1.0, 4.0, 8192))


def test_the_oldest_name_of_a_scaling_type_is_read() -> None:
    found = rotary(config(rope_scaling={"type": "linear", "factor": 4.0}), 128)
    assert found == RotarySpec(10000.0, LinearScaling(4.0))


def test_only_a_share_of_a_heads_dimensions_may_turn() -> None:
    assert rotary(config(partial_rotary_factor=0.25), 128).dims == 32
    with pytest.raises(UnsupportedModel, match="7 of a head's 28 dimensions turn, and only pairs can"):
        rotary(config(partial_rotary_factor=0.25), 28)


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        (None, (4096, None)),
        (LinearScaling(4.0), (16384, 4096)),
        (DynamicScaling(2.0, 4096), (8192, 4096)),
        (YarnScaling(4.0, 4096, 1.0), (16384, None)),
        (Llama3Scaling(8.0, 1.0, 4.0, 1024), (4096, None)),
        (LongScaling((1.0,), (2.0,), 1024, 1.0), (4096, 1024)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_scaling_says_how_far_a_context_may_grow_and_where_it_starts(scaling: Any, expected: Any) -> None:
    assert context(RotarySpec(10000.0, scaling), 4096) == expected


@pytest.mark.parametrize(("num_heads", "max_bias"), ((1, 8.0), (4, 8.0), (16, 4.0)))
def test_slopes_of_a_power_of_two_fall_by_a_constant_factor(num_heads: int, max_bias: float) -> None:
    slopes = alibi_slopes(num_heads, max_bias)
    assert slopes[-1] == 2.0**-max_bias
    ratios = [slope / following for slope, following in pairwise(slopes)]
    assert ratios == pytest.approx([2.0 ** (max_bias / num_heads)] * (num_heads - 1))


def test_other_numbers_of_heads_borrow_the_slopes_of_twice_as_many() -> None:
    assert alibi_slopes(6) == (*alibi_slopes(4), *alibi_slopes(8)[:3:2])


def test_a_window_that_is_null_is_none_and_one_that_is_not_there_is_mistrals_first() -> None:
    windows = [
        mistral.spec(config(**given)).layers[0].window
        for given in ({}, {"sliding_window": None}, {"sliding_window": 7})
    ]
    assert windows == [4096, None, 7]


def test_layer_types_go_before_a_familys_rule() -> None:
    sliding = {
        "use_sliding_window": True,
        "sliding_window": 8,
        "max_window_layers": 2,
        "num_hidden_layers": 3,
    }
    kinds = ["sliding_attention", "full_attention", "full_attention"]
    by_rule, by_layer = qwen2.spec(config(**sliding)), qwen2.spec(config(**sliding, layer_types=kinds))
    assert [layer.window for layer in by_rule.layers] == [None, None, 8]
    assert [layer.window for layer in by_layer.layers] == [8, None, None]


def test_a_gemma_3_of_before_transformers_5_has_a_rotation_for_either_kind_of_layer() -> None:
    spec = gemma.gemma3_spec(
        config(
            num_hidden_layers=6,
            sliding_window=512,
            hidden_activation="gelu_pytorch_tanh",
            rope_scaling={"rope_type": "linear", "factor": 8.0},
        )
    )
    assert spec.rotaries == (RotarySpec(10000.0), RotarySpec(1e6, LinearScaling(8.0)))
    assert [layer.window for layer in spec.layers] == [512] * 5 + [None]


def test_experts_stand_in_every_so_many_layers_but_those_excepted() -> None:
    spec = qwen3_moe.spec(
        config(num_hidden_layers=6, num_experts=4, decoder_sparse_step=2, mlp_only_layers=[3])
    )
    sparse = [index for index, layer in enumerate(spec.layers) if isinstance(layer.mlp, ExpertsSpec)]
    assert sparse == [1, 5]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"rope_scaling": {"rope_type": "spiral", "factor": 2.0}},
            "'spiral' is not one of default, linear, dynamic, yarn, llama3, longrope",
        ),
        (
            {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0] * 64, "long_factor": 2.0}},
            "long_factor must be a list, not 2.0",
        ),
        (
            {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}},
            "short_factor has 1 entries for 64 pairs of dimensions",
        ),
        ({"hidden_act": "crelu"}, "hidden_act is 'crelu', and known are silu, swish, gelu"),
        ({"vocab_size": "many"}, "vocab_size must be an integer, not 'many'"),
        ({"intermediate_size": None}, "it does not say intermediate_size"),
        ({"rope_scaling": 3}, "rope_scaling must be an object"),
    ],
)
def test_what_cannot_run_is_named(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        llama.spec(config(**changed))


def test_layer_types_that_nobody_knows_are_named() -> None:
    with pytest.raises(UnsupportedModel, match="layer_types must name sliding_attention or full_attention"):
        gemma.gemma2_spec(config(num_hidden_layers=1, layer_types=["chunked_attention"]))


def test_an_unknown_architecture_is_refused_with_those_known() -> None:
    with pytest.raises(
        UnsupportedModel, match=r"MambaForCausalLM; known are .*LlamaForCausalLM, .*MistralForCausalLM"
    ):
        find_family(config(architectures=["MambaForCausalLM"]))


def test_quantized_weights_are_refused() -> None:
    with pytest.raises(UnsupportedModel, match="quantized by gptq"):
        find_family(config(quantization_config={"quant_method": "gptq"}))


@pytest.mark.parametrize(
    ("generation", "own", "expected"),
    [([7, 8], 2, (7, 8)), (7, 2, (7,)), (None, 2, (2,)), (None, [2, 3], (2, 3)), (None, None, ())],
)
def test_end_of_sequence_ids_come_from_the_generation_config_first(
    generation: Any, own: Any, expected: tuple[int, ...], tmp_path: Path, edit_json: Callable[..., None]
) -> None:
    edit_json(tmp_path / "generation_config.json", eos_token_id=generation)
    assert read_eos_token_ids(tmp_path, config(eos_token_id=own)) == expected


def test_a_config_that_is_no_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UnsupportedModel, match=r"config\.json is not valid JSON"):
        read_config(tmp_path)


def test_a_directory_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"holds no config\.json"):
        read_config(tmp_path)
