"""Requests that move between real engines, which run the built-in model in deterministic mode: no bit may change."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import httpx2
import pytest

from protocol.block_hash import BlockHasher
from protocol.deployment_secrets import DeploymentSecrets
from protocol.handshake import ReplicaFacts
from protocol.membership import ReplicaInfo, ReplicaState, ServedModel
from protocol.messages import Identity
from protocol.model_source import resolve_model
from protocol.sampling import SamplingParams
from protocol.tokens import pack_tokens
from router.http.api import create_app
from router.http.api_config import ApiConfig
from router.http.catalog import Catalog
from router.http.http_server import HttpServer
from router.requests.routed_request import RoutedRequest
from router.text.tokenizer import Tokenizer
from workers.engine_builder import build_engine, build_runner
from workers.engine_config import EngineConfig
from workers.runner import PendingStep, Runner, RunnerFacts
from workers.server import ReplicaServer
from workers.step_plan import StepPlan
from workers.tensor_parallel import TensorParallelGroup

Make = Callable[..., Awaitable[Any]]
SAPLING = resolve_model("sapling")
PROMPT = pack_tokens([(17 * place) % 200 + 5 for place in range(37)])
GREEDY = SamplingParams(
    temperature=0.0, max_tokens=12, ignore_eos=True, seed=0, logprobs=2, prompt_logprobs=1
)
DRAWN = SamplingParams(
    n=2,
    temperature=0.9,
    top_p=0.95,
    repetition_penalty=1.1,
    presence_penalty=0.5,
    frequency_penalty=0.2,
    min_tokens=10,
    max_tokens=12,
    logprobs=2,
    seed=11,
)
WISHES = {"greedy": GREEDY, "two drawn": DRAWN}


@dataclass
class MortalRunner:
    """The engine's end at its step number `dies_at`."""

    own: Runner
    dies_at: int | None
    num_steps: int = 0

    @property
    def facts(self) -> RunnerFacts:
        return self.own.facts

    def launch(self, plan: StepPlan) -> PendingStep:
        self.num_steps += 1
        if self.num_steps == self.dies_at:
            raise RuntimeError("the device is on fire")
        return self.own.launch(plan)

    def close(self) -> None:
        self.own.close()


@dataclass
class Replica:
    replica_id: str
    server: ReplicaServer

    def info(self) -> ReplicaInfo:
        return ReplicaInfo(self.replica_id, ReplicaState.READY, 1, "127.0.0.1", self.server.port)


@pytest.fixture
async def make_model_replica(secrets: DeploymentSecrets) -> AsyncIterator[Make]:
    servers: list[ReplicaServer] = []

    async def make(replica_id: str, dies_at: int | None = None, **options: Any) -> Replica:
        config = EngineConfig(
            **{"deterministic": True, "max_num_batched_tokens": 24, "max_num_seqs": 8, **options},
            kv_cache_memory_bytes=1 << 22,
        )
        runner = MortalRunner(build_runner(config, SAPLING, TensorParallelGroup()), dies_at)
        engine = build_engine(config, runner, secrets.hash_secret)
        hasher = BlockHasher(secrets.hash_secret, engine.facts.block_size)
        identity = Identity("model", "model-digest", "tokenizer-digest")
        identity = replace(identity, block_size=hasher.block_size, hash_fingerprint=hasher.fingerprint)
        facts = ReplicaFacts(replica_id, 1, identity, engine.facts.max_model_len, engine.facts.num_blocks)
        server = ReplicaServer(engine, secrets.hello_key, facts, "127.0.0.1")
        await server.__aenter__()
        servers.append(server)
        return Replica(replica_id, server)

    yield make
    for server in servers:
        await server.aclose()


