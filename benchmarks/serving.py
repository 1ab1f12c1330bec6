"""First-token time cold and cached, and what the router adds over calling the engine directly.

    python benchmarks/serving.py [--url http://127.0.0.1:8000]

Without --url it starts `trunkline serve` with the built-in model itself. The direct figure is the same request through
an engine of the same kind inside this process, so the difference is HTTP, tokenizing, routing, the data plane and
detokenizing.
"""

from __future__ import annotations

import argparse
import http.client
import json
import socket
import statistics
import time
import uuid
from typing import Any
from urllib.parse import urlsplit

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


class Client:
    """One reused connection and nothing around it, so that what is measured is the server."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        assert address.hostname is not None, f"{url} has no host"
        self._connection = http.client.HTTPConnection(address.hostname, address.port, timeout=60)
        self._connection.connect()
        self._connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def first_token(self, prompt: list[int]) -> tuple[float, int]:
        """Seconds until the first streamed chunk, and the cached tokens."""
        started = time.perf_counter()
        response = self._post(prompt, max_tokens=2, stream=True, stream_options={"include_usage": True})
        response.readline()
        first_s = time.perf_counter() - started
        chunks = [line.removeprefix(b"data: ") for line in response.read().splitlines()]
        usage = [json.loads(chunk)["usage"] for chunk in chunks if b"cached_tokens" in chunk]
        return first_s, int(usage[-1]["prompt_tokens_details"]["cached_tokens"])

    def whole(self, prompt: list[int]) -> float:
        started = time.perf_counter()
        self._post(prompt, max_tokens=1).read()
        return time.perf_counter() - started

    def _post(self, prompt: list[int], **options: Any) -> http.client.HTTPResponse:
        body = {"model": MODEL, "prompt": prompt, "temperature": 0, "ignore_eos": True, **options}
        self._connection.request(
            "POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"}
        )
        response = self._connection.getresponse()
        assert response.status == 200, response.read()
        return response


def whole_directly(llm: LLM, prompt: list[int]) -> float:
    started = time.perf_counter()
    llm.generate(prompt, SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True), use_tqdm=False)
    return time.perf_counter() - started


def first_token_table(client: Client, prompts: Prompts, rounds: int) -> None:
    cold, cached, hits = [], [], []
    for _ in range(rounds):
        prompt = prompts.fresh(PROMPT_TOKENS)
        cold.append(client.first_token(prompt)[0])
        seconds, hit = client.first_token(prompt)
        cached.append(seconds)
        hits.append(hit)
    print(f"| first token, {PROMPT_TOKENS}-token prompt | ms, median (p10 to p90) |\n|---|---|")
    print(f"| cold | {milliseconds(cold)} |")
    print(f"| cached ({min(hits)} of {PROMPT_TOKENS} tokens) | {milliseconds(cached)} |")
    print(f"| ratio cold / cached | {statistics.median(cold) / statistics.median(cached):.2f} |\n")


def added_latency_table(client: Client, llm: LLM, prompts: Prompts, rounds: int) -> None:
    """The same 32 tokens every time: both sides find 16 of them in their cache and compute the rest."""
    prompt = prompts.fresh(32)
    for _ in range(10):
        client.whole(prompt), whole_directly(llm, prompt)
    pairs = [(client.whole(prompt), whole_directly(llm, prompt)) for _ in range(rounds)]
    over_http, directly = ([pair[side] for pair in pairs] for side in (0, 1))
    added = statistics.median(over_http) - statistics.median(directly)
    print("| one token, 32-token prompt | ms, median (p10 to p90) |\n|---|---|")
    print(f"| through client, router and replica | {milliseconds(over_http)} |")
    print(f"| engine called directly | {milliseconds(directly)} |")
    print(f"| added | {1e3 * added:.2f} |")
    ratio = statistics.median(over_http) / statistics.median(directly)
    print(f"| ratio | {ratio:.2f} |")


def measure(url: str, rounds: int) -> None:
    client = Client(url)
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
