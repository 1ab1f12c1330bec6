"""Tokens a second of transformers' own continuous batching: a process of its own, so that it has the GPU to itself.

python transformers_rate.py DIRECTORY REQUESTS PROMPT OUTPUT SEED        prints the rate as its last line
"""

from __future__ import annotations

import random
import subprocess
import sys

_TIMEOUT_S = 240


def transformers_rate(directory: str, requests: int, prompt: int, output: int, seed: int) -> float:
    """Raises where transformers is not there, fails, or takes too long."""
    numbers = map(str, (requests, prompt, output, seed))
    # Without this folder on its path, where `requests` is ours and not the library.
    command = [sys.executable, "-P", __file__, directory, *numbers]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr else "it said nothing")
    return float(done.stdout.split()[-1])


def main() -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    directory, (requests, prompt, output, seed) = sys.argv[1], map(int, sys.argv[2:])
    config = AutoConfig.from_pretrained(directory)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    chance = random.Random(seed)
    prompts = [chance.choices(range(3, config.vocab_size), k=prompt) for _ in range(requests)]
    for few in (4, requests):  # first a few, to warm up
        wanted = GenerationConfig(max_new_tokens=output, do_sample=False, eos_token_id=-1, pad_token_id=0)
        found = model.eval().generate_batch(prompts[:few], generation_config=wanted).values()
    seconds = max(each.lifespan[1] for each in found) - min(each.lifespan[0] for each in found)
    print(sum(len(each.generated_tokens) for each in found) / seconds)


if __name__ == "__main__":
    main()
