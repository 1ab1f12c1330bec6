"""`LLM` on a hub name in a process of its own, whose HF_HOME says where the hub's cache is.

python hub_generation.py MODEL PROMPT NUM_TOKENS. Started by `test_hub_cache.py`; prints token ids as JSON.
"""

from __future__ import annotations

import json
import sys

from trunkline import LLM, SamplingParams


def main(model: str, prompt: str, num_tokens: str) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=int(num_tokens), ignore_eos=True)
    with LLM(model, use_tqdm=False) as llm:
        (output,) = llm.generate(prompt, params, use_tqdm=False)
    print(json.dumps({"prompt": output.prompt_token_ids, "generated": list(output.outputs[0].token_ids)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
