"""Small tokenizers made on the spot, and a router's core in memory behind a real endpoint."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import tokenizers
from starlette.types import ASGIApp
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from protocol.errors import NoReplica
from protocol.membership import ReplicaState, ServedModel, WorkerInfo
from protocol.messages import CacheCounts, FinishReason, Load, SequenceOutput, TokenLogprob
from protocol.tokens import unpack_tokens
from router.http.api import create_app
from router.http.api_config import ApiConfig
from router.http.catalog import Catalog
from router.http.http_server import HttpServer
from router.prefixes.prefix_index import IndexState
from router.requests.routed_request import Decision, Reason, RoutedRequest
from router.router_status import ReplicaStatus, RouterCounters, RouterStatus
from router.routing.costs import CostTerms
from router.routing.explanation import Explanation
from router.text.tokenizer import Tokenizer

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
SAMPLE = ["hello world, how are you today?", "the quick brown fox jumps over the lazy dog", "größer 你好 🙂"]


def byte_level_backend() -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(SAMPLE, trainer)
    return backend


@pytest.fixture(scope="session")
def tokenizer_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE with a chat template, as a model directory has them."""
    directory = tmp_path_factory.mktemp("tiny")
    byte_level_backend().save(str(directory / "tokenizer.json"))
    config = {"eos_token": "<|end|>", "bos_token": None, "chat_template": CHAT_TEMPLATE}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


@pytest.fixture(scope="session")
def tokenizer(tokenizer_directory: Path) -> Tokenizer:
    return Tokenizer.from_directory(tokenizer_directory)


@pytest.fixture(scope="session")
def prefix_space_tokenizer() -> Tokenizer:
    """As sentencepiece models are: a space in front, bytes where the vocabulary lacks a character."""
    pieces = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", *"helowrd,."]
    merges = [("l", "l"), ("\u2581", "h"), ("\u2581", "w")]
    vocabulary = {piece: id for id, piece in enumerate([*pieces, *("".join(pair) for pair in merges)])}
    backend = tokenizers.Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["<s>"])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    return Tokenizer(backend, bos_token="<s>")


class FakeGeneration:
    """Says its scripted outputs; `gate` holds them back, `fails` ends it."""

    more_ready = False

    def __init__(self, request: RoutedRequest, script: Script) -> None:
        self.request = request
        self.decision = Decision("replica-1", script.cached, 0.0, Reason.PREFIX, script.cached + 16)
        self.replica = "replica-1"
        self._script = script
        self.stopped: list[int] = []

    def stop(self, index: int) -> None:
        self.stopped.append(index)

    async def __aiter__(self) -> AsyncIterator[SequenceOutput]:
        script, sampling = self._script, self.request.sampling
        if sampling.max_tokens == 0:
            for index in range(sampling.n):
                yield self._scored(SequenceOutput(self.request.request_id, index, (), 0, FinishReason.LENGTH))
        last = min(len(script.token_ids), sampling.max_tokens or 0) - 1
        for place, token_id in enumerate(script.token_ids[: last + 1]):
            if script.gate is not None and place == script.gate_at:
                await script.gate.wait()
            if script.fails is not None and place == script.fails_at:
                raise script.fails
            if not self.more_ready:
                await asyncio.sleep(0)
            self.more_ready = place < last and (place + 1) % script.together != 0
            for index in range(sampling.n):
                output = self._output(index, token_id, place == last)
                yield self._scored(output) if place == 0 else output

    def _output(self, index: int, token_id: int, last: bool) -> SequenceOutput:
        ended = token_id in self._script.eos
        reason = FinishReason.STOP if ended else FinishReason.LENGTH if last else None
        top = tuple((token_id + other, -1.0 - other) for other in range(self.request.sampling.logprobs or 0))
        logprobs = None if self.request.sampling.logprobs is None else (TokenLogprob(-1.0, 1, top),)
        return SequenceOutput(
            self.request.request_id, index, (token_id,), self._script.cached, reason, logprobs=logprobs
        )

    def _scored(self, output: SequenceOutput) -> SequenceOutput:
        """The prompt's token number k has logprob -k and rank 2; `scores` says it otherwise."""
        width = self.request.sampling.prompt_logprobs
        if width is None or output.index > 0:
            return output
        prompt = unpack_tokens(self.request.token_ids)
        scores = [
            TokenLogprob(
                -float(place), 2, tuple((token_id + 1 + other, -0.25 - other) for other in range(width))
            )
            for place, token_id in enumerate(prompt[1:], start=1)
        ]
        return replace(output, prompt_logprobs=tuple(self._script.scores or scores))


@dataclass(slots=True)
class Script:
    """What every request is answered with."""

    token_ids: list[int] = field(default_factory=list)
    eos: tuple[int, ...] = ()
    cached: int = 0
    together: int = 1  # tokens that come at once
    scores: list[TokenLogprob] | None = None  # of the prompt, where they are asked for
    gate: asyncio.Event | None = None
    gate_at: int = 0
    refuses: Exception | None = None
    fails: Exception | None = None
    fails_at: int = 0


