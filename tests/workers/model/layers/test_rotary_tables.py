"""Cosines and sines against transformers' frequencies, for every scaling, within the original context and beyond."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from workers.model.families.positions import rotary
from workers.model.hf_config import HfConfig
from workers.model.layers.rotary import rotary_table

HEAD_DIM, ORIGINAL = 16, 64
SHORT, LONG = [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 3.0},
    "yarn": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": ORIGINAL},
    "yarn_with_mscales": {
        "rope_type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": ORIGINAL,
        "beta_fast": 6.0,
        "beta_slow": 0.5,
        "mscale": 0.7,
        "mscale_all_dim": 1.3,
        "truncate": False,
    },
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": ORIGINAL,
    },
    "longrope": {
        "rope_type": "longrope",
        "short_factor": SHORT,
        "long_factor": LONG,
        "original_max_position_embeddings": ORIGINAL,
    },
}


def config(kind: str, share: float) -> dict[str, Any]:
    """The longest context is the original one but for longrope, whose growth is measured by both."""
    rope = {"rope_theta": 500.0, **SCALINGS[kind]}
    if kind == "longrope" and share < 1.0:
        rope |= {"short_factor": SHORT[:4], "long_factor": LONG[:4]}
    return {
        "hidden_size": 4 * HEAD_DIM,
        "num_attention_heads": 4,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": 4 * ORIGINAL if kind == "longrope" else ORIGINAL,
        "partial_rotary_factor": share,
        "rope_parameters": {**rope, "partial_rotary_factor": share},
    }


@pytest.mark.parametrize("num_positions", (ORIGINAL, 3 * ORIGINAL))
@pytest.mark.parametrize("share", (1.0, 0.5), ids=("whole", "half"))
@pytest.mark.parametrize("kind", SCALINGS)
def test_the_table_turns_as_transformers_would(kind: str, share: float, num_positions: int) -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    values = config(kind, share)
    reference = ROPE_INIT_FUNCTIONS[values["rope_parameters"]["rope_type"]]
    frequencies, growth = reference(LlamaConfig(**values), seq_len=num_positions)
    angles = torch.outer(torch.arange(num_positions).float(), frequencies)
    spec = rotary(HfConfig(values, "config.json"), HEAD_DIM)
    cos, sin = rotary_table(spec, HEAD_DIM, num_positions, torch.float32)[:, :, 0].unbind(1)
    half = len(frequencies)
    torch.testing.assert_close(cos, (angles.cos() * growth).repeat(1, 2), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sin[:, half:], angles.sin() * growth, rtol=1e-4, atol=1e-4)
    assert torch.equal(sin[:, :half], -sin[:, half:])


@pytest.mark.parametrize("kind", ("dynamic", "longrope"))
def test_only_a_context_beyond_the_original_one_turns_otherwise(kind: str) -> None:
    spec = rotary(HfConfig(config(kind, 1.0), "config.json"), HEAD_DIM)
    tables = [rotary_table(spec, HEAD_DIM, length, torch.float32) for length in (40, ORIGINAL, ORIGINAL + 1)]
    assert torch.equal(tables[0], tables[1][:40])
    assert not torch.allclose(tables[0], tables[2][:40])
