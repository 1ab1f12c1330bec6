"""How likely the tokens of prompts were, for requests that ask: scored on the device and read behind the step.

Called by `step_executor.py` with the prompt's chunks that `workers/model/sampling/prompt_scores.py` finds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kernels.log_probabilities import MAX_SCORED_TOKENS, NUM_SCORES
from protocol.messages import TokenLogprob
from workers.model.cuda.arrived_scores import SCORE_BYTES, read_scores
from workers.model.cuda.device import Device, Event
from workers.model.cuda.loading import LoadedModel
from workers.model.cuda.step_upload import Section, StepUpload
from workers.model.sampling.prompt_scores import ScoredChunk

SCORED_TOKEN_BYTES = 12  # of an upload


@dataclass(frozen=True, slots=True)
class ScoredPrompts:
    """Under way to the host."""

    arrived: Event
    scores: Tensor  # [tokens of all chunks, NUM_SCORES] int32, on the host; to be read behind `arrived`
    chunks: Sequence[ScoredChunk]
    widths: Sequence[int]  # alternatives that each chunk's tokens want

    def read(self) -> dict[int, tuple[TokenLogprob, ...]]:
        """By index of the plan's chunks. Waits."""
        self.arrived.wait()
        ends = np.cumsum([len(chunk.places) for chunk in self.chunks])
        parts = np.split(self.scores.numpy(), ends[:-1])
        return {
            chunk.index: tuple(read_scores(part, [width] * len(part)))
            for chunk, width, part in zip(self.chunks, self.widths, parts, strict=True)
        }


class PromptScoring:
    def __init__(self, device: Device, model: LoadedModel) -> None:
        self._device = device
        self._decoder = model.decoder
        self._draw = model.kernels.draw
        self._vocab_size = model.described.spec.vocab_size

    def put(self, upload: StepUpload, chunks: Sequence[ScoredChunk]) -> tuple[Section, Section] | None:
        """The tokens to score and how many alternatives each wants; None: there are none."""
        if not chunks:
            return None
        tokens = np.concatenate([chunk.next_tokens for chunk in chunks])
        num_best = [np.full(len(chunk.places), self._width(chunk), np.int32) for chunk in chunks]
        return upload.put(tokens), upload.put(np.concatenate(num_best))

    def score(
        self,
        hidden: Tensor,  # [tokens of all chunks, hidden]
        chunks: Sequence[ScoredChunk],
        sections: tuple[Section, Section],
        upload: StepUpload,
    ) -> ScoredPrompts | None:
        """Slice by slice, because a chunk's logits are larger than all else in a step. Every rank calls it alike; None
        on those that have no logits."""
        asked = [hidden, *(upload.on_device(section) for section in sections)]
        scores = torch.empty(len(hidden), NUM_SCORES, dtype=torch.int32, device=hidden.device)
        parts = (torch.split(each, MAX_SCORED_TOKENS) for each in (*asked, scores))
        logits = None
        for hidden_part, tokens, num_best, out in zip(*parts, strict=True):
            logits = self._decoder.logits(hidden_part)
            if logits is not None:
                self._draw.score(logits, tokens, num_best, out)
        return None if logits is None else self._download(scores, chunks)

    def _download(self, scores: Tensor, chunks: Sequence[ScoredChunk]) -> ScoredPrompts:
        host = self._device.host_memory(len(scores) * SCORE_BYTES).view(torch.int32).view(scores.shape)
        widths = [self._width(chunk) for chunk in chunks]
        return ScoredPrompts(self._device.download(scores, host), host, chunks, widths)

    def _width(self, chunk: ScoredChunk) -> int:
        return min(chunk.num_alternatives, self._vocab_size)
