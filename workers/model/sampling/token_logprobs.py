"""What requests read of a distribution: a token's log-probability, its rank, the most likely tokens with theirs.

Called by the sampler for drawn tokens and for prompts. Always of the raw logits: no temperature, penalty or mask.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.largest import largest_with_places
from protocol.messages import TokenLogprob


def score_tokens(
    logits: Tensor,  # [tokens, vocabulary] fp32
    token_ids: Tensor,  # [tokens] int64
    widths: Sequence[int],  # how many of the most likely tokens each token's request wants
) -> list[TokenLogprob]:
    logprobs = logits.log_softmax(-1)
    own = logprobs.gather(1, token_ids[:, None])
    best, best_ids = largest_with_places(logprobs, max(widths, default=0))
    ranks = torch.gt(logprobs, own, out=logprobs).sum(-1) + 1  # in fp32: booleans are slow
    columns = (each.tolist() for each in (own.squeeze(-1), ranks, best_ids, best))
    return [
        TokenLogprob(logprob, int(rank), tuple(zip(ids[:width], values[:width], strict=True)))
        for logprob, rank, ids, values, width in zip(*columns, widths, strict=True)
    ]
