"""First-token time cold and cached, and what the router adds over calling the engine directly.

    python benchmarks/serving.py [--url http://127.0.0.1:8000]

Without --url it starts `trunkline serve` with the built-in model itself. The direct figure is the same request through
an engine of the same kind inside this process, so the difference is HTTP, tokenizing, routing, the data plane and
detokenizing.
"""

from __future__ import annotations

import argparse
import statistics
import time
import uuid

from openai import OpenAI
from report import milliseconds, print_header
from system import running_system

from trunkline import LLM, SamplingParams

MODEL = "sapling"
PROMPT_TOKENS = 400
SEED = 0


class Prompts:
    """Prompts of a fixed length in tokens that share nothing from the first token on."""

    def __init__(self, llm: LLM) -> None:
        self._tokenizer = llm.tokenizer

    def fresh(self, num_tokens: int) -> list[int]:
        text = f"{uuid.UUID(int=time.time_ns())} is the number of a story. Once upon a time there was a fox. "
        ids = self._tokenizer.encode(text)
        while len(ids) < num_tokens:
            ids += self._tokenizer.encode(text)
        return ids[:num_tokens]


def first_token_over_http(client: OpenAI, prompt: list[int]) -> tuple[float, int]:
    """Seconds until the first streamed chunk, and the cached tokens."""
    started, first_s, cached = time.perf_counter(), 0.0, 0
    stream = client.completions.create(
        model=MODEL,
        prompt=prompt,
        max_tokens=2,
        temperature=0.0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True},
    )
    for chunk in stream:
        first_s = first_s or time.perf_counter() - started
        if chunk.usage is not None and chunk.usage.prompt_tokens_details is not None:
            cached = chunk.usage.prompt_tokens_details.cached_tokens or 0
    return first_s, cached


def whole_over_http(client: OpenAI, prompt: list[int]) -> float:
    started = time.perf_counter()
    client.completions.create(
        model=MODEL, prompt=prompt, max_tokens=1, temperature=0.0, extra_body={"ignore_eos": True}
    )
    return time.perf_counter() - started


def whole_directly(llm: LLM, prompt: list[int]) -> float:
    started = time.perf_counter()
    llm.generate(prompt, SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True), use_tqdm=False)
    return time.perf_counter() - started


def first_token_table(client: OpenAI, prompts: Prompts, rounds: int) -> None:
    cold, cached, hits = [], [], []
    for _ in range(rounds):
        prompt = prompts.fresh(PROMPT_TOKENS)
        cold.append(first_token_over_http(client, prompt)[0])
        seconds, hit = first_token_over_http(client, prompt)
        cached.append(seconds)
        hits.append(hit)
    print(f"| first token, {PROMPT_TOKENS}-token prompt | ms, median (p10 to p90) |\n|---|---|")
    print(f"| cold | {milliseconds(cold)} |")
    print(f"| cached ({min(hits)} of {PROMPT_TOKENS} tokens) | {milliseconds(cached)} |")
    print(f"| ratio cold / cached | {statistics.median(cold) / statistics.median(cached):.2f} |\n")


def added_latency_table(client: OpenAI, llm: LLM, prompts: Prompts, rounds: int) -> None:
    """The same 32 tokens every time: both sides find 16 of them in their cache and compute the rest."""
    prompt = prompts.fresh(32)
    for _ in range(10):
        whole_over_http(client, prompt), whole_directly(llm, prompt)
    pairs = [(whole_over_http(client, prompt), whole_directly(llm, prompt)) for _ in range(rounds)]
    over_http, directly = ([pair[side] for pair in pairs] for side in (0, 1))
    added = statistics.median(over_http) - statistics.median(directly)
    print("| one token, 32-token prompt | ms, median (p10 to p90) |\n|---|---|")
    print(f"| through client, router and replica | {milliseconds(over_http)} |")
    print(f"| engine called directly | {milliseconds(directly)} |")
    print(f"| added | {1e3 * added:.2f} |")
    ratio = statistics.median(over_http) / statistics.median(directly)
    print(f"| ratio | {ratio:.2f} |")


def measure(url: str, rounds: int) -> None:
    client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    with LLM(MODEL, use_tqdm=False, seed=SEED) as llm:
        prompts = Prompts(llm)
        first_token_table(client, prompts, rounds)
        added_latency_table(client, llm, prompts, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url")
    parser.add_argument("--rounds", type=int, default=40)
    arguments = parser.parse_args()
    print_header("Serving", model=MODEL, prompt_tokens=PROMPT_TOKENS, rounds=arguments.rounds, seed=SEED)
    if arguments.url is not None:
        measure(arguments.url, arguments.rounds)
        return
    with running_system() as system:
        measure(system.url, arguments.rounds)


if __name__ == "__main__":
    main()