async def outputs_of(router: Any, sampling: SamplingParams, later: Sequence[Replica] = ()) -> list[list[Any]]:
    """Each sequence's tokens with all that came with them, then the prompt's scores. `later`: known once it runs."""
    found: list[list[Any]] = [[] for _ in range(sampling.n)]
    scores = []
    async with router.open(RoutedRequest("request", PROMPT, sampling)) as generation:
        if later:
            await router.set_replicas([replica.info() for replica in later])
        async for output in generation:
            found[output.index].append((output.token_ids, output.logprobs, output.finish_reason))
            scores += [] if output.prompt_logprobs is None else [output.prompt_logprobs]
    return [*found, scores]


@pytest.mark.parametrize("wish", WISHES)
@pytest.mark.parametrize("ahead", [False, True], ids=["", "planned ahead"])
async def test_a_moved_request_gets_the_very_bits_of_an_unmoved_one(
    wish: str, ahead: bool, make_model_replica: Make, make_router: Make
) -> None:
    whole = await make_model_replica("whole")
    expected = await outputs_of(await make_router([whole]), WISHES[wish])
    assert [len(each) for each in expected[:-1]] == [12] * WISHES[wish].n
    for dies_at in (1, 3, 9):
        mortal = await make_model_replica("a", dies_at, async_scheduling=ahead)
        router = await make_router([mortal])
        assert await outputs_of(router, WISHES[wish], [mortal, whole]) == expected
        assert router.counters.moves == 1


async def test_without_determinism_what_was_sent_stays_and_the_rest_has_its_length(
    make_model_replica: Make, make_router: Make
) -> None:
    options = {"deterministic": False}
    whole, mortal = await make_model_replica("b", **options), await make_model_replica("a", 8, **options)
    alone, router = await make_router([whole]), await make_router([mortal])
    expected = await outputs_of(alone, DRAWN)
    moved = await outputs_of(router, DRAWN, [mortal, whole])
    assert router.counters.moves == 1
    for sequence, unmoved in zip(moved[:2], expected[:2], strict=True):
        assert [tokens for tokens, _, _ in sequence[:4]] == [tokens for tokens, _, _ in unmoved[:4]]
        assert 10 <= len(sequence) <= 12 and sequence[-1][2] is not None
        assert all(finish is None for _, _, finish in sequence[:-1])


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_sees_one_unbroken_answer(
    stream: bool, make_model_replica: Make, make_router: Make
) -> None:
    whole, mortal = await make_model_replica("b"), await make_model_replica("a", 9)
    tokenizer = Tokenizer.from_directory(SAPLING.directory)
    answers = []
    for router, later in ((await make_router([whole]), []), (await make_router([mortal]), [mortal, whole])):
        catalog = Catalog()
        catalog.add(ServedModel("model", "sapling", "1"), router, tokenizer)
        app = create_app(catalog, ApiConfig())
        async with HttpServer(app, "127.0.0.1", 0) as server:
            asking = asyncio.create_task(ask(f"http://127.0.0.1:{server.port}", stream))
            if later:
                await router.set_replicas([replica.info() for replica in later])
            answers.append(await asking)
    assert answers[0] == answers[1]
    assert [finish for _, finish in answers[0][:2]] == ["stop", "length"]
    assert router.counters.moves == 1


async def ask(url: str, stream: bool) -> list[Any]:
    """Texts, reasons and usage, as the client gets them."""
    body = {"model": "model", "prompt": "Once upon a time there was", "max_tokens": 16, "n": 2, "seed": 3}
    body |= {"stop": ["in a city"], "stream": stream} | (
        {"stream_options": {"include_usage": True}} if stream else {}
    )
    async with httpx2.AsyncClient(base_url=url, verify=False) as client:
        answer = await client.post("/v1/completions", json=body, timeout=60)
    assert answer.status_code == 200
    if not stream:
        return [[each["text"], each["finish_reason"]] for each in answer.json()["choices"]] + [
            answer.json()["usage"]
        ]
    found: list[Any] = [["", None], ["", None], None]
    for line in answer.text.splitlines():
        if line.startswith("data: {"):
            chunk = json.loads(line[6:])
            found[2] = chunk.get("usage") or found[2]
            for choice in chunk["choices"]:
                found[choice["index"]][0] += choice["text"]
                found[choice["index"]][1] = choice["finish_reason"]
    return found
