"""config.json and generation_config.json, read without transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from protocol.errors import ModelNotFound, UnsupportedModel
from workers.model.families import llama
from workers.model.families.registry import find_family
from workers.model.hf_config import HfConfig, read_config, read_eos_token_ids
from workers.model.model_spec import LinearScaling, Llama3Scaling, RotarySpec

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
    assert (spec.rotary, spec.norm_eps, spec.tied_embeddings) == (RotarySpec(10000.0), 1e-6, False)


def test_rotary_scaling_of_before_transformers_5_is_read() -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    rotary = llama.rotary(config(rope_theta=500000.0, rope_scaling=scaling))
    assert rotary == RotarySpec(500000.0, Llama3Scaling(32.0, 1.0, 4.0, 8192))


def test_the_oldest_name_of_a_scaling_type_is_read() -> None:
    rotary = llama.rotary(config(rope_scaling={"type": "linear", "factor": 4.0}))
    assert rotary == RotarySpec(10000.0, LinearScaling(4.0))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
            "'yarn' is not one of default, linear, llama3",
        ),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', and only 'silu' is known"),
        ({"vocab_size": "many"}, "vocab_size must be an integer, not 'many'"),
        ({"intermediate_size": None}, "it does not say intermediate_size"),
        ({"rope_scaling": 3}, "rope_scaling must be an object"),
    ],
)
def test_what_cannot_run_is_named(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        llama.spec(config(**changed))


def test_an_unknown_architecture_is_refused_with_those_known() -> None:
    with pytest.raises(UnsupportedModel, match="MambaForCausalLM; known are LlamaForCausalLM"):
        find_family(config(architectures=["MambaForCausalLM"]))


def test_quantized_weights_are_refused() -> None:
    with pytest.raises(UnsupportedModel, match="quantized"):
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
