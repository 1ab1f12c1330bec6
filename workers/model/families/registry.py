"""Which family an architecture's name in config.json belongs to. A new family is one file and one line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from workers.model.families import (
    falcon,
    gemma,
    gpt2,
    gpt_neox,
    llama,
    mistral,
    mixtral,
    mpt,
    opt,
    phi3,
    qwen2,
    qwen3,
    qwen3_moe,
)
from workers.model.hf_config import HfConfig
from workers.model.model_spec import ModelSpec, WeightNames
from workers.model.weights.fp8_format import read_fp8_format


@dataclass(frozen=True, slots=True)
class Family:
    spec: Callable[[HfConfig], ModelSpec]
    names: Callable[[HfConfig], WeightNames]


FAMILIES = {
    "FalconForCausalLM": Family(falcon.spec, falcon.names),
    "Gemma2ForCausalLM": Family(gemma.gemma2_spec, gemma.gemma2_names),
    "Gemma3ForCausalLM": Family(gemma.gemma3_spec, gemma.gemma3_names),
    "GPT2LMHeadModel": Family(gpt2.spec, gpt2.names),
    "GPTNeoXForCausalLM": Family(gpt_neox.spec, gpt_neox.names),
    "LlamaForCausalLM": Family(llama.spec, llama.names),
    "MistralForCausalLM": Family(mistral.spec, mistral.names),
    "MixtralForCausalLM": Family(mixtral.spec, mixtral.names),
    "MPTForCausalLM": Family(mpt.spec, mpt.names),  # as its makers call it
    "MptForCausalLM": Family(mpt.spec, mpt.names),  # as transformers does
    "OPTForCausalLM": Family(opt.spec, opt.names),
    "Phi3ForCausalLM": Family(phi3.spec, phi3.names),
    "Qwen2ForCausalLM": Family(qwen2.spec, qwen2.names),
    "Qwen3ForCausalLM": Family(qwen3.spec, qwen3.names),
    "Qwen3MoeForCausalLM": Family(qwen3_moe.spec, qwen3_moe.names),
}


def find_family(config: HfConfig) -> Family:
    """Raises UnsupportedModel with the architectures that are known, or the ways of storing weights."""
    family = FAMILIES.get(config.architecture)
    if family is None:
        known = ", ".join(sorted(FAMILIES))
        raise config.unsupported(f"its architecture is {config.architecture}; known are {known}")
    read_fp8_format(config)
    return family
