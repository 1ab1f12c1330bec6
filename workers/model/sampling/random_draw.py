"""Draws the tokens of some rows of a batch at random: temperature, cuts, then one number per row.

Made by `sampling_batch.py` for as many rows as fit a processor's cache; nothing here looks at single requests.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.counter_random import mix, uniform_of_mixed
from kernels.cut import Cuts, cut
from kernels.sample import draw
from workers.model.sampling.places import Numbers, Places, at_places, places_of, put_back, take
from workers.model.sampling.sampling_state import SamplingColumns, Wish


@dataclass(frozen=True, slots=True)
class RandomDraw:
    """The tensors of those rows, in the batch's order."""

    places: Places
    mixed_seeds: Tensor  # [rows] int64
    temperature: Tensor | None  # [rows, 1] fp32; None: all 1
    cut_places: Places | None  # of the rows, those with a cut
    cuts: Cuts

    @classmethod
    def of(
        cls,
        columns: SamplingColumns,
        rows: Numbers,  # [batch] int64, all rows of the batch
        indices: Numbers,  # [rows] int64, ascending: those that this draws for
    ) -> RandomDraw:
        drawing = rows[indices]
        wishes = columns.wishes[drawing]
        warm = (wishes & Wish.TEMPERATURE).any()
        cutting = drawing[(wishes & Wish.CUTS) != 0]
        return cls(
            places=at_places(indices),
            mixed_seeds=mix(torch.from_numpy(columns.seed[drawing])),
            temperature=_column(columns.temperature, drawing) if warm else None,
            cut_places=places_of((wishes & Wish.CUTS) != 0),
            cuts=_cuts(columns, cutting),
        )

    def draw(
        self,
        logits: Tensor,  # [batch, vocabulary] fp32, consumed
        positions: Tensor,  # [batch] int64
    ) -> Tensor:  # [rows] int64
        chosen = take(logits, self.places)
        if self.temperature is not None:
            chosen.div_(self.temperature)
        probabilities = torch.softmax(chosen, -1)
        if self.cut_places is not None:
            taken = take(probabilities, self.cut_places)
            cut(taken, self.cuts)
            put_back(probabilities, self.cut_places, taken)
        return draw(probabilities, uniform_of_mixed(self.mixed_seeds, take(positions, self.places)))


def _cuts(columns: SamplingColumns, rows: Numbers) -> Cuts:
    wishes = columns.wishes[rows]
    top_k = (wishes & Wish.TOP_K).any()
    return Cuts(
        min_p=_column(columns.min_p, rows) if (wishes & Wish.MIN_P).any() else None,
        top_k=_column(columns.top_k, rows) if top_k else None,
        widest_top_k=int(columns.top_k[rows].max()) if top_k else 0,
        top_p=_column(columns.top_p, rows) if (wishes & Wish.TOP_P).any() else None,
    )


def _column(values: Numbers, rows: Numbers) -> Tensor:  # -> [rows, 1]
    return torch.from_numpy(values[rows])[:, None]
