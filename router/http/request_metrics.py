"""What requests for one model experience at this endpoint: latencies, lengths, outcomes. Written by `generate.py`.

Every interval is taken from one process's monotonic clock. Buckets are those that dashboards made for vLLM expect.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from router.http.token_tally import TokenTally

_TTFT_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0),
    *(2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
_E2E_S = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0),
    *(60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
_LENGTHS = tuple(float(step * 10**power) for power in range(6) for step in (1, 2, 5))
_CHOICES = (1.0, 2.0, 5.0, 10.0, 20.0)


class RequestMetrics:
    """One per model, in the registry that it is given."""

    def __init__(self, registry: CollectorRegistry, model: str) -> None:
        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            made = Histogram(f"trunkline_{name}", text, ["model_name"], registry=registry, buckets=buckets)
            return made.labels(model)

        def counter(name: str, text: str) -> Counter:
            return Counter(f"trunkline_{name}", text, ["model_name"], registry=registry).labels(model)

        self.time_to_first_token = histogram(
            "time_to_first_token_seconds", "From the request's arrival to its first token.", _TTFT_S
        )
        self.e2e_latency = histogram(
            "e2e_request_latency_seconds", "From the request's arrival to its last token.", _E2E_S
        )
        self.prompt_lengths = histogram("request_prompt_tokens", "Prompt tokens of a request.", _LENGTHS)
        self.generation_lengths = histogram(
            "request_generation_tokens", "Generated tokens of a request.", _LENGTHS
        )
        self.choices = histogram("request_params_n", "The n that requests asked for.", _CHOICES)
        self.prompt_tokens = counter(
            "prompt_tokens", "Prompt tokens of requests that got a token or a score."
        )
        self.cached_tokens = counter("prefix_cache_hits", "Prompt tokens that were found in a cache.")
        self.queried_tokens = counter(
            "prefix_cache_queries", "Prompt tokens that were looked for in a cache."
        )
        self.tokens = TokenTally(model)
        registry.register(self.tokens)
        self.in_flight = Gauge(
            "trunkline_requests_in_flight", "Requests at this endpoint.", ["model_name"], registry=registry
        ).labels(model)
        self._success = Counter(
            "trunkline_request_success",
            "Sequences that ended, by how.",
            ["model_name", "finished_reason"],
            registry=registry,
        )
        self._model = model

    def ended(self, reason: str) -> None:
        """One sequence came to its end."""
        self._success.labels(self._model, reason).inc()


class RequestTiming:
    """One prompt's way through: told of every arrival of tokens, and of the end, whatever it is."""

    def __init__(self, metrics: RequestMetrics, num_prompt_tokens: int, num_choices: int, now: float) -> None:
        self._metrics = metrics
        self._num_prompt_tokens = num_prompt_tokens
        self._began = now
        self._last: list[float | None] = [None] * num_choices  # when each sequence got tokens
        self._num_tokens = 0
        self._num_open = num_choices
        self._prompt_counted = False

    def arrived(self) -> None:
        """Called once, first."""
        self._metrics.in_flight.inc()
        self._metrics.choices.observe(self._num_open)

    def tokens(self, index: int, count: int, num_cached_tokens: int, now: float) -> None:
        """`count` more tokens of one sequence."""
        if count == 0:
            return
        if self._num_tokens == 0:
            self._metrics.time_to_first_token.observe(now - self._began)
            self.computed(num_cached_tokens)
        self._num_tokens += count
        last = self._last[index]
        self._last[index] = now
        self._metrics.tokens.add(count, None if last is None else now - last)

    def computed(self, num_cached_tokens: int) -> None:
        """The prompt is done: with its first token, or without one where it was only to be scored."""
        if self._prompt_counted:
            return
        self._prompt_counted = True
        metrics = self._metrics
        metrics.prompt_lengths.observe(self._num_prompt_tokens)
        metrics.prompt_tokens.inc(self._num_prompt_tokens)
        metrics.queried_tokens.inc(self._num_prompt_tokens)
        metrics.cached_tokens.inc(num_cached_tokens)

    def finished(self, reason: str, now: float) -> None:
        """One sequence ended as it should."""
        self._metrics.ended(reason)
        self._num_open -= 1
        if self._num_open == 0:
            self._metrics.e2e_latency.observe(now - self._began)
            self._metrics.generation_lengths.observe(self._num_tokens)

    def left(self) -> None:
        """Called once, last: nobody waits for it any more. What has not finished was aborted."""
        self._metrics.in_flight.dec()
        for _ in range(self._num_open):
            self._metrics.ended("abort")