class FakeRouter:
    """A router's core in memory, with one replica that follows the script."""

    def __init__(self) -> None:
        self.script = Script()
        self.ready = True
        self.draining = False
        self.num_accepting = 1
        self.max_model_len: int | None = 256
        self.counters = RouterCounters()
        self.blocks_in_use = 0
        self.requests: list[RoutedRequest] = []
        self.explained: list[RoutedRequest] = []
        self.num_open = 0
        self.generations: list[FakeGeneration] = []
        self.left = asyncio.Event()  # some request's context was left

    def says(self, tokenizer: Tokenizer, text: str, *, cached: int = 0) -> Script:
        """From now on every answer is this text."""
        token_ids = [*tokenizer.encode(text), *tokenizer.eos_token_ids]
        self.script = Script(token_ids, tokenizer.eos_token_ids, cached)
        return self.script

    @asynccontextmanager
    async def open(self, request: RoutedRequest) -> AsyncIterator[FakeGeneration]:
        if self.script.refuses is not None:
            raise self.script.refuses
        self.requests.append(request)
        self.num_open += 1
        try:
            self.generations.append(FakeGeneration(request, self.script))
            yield self.generations[-1]
        finally:
            self.num_open -= 1
            self.left.set()

    def explain(self, request: RoutedRequest) -> Explanation:
        self.explained.append(request)
        if not self.ready:
            raise NoReplica("no replica is ready")
        costs = (
            CostTerms("replica-1", 16, 0.5, 0.25, 2, 1.0, 0.0, 0.125),
            CostTerms("replica-2", 0, *[1.0] * 6),
        )
        indexes = {"replica-1": IndexState.SYNCED, "replica-2": IndexState.BLIND}
        decision = Decision("replica-1", 16, 1.875, Reason.PREFIX, 16)
        return Explanation(20, decision, costs, indexes, 1.5, 0.25, 0.5)

    async def reset_prefix_cache(self) -> int:
        return self.blocks_in_use

    def status(self) -> RouterStatus:
        cache = CacheCounts(queried=100, hit=64, below_block=4, evicted=32)
        load = Load(1, 2, 100, 40, 30, 0, num_preemptions=5, cache=cache)
        workers = (WorkerInfo(0, 4711, "node-a"),)
        replica = ReplicaStatus(
            *("replica-1", ReplicaState.READY, 3, True, IndexState.SYNCED, 70, 1, 0, load, workers, "")
        )
        return RouterStatus(
            *("router-0", "tiny", self.ready, self.draining, 16, self.max_model_len, 1, 0, (replica,))
        )


@pytest.fixture
def router() -> FakeRouter:
    return FakeRouter()


def one_model(router: FakeRouter, tokenizer: Tokenizer) -> Catalog:
    made = Catalog()
    made.add(ServedModel("tiny", "a/tiny", "tiny-1"), router, tokenizer)
    return made


@pytest.fixture
def catalog(router: FakeRouter, tokenizer: Tokenizer) -> Catalog:
    """One model, `tiny`."""
    return one_model(router, tokenizer)


@pytest.fixture
def app(catalog: Catalog) -> ASGIApp:
    return create_app(catalog, ApiConfig())


ServeFactory = Callable[..., Awaitable[str]]
DirectFactory = Callable[..., Awaitable[httpx2.AsyncClient]]


@pytest.fixture
async def serve(router: FakeRouter, tokenizer: Tokenizer) -> AsyncIterator[ServeFactory]:
    """Starts the endpoint on a real socket and gives its URL. `catalog`: unless of a `tiny` of its own; other keywords
    go to its configuration."""
    async with AsyncExitStack() as stack:

        async def start(**options: Any) -> str:
            catalog = options.pop("catalog", None) or one_model(router, tokenizer)
            app = create_app(catalog, ApiConfig(**options))
            server = await stack.enter_async_context(HttpServer(app, "127.0.0.1", 0, grace_s=1))
            return f"http://127.0.0.1:{server.port}"

        yield start


@pytest.fixture
async def url(serve: ServeFactory, catalog: Catalog) -> str:
    return await serve(catalog=catalog)


@pytest.fixture
async def client(url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    transport = httpx2.AsyncClient(verify=False)  # reading certificates would take longer than most tests
    async with openai.AsyncOpenAI(
        base_url=f"{url}/v1", api_key="none", max_retries=0, http_client=transport
    ) as made:
        yield made


@pytest.fixture
async def http(url: str) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=url, verify=False) as made:
        yield made


@pytest.fixture
async def direct(catalog: Catalog) -> AsyncIterator[DirectFactory]:
    """Calls the app without a socket, where many small requests are to be tried."""
    async with AsyncExitStack() as stack:

        async def start(**options: Any) -> httpx2.AsyncClient:
            app = create_app(catalog, ApiConfig(**options))
            transport = httpx2.ASGITransport(app)
            client = httpx2.AsyncClient(transport=transport, base_url="http://app", verify=False)
            return await stack.enter_async_context(client)

        yield start
