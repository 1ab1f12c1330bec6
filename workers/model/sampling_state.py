"""What the sampler keeps of each row from its start to its end. Made from `RowStart`; read by `sampler.py`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from protocol.sampling import SamplingParams
from protocol.tokens import TOKEN_BYTES, unpack_tokens
from workers.step_plan import RowStart


@dataclass(frozen=True, slots=True)
class RowSampling:
    """Tensors are None where the request did not ask for them: most rows carry none."""

    sampling: SamplingParams
    seed: int  # as a signed 64-bit number
    num_prompt_tokens: int
    held_back: Tensor | None  # [n] int64, ids that may not come before min_tokens
    allowed: Tensor | None  # [n] int64, no other id may come
    biased: Tensor | None  # [n] int64, distinct
    bias: Tensor | None  # [n] fp32
    counts: Tensor | None  # [vocabulary] fp32, how often each id was generated; kept up by the sampler
    in_prompt: Tensor | None  # [vocabulary] bool

    @classmethod
    def start(cls, start: RowStart, vocab_size: int, eos_token_ids: tuple[int, ...]) -> RowSampling:
        sampling = start.sampling
        penalized = _penalizes(sampling)
        stops = (*sampling.stop_token_ids, *(() if sampling.ignore_eos else eos_token_ids))
        bias = {token: value for token, value in sampling.logit_bias if 0 <= token < vocab_size}
        return cls(
            sampling=sampling,
            seed=(start.seed + 2**63) % 2**64 - 2**63,
            num_prompt_tokens=len(start.prompt) // TOKEN_BYTES,
            held_back=_ids(stops, vocab_size) if sampling.min_tokens > 0 else None,
            allowed=_ids(sampling.allowed_token_ids, vocab_size),
            biased=_ids(bias, vocab_size),
            bias=torch.tensor(list(bias.values())) if bias else None,
            counts=_count(start.generated, vocab_size) if penalized else None,
            in_prompt=_count(start.prompt, vocab_size) > 0 if penalized else None,
        )

    @property
    def shapes_logits(self) -> bool:
        """Whether anything changes the logits before temperature and cuts."""
        return any(each is not None for each in (self.held_back, self.allowed, self.biased, self.counts))


def _penalizes(sampling: SamplingParams) -> bool:
    return bool(sampling.presence_penalty or sampling.frequency_penalty or sampling.repetition_penalty != 1.0)


def _ids(ids: Iterable[int], vocab_size: int) -> Tensor | None:
    """Ids beyond the vocabulary are dropped: admission refuses them, and no row may spoil the others' step."""
    known = [token for token in ids if 0 <= token < vocab_size]
    return torch.tensor(known) if known else None


def _count(tokens: bytes, vocab_size: int) -> Tensor:
    ids = torch.tensor(unpack_tokens(tokens), dtype=torch.int64)
    return torch.bincount(ids, minlength=vocab_size)[:vocab_size].float()
