"""The offline library: `LLM(...).generate(...)` runs batches in this process, with no server, socket or Ray.

Users import it from `trunkline`. It owns one engine; two of them in one process do not disturb each other.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any

from tqdm import tqdm

from protocol.deployment_secrets import DeploymentSecrets
from protocol.errors import InvalidRequest
from protocol.messages import Load, Submit
from protocol.model_source import resolve_model
from protocol.sampling import SamplingParams
from protocol.token_rows import TokenRows
from protocol.tokens import pack_tokens
from router.text.tokenizer import Tokenizer
from trunkline.checks import check_kernels
from trunkline.collector import RequestCollector
from trunkline.interrupts import deferred_interrupts
from trunkline.outputs import RequestOutput
from trunkline.prompts import Prompt, TokenizedPrompt, tokenize_prompts
from trunkline.submissions import Submissions
from workers.engine_config import EngineConfig
from workers.local_ranks import LocalRanks

Message = Mapping[str, Any]
log = logging.getLogger(__name__)


class LLM:
    """A model ready to generate. Use it as a context manager, or call `shutdown()`.

    Raises ModelNotFound, UnsupportedModel and InvalidRequest with a sentence that says what to do.
    """

    def __init__(
        self,
        model: str = "sapling",
        *,
        enable_prefix_caching: bool = True,
        deterministic: bool = False,
        async_scheduling: bool = False,
        tensor_parallel_size: int = 1,
        device: str = "auto",
        enforce_eager: bool = False,
        dtype: str = "auto",
        quantization: str | None = None,
        kv_cache_dtype: str = "auto",
        max_model_len: int | None = None,
        gpu_memory_utilization: float = 0.9,
        kv_cache_memory_bytes: int | None = None,
        block_size: int | None = None,
        max_num_seqs: int = 64,
        max_num_batched_tokens: int = 2048,
        seed: int = 0,
        load_format: str = "auto",
        use_tqdm: bool = True,
    ) -> None:
        config = EngineConfig(
            model=model,
            tensor_parallel_size=tensor_parallel_size,
            device=device,
            enforce_eager=enforce_eager,
            dtype=dtype,
            quantization=quantization,
            kv_cache_dtype=kv_cache_dtype,
            max_model_len=max_model_len,
            block_size=block_size,
            kv_cache_memory_bytes=kv_cache_memory_bytes,
            gpu_memory_utilization=gpu_memory_utilization,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            enable_prefix_caching=enable_prefix_caching,
            deterministic=deterministic,
            async_scheduling=async_scheduling,
            load_format=load_format,
            seed=seed,
        )
        if (warning := check_kernels()) is not None:
            log.warning(warning)
        source = resolve_model(model)
        self.tokenizer = Tokenizer.from_directory(source.directory)
        with _LoadingBar(model, shown=use_tqdm) as bar:
            self._ranks = LocalRanks(config, source, DeploymentSecrets.generate(), bar.update)
        self._engine = self._ranks.engine
        facts = self._engine.facts
        self._submissions = Submissions(self.tokenizer, facts.max_model_len, facts.vocab_size, seed)
        self._names = map(str, itertools.count())
        self._rows = TokenRows()
        self._open = True

    @property
    def max_model_len(self) -> int:
        return self._engine.facts.max_model_len

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        *,
        priority: Sequence[int] | None = None,
    ) -> list[RequestOutput]:
        """Complete every prompt; results come in the order of the prompts.

        A prompt is a string, a list of token ids, or a mapping with `prompt` or `prompt_token_ids`. One
        SamplingParams serves all, or there is one for each. A lower priority is served earlier.
        """
        tokenized = tokenize_prompts(prompts, self.tokenizer)
        return self._run(tokenized, _each(sampling_params, len(tokenized)), priority, use_tqdm)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answer one conversation or several, rendered by the model's chat template."""
        if not messages:
            raise InvalidRequest("a conversation needs at least one message", param="messages")
        conversations: Sequence[Any] = [messages] if isinstance(messages[0], Mapping) else messages
        texts = [
            self.tokenizer.apply_chat_template(
                conversation,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                variables=chat_template_kwargs,
            )
            for conversation in conversations
        ]
        encoded = [self.tokenizer.encode(text, add_special_tokens=False) for text in texts]
        prompts = [
            replace(prompt, text=text)
            for prompt, text in zip(tokenize_prompts(encoded, self.tokenizer), texts, strict=True)
        ]
        return self._run(prompts, _each(sampling_params, len(prompts)), None, use_tqdm)

    def reset_prefix_cache(self) -> bool:
        """Forget every cached block; False when some are in use, and then nothing was forgotten."""
        return self._engine.reset_prefix_cache() == 0

    def get_metrics(self) -> Load:
        """Blocks used and cached, learnt speeds, preemptions: the replica's own view of itself."""
        return self._engine.load()

    def shutdown(self) -> None:
        """Free the pool, the weights and the other ranks' processes. May be called twice."""
        if self._open:
            self._open = False
            self._ranks.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()

    def _run(
        self,
        prompts: Sequence[TokenizedPrompt],
        sampling: Sequence[SamplingParams],
        priority: Sequence[int] | None,
        use_tqdm: bool,
    ) -> list[RequestOutput]:
        if not self._open:
            raise InvalidRequest("this LLM was shut down: make a new one")
        if priority is not None and len(priority) != len(prompts):
            raise InvalidRequest(
                f"{len(prompts)} prompts need as many priorities, not {len(priority)}", param="priority"
            )
        collectors: dict[str, RequestCollector] = {}
        try:
            for prompt, params, rank in zip(prompts, sampling, priority or [0] * len(prompts), strict=True):
                collector = self._submit(prompt, params, rank)
                collectors[collector.request_id] = collector
            self._finish(collectors, use_tqdm)
        finally:  # an error or Ctrl-C leaves nothing behind in the engine
            for request_id in collectors:
                self._engine.cancel(request_id)
        return [collector.result() for collector in collectors.values()]

    def _submit(self, prompt: TokenizedPrompt, sampling: SamplingParams, priority: int) -> RequestCollector:
        prompt, filled = self._submissions.prepare(prompt, sampling)
        request_id = next(self._names)
        self._engine.submit(Submit(request_id, pack_tokens(prompt.token_ids), filled, priority=priority))
        return RequestCollector(request_id, prompt.text, prompt.token_ids, filled, self.tokenizer)

    def _finish(self, collectors: Mapping[str, RequestCollector], use_tqdm: bool) -> None:
        with tqdm(total=len(collectors), desc="Requests", unit="req", disable=not use_tqdm) as bar:
            for request_id in self._finished(collectors):
                self._engine.cancel(request_id)
                bar.update()

    def _finished(self, collectors: Mapping[str, RequestCollector]) -> Iterator[str]:
        """Step until every request has ended; yields each as it ends."""
        ended: set[str] = set()
        while len(ended) < len(collectors):
            with deferred_interrupts():
                report = self._engine.step()
            for output in self._rows.expand(report.outputs, report.rows, report.tokens):
                collector = collectors[output.request_id]
                if collector.add(output):
                    self._engine.cancel(output.request_id, output.index)
                if collector.finished and output.request_id not in ended:
                    ended.add(output.request_id)
                    yield output.request_id


class _LoadingBar:
    """A progress bar that learns its length from the first update."""

    def __init__(self, model: str, shown: bool) -> None:
        self._bar = tqdm(desc=f"Loading {model}", unit="tensor", disable=not shown, leave=False)

    def __enter__(self) -> _LoadingBar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def update(self, done: int, total: int) -> None:
        self._bar.total = total
        self._bar.update(done - self._bar.n)


def _each(given: SamplingParams | Sequence[SamplingParams] | None, count: int) -> list[SamplingParams]:
    if given is None or isinstance(given, SamplingParams):
        return [given or SamplingParams()] * count
    if len(given) != count:
        raise InvalidRequest(
            f"{count} prompts need one SamplingParams or {count}, not {len(given)}", param="sampling_params"
        )
    return list(given)
