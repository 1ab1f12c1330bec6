"""What config.json says of quantised weights: which are known, and what is said of the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from protocol.errors import UnsupportedModel
from tests.workers.model.fp8_models import CONFIGS, compressed
from workers.model.hf_config import HfConfig, read_config
from workers.model.weights.fp8_format import Fp8Format, read_fp8_format


def read(section: dict[str, Any] | None) -> Fp8Format | None:
    return read_fp8_format(HfConfig({"quantization_config": section}, "config.json"))


KV = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False}


@pytest.mark.parametrize(
    ("section", "expected"),
    (
        (None, None),
        (CONFIGS["channel"], Fp8Format()),
        (CONFIGS["tensor"], Fp8Format(fixed_inputs=True)),
        (CONFIGS["block"], Fp8Format(block=(32, 32))),
        (CONFIGS["fp8"], Fp8Format(fixed_inputs=True)),
        (CONFIGS["fp8 block"], Fp8Format(block=(32, 32))),
        ({"quant_method": "fp8"}, Fp8Format()),
        (CONFIGS["modelopt"], Fp8Format(fixed_inputs=True)),
        (CONFIGS["channel"] | {"kv_cache_scheme": KV}, Fp8Format(fp8_kv=True)),
    ),
)
def test_fp8_is_known_however_it_is_said(section: dict[str, Any] | None, expected: Fp8Format | None) -> None:
    assert read(section) == expected


@pytest.mark.parametrize(("algorithm", "expected"), (("FP8", Fp8Format(None, True, True)), (None, None)))
def test_what_modelopt_says_beside_config_json_is_read(
    algorithm: str | None, expected: Fp8Format | None, tmp_path: Path, edit_json: Any
) -> None:
    said = {"quant_algo": algorithm, "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]}
    edit_json(tmp_path / "config.json", architectures=["LlamaForCausalLM"])
    edit_json(tmp_path / "hf_quant_config.json", producer={"name": "modelopt"}, quantization=said)
    assert read_fp8_format(read_config(tmp_path)) == expected


def groups(**changed: Any) -> dict[str, Any]:
    """Two groups of modules, the second with other weights."""
    two = {"a": compressed("block", True, block_structure=[128, 128])["config_groups"]["group_0"]}
    two["b"] = two["a"] | {"weights": two["a"]["weights"] | changed}
    return CONFIGS["channel"] | {"config_groups": two}


W8A16 = {"config_groups": {"a": {"weights": {"num_bits": 8, "type": "float", "strategy": "channel"}}}}


@pytest.mark.parametrize(
    ("section", "message"),
    (
        ({"quant_method": "gptq", "bits": 4}, r"by gptq \(bits 4\); known are weights in fp8"),
        ({"quant_method": "awq", "bits": 4}, r"by awq \(bits 4\); "),
        ({"quant_method": "mxfp4"}, "by mxfp4; "),
        ({"quant_method": "fp8", "fmt": "e5m2"}, r"by fp8 \(fmt e5m2\); "),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, r"by modelopt \(quant_algo NVFP4\); "),
        ({"bits": 4}, r"by a method that it does not name \(bits 4\); "),
        (compressed("channel", True, type="int"), r"by compressed-tensors \(format float-quantized\); "),
        (compressed("tensor", True, num_bits=4), "by compressed-tensors "),
        (compressed("group", True), "by compressed-tensors "),
        (CONFIGS["channel"] | W8A16, "by compressed-tensors "),
        (CONFIGS["channel"] | {"config_groups": {}}, "by compressed-tensors "),
        (CONFIGS["channel"] | {"transform_config": {"config_groups": {"r3": {}}}}, "by compressed-tensors "),
        (
            CONFIGS["channel"] | {"sparsity_config": {"format": "sparse-24-bitmask"}},
            "by compressed-tensors ",
        ),
        (groups(num_bits=4), "by compressed-tensors "),
        (groups(block_structure=[64, 64]), "blocks of several sizes"),
        (
            {"quant_method": "fp8", "weight_block_size": [128]},
            "weight_block_size must be two numbers above 0",
        ),
    ),
)
def test_what_is_not_known_is_named_with_what_is(section: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        read(section)
