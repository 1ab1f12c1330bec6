"""Log-probabilities as the kernels pack them, once they have come to the host: see `kernels/log_probabilities.py`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kernels.log_probabilities import BEST, BEST_IDS, LOGPROB, MOST_BEST, NUM_SCORES, RANK
from protocol.messages import TokenLogprob
from protocol.sampling import MAX_LOGPROBS
from workers.model.sampling.places import Numbers

SCORE_BYTES = 4 * NUM_SCORES  # of a token
assert MAX_LOGPROBS <= MOST_BEST, "a token's scores have no places for all alternatives that may be asked for"


def read_scores(
    scores: Numbers,  # [tokens, NUM_SCORES] int32
    widths: Sequence[int],  # alternatives that each token's request wants
) -> list[TokenLogprob]:
    fractions, most = scores.view(np.float32), max(widths, default=0)
    columns = (
        fractions[:, LOGPROB].tolist(),
        scores[:, RANK].tolist(),
        scores[:, BEST_IDS : BEST_IDS + most].tolist(),
        fractions[:, BEST : BEST + most].tolist(),
        widths,
    )
    return [
        TokenLogprob(own, rank, tuple(zip(ids[:width], values[:width], strict=True)))
        for own, rank, ids, values, width in zip(*columns, strict=True)
    ]
