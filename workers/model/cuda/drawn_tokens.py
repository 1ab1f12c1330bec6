"""Drawn tokens and their scores on the way to the host: where draws write them, and how they are read behind the step.

Made by `token_head.py`, read by `step_executor.py` once their event has come.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kernels.log_probabilities import NUM_SCORES
from protocol.messages import TokenLogprob
from workers.model.cuda.arrived_scores import SCORE_BYTES, read_scores
from workers.model.cuda.device import Device, Event
from workers.model.sampling.places import Numbers
from workers.model.sampling.sampling_state import SamplingColumns, Wish

_TOKEN_BYTES = 8
_NOBODY = np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True)
class DrawnTokens:
    """Under way to the host."""

    arrived: Event
    token_ids: Tensor  # [rows] int64, on the host; to be read behind `arrived`
    scores: Tensor  # [rows, NUM_SCORES] int32, likewise, of rows that asked
    asked: Numbers  # their places
    widths: Numbers  # alternatives that each of them wants

    def read_logprobs(self) -> dict[int, TokenLogprob]:
        """By place."""
        if not len(self.asked):
            return {}
        read = read_scores(self.scores.numpy()[self.asked], self.widths.tolist())
        return dict(zip(self.asked.tolist(), read, strict=True))


@dataclass(frozen=True, slots=True)
class Outputs:
    """Of a draw, in one piece, so that one copy brings both."""

    packed: Tensor  # [any] uint8
    tokens: Tensor  # [size] int64
    scores: Tensor  # [size, NUM_SCORES] int32, of rows that ask

    @classmethod
    def of(cls, packed: Tensor, size: int) -> Outputs:
        tokens, scores = packed[: size * _TOKEN_BYTES], packed[size * _TOKEN_BYTES :]
        return cls(packed, tokens.view(torch.int64), scores.view(torch.int32).view(size, NUM_SCORES))


class TokenDownload:
    """Owns what draws write. Two pieces of host memory take turns: the engine has read the step before the last when it
    launches one."""

    def __init__(self, device: Device, columns: SamplingColumns, max_size: int) -> None:
        self._device = device
        self._columns = columns
        num_bytes = max_size * (_TOKEN_BYTES + SCORE_BYTES)
        packed = torch.zeros(num_bytes, dtype=torch.uint8, device=device.torch_device)
        self.outputs = Outputs.of(packed, max_size)
        self._hosts = [Outputs.of(device.host_memory(num_bytes), max_size) for _ in range(2)]
        self._turn = 0

    def start(self, rows: Numbers, are_scored: bool) -> DrawnTokens:
        """Of the step that was launched last. `are_scored`: some of its rows may have asked for log-probabilities."""
        self._turn = 1 - self._turn
        columns, host, asked = self._columns, self._hosts[self._turn], _NOBODY
        if are_scored:
            (asked,) = (columns.wishes[rows] & Wish.LOGPROBS).nonzero()
        num_bytes = len(rows) * _TOKEN_BYTES
        if len(asked):
            num_bytes = host.tokens.nbytes + (int(asked[-1]) + 1) * SCORE_BYTES
        arrived = self._device.download(self.outputs.packed[:num_bytes], host.packed[:num_bytes])
        widths = columns.num_logprobs[rows[asked]]
        return DrawnTokens(arrived, host.tokens[: len(rows)], host.scores, asked, widths)
