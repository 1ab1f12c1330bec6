"""How a request wants its tokens drawn: the names and ranges that users of vLLM and of OpenAI know.

Built by users (`trunkline.SamplingParams`) and by the router from a request's body; read by the sampler
(`workers/model/sampling/`), the scheduler (lengths, stop ids) and the detokenizer (text). Validated once, here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from protocol.errors import InvalidRequest

MAX_N = 128
MAX_LOGPROBS = 20
MAX_STOPS = 32
MAX_STOP_CHARACTERS = 512
MAX_BAD_WORDS = 128
REPETITION_PENALTIES = (0.01, 100.0)  # beyond, logits overflow and every token is as likely as any
GREEDY_BELOW = 1e-5  # a temperature under this is greedy


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Lists and dicts are accepted where tuples are annotated, and turned into them."""

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0 or -1: off
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int | None = 16  # None: the rest of the context
    min_tokens: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    allowed_token_ids: tuple[int, ...] = ()
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    bad_words: tuple[str, ...] = ()  # texts that must not be generated
    bad_word_ids: tuple[tuple[int, ...], ...] = ()  # the same as token ids: filled in where text is tokenized
    truncate_prompt_tokens: int | None = (
        None  # keep the prompt's last so many tokens; -1: what the context holds
    )
    detokenize: bool = True  # False: offline results carry token ids and no text
    truncation_side: str = "left"  # where `truncate_prompt_tokens` cuts; right: it keeps the first tokens

    def __post_init__(self) -> None:
        self._normalize()
        _check(1 <= self.n <= MAX_N, "n", f"n must be between 1 and {MAX_N}, not {self.n}")
        self._check_distribution()
        self._check_lengths()
        self._check_stops()
        self._check_words()

    @property
    def greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW

    def _normalize(self) -> None:
        """Lists to tuples, a lone stop string or bad word to a tuple, a bias dict to pairs."""
        given_bias: Any = self.logit_bias
        bias = given_bias.items() if isinstance(given_bias, dict) else given_bias or ()
        for name, value in (
            ("stop", _texts(self.stop)),
            ("logit_bias", tuple((int(token), float(value)) for token, value in bias)),
            ("stop_token_ids", tuple(self.stop_token_ids or ())),
            ("allowed_token_ids", tuple(self.allowed_token_ids or ())),
            ("bad_words", _texts(self.bad_words)),
            ("bad_word_ids", tuple(tuple(word) for word in self.bad_word_ids or ())),
            ("top_k", max(self.top_k, 0) if self.top_k == -1 else self.top_k),
        ):
            object.__setattr__(self, name, value)  # frozen for everyone else; this is still construction

    def _check_distribution(self) -> None:
        _check(
            math.isfinite(self.temperature) and 0.0 <= self.temperature <= 2.0,
            "temperature",
            f"temperature must be between 0 and 2, not {self.temperature}",
        )
        _check(0.0 < self.top_p <= 1.0, "top_p", f"top_p must be in (0, 1], not {self.top_p}")
        _check(self.top_k >= 0, "top_k", f"top_k must be 0 (off) or at least 1, not {self.top_k}")
        _check(0.0 <= self.min_p <= 1.0, "min_p", f"min_p must be in [0, 1], not {self.min_p}")
        for name in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            _check(-2.0 <= value <= 2.0, name, f"{name} must be in [-2, 2], not {value}")
        least, most = REPETITION_PENALTIES
        _check(
            least <= self.repetition_penalty <= most,
            "repetition_penalty",
            f"repetition_penalty must be between {least} and {most}, not {self.repetition_penalty}",
        )
        _check(
            all(math.isfinite(value) for _, value in self.logit_bias),
            "logit_bias",
            "logit_bias values must be finite numbers",
        )

    def _check_lengths(self) -> None:
        most = self.max_tokens
        _check(most is None or most >= 0, "max_tokens", f"max_tokens must be at least 0, not {most}")
        _check(
            self.min_tokens >= 0 and (most is None or self.min_tokens <= most),
            "min_tokens",
            f"min_tokens must be between 0 and max_tokens, not {self.min_tokens}",
        )
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            _check(
                value is None or 0 <= value <= MAX_LOGPROBS,
                name,
                f"{name} must be between 0 and {MAX_LOGPROBS}, not {value}",
            )
        _check(
            self.seed is None or -(2**63) <= self.seed < 2**63,
            "seed",
            "seed must fit a signed 64-bit integer",
        )

    def _check_words(self) -> None:
        _check(
            len(self.bad_words) <= MAX_BAD_WORDS,
            "bad_words",
            f"at most {MAX_BAD_WORDS} bad words are accepted",
        )
        _check(
            all(isinstance(word, str) and 0 < len(word) <= MAX_STOP_CHARACTERS for word in self.bad_words),
            "bad_words",
            f"each bad word needs 1 to {MAX_STOP_CHARACTERS} characters",
        )
        _check(all(self.bad_word_ids), "bad_words", "each bad word needs at least one token")
        kept = self.truncate_prompt_tokens
        _check(
            kept is None or kept == -1 or kept >= 1,
            "truncate_prompt_tokens",
            f"truncate_prompt_tokens must be -1 (the context's length) or at least 1, not {kept}",
        )
        side = self.truncation_side
        _check(
            side in ("left", "right"),
            "truncation_side",
            f"truncation_side must be left or right, not {side!r}",
        )
        _check(self.detokenize or not self.stop, "stop", "stop strings need text: leave detokenize on")

    def _check_stops(self) -> None:
        _check(len(self.stop) <= MAX_STOPS, "stop", f"at most {MAX_STOPS} stop strings are accepted")
        _check(
            all(isinstance(stop, str) and 0 < len(stop) <= MAX_STOP_CHARACTERS for stop in self.stop),
            "stop",
            f"each stop string needs 1 to {MAX_STOP_CHARACTERS} characters",
        )


def _texts(given: Any) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given or ())


def _check(holds: bool, param: str, message: str) -> None:
    if not holds:
        raise InvalidRequest(message, param=param)
