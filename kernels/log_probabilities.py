"""How likely tokens were, their ranks, and the most likely tokens with theirs, packed for one copy, in plain torch.

    logprob(i) = x_i - log Σ_j exp(x_j)          rank(i) = 1 + #{ j : x_j > x_i }

A row's scores are whole numbers of 32 bits, log-probabilities among them by their bits:

    logprob | rank | MOST_BEST log-probabilities, descending | MOST_BEST tokens        of the last two as many as asked
"""

from __future__ import annotations

import torch
from torch import Tensor

MOST_BEST = 20  # alternatives that a row may ask for
MAX_SCORED_TOKENS = 256  # of prompts, whose logits exist at a time
LOGPROB, RANK, BEST = 0, 1, 2
BEST_IDS = BEST + MOST_BEST
NUM_SCORES = BEST_IDS + MOST_BEST


def log_probabilities(
    logits: Tensor,  # [rows, vocabulary], raw: before penalties, masks and temperature
    token_ids: Tensor,  # [rows] int64
    num_best: Tensor,  # [rows] int32, up to MOST_BEST and to the vocabulary; -1: the row does not ask
    out: Tensor,  # [rows, NUM_SCORES] int32, written as far as rows ask
) -> None:
    logprobs = logits.float().log_softmax(-1)
    own = logprobs.gather(1, token_ids[:, None])
    for row, count in enumerate(num_best.tolist()):
        if count >= 0:
            out[row, LOGPROB] = own[row].view(torch.int32)[0]
            out[row, RANK] = 1 + (logits[row] > logits[row, token_ids[row]]).sum()
            best = torch.sort(logprobs[row], descending=True, stable=True)
            out[row, BEST : BEST + count] = best.values[:count].view(torch.int32)
            out[row, BEST_IDS : BEST_IDS + count] = best.indices[:count]
