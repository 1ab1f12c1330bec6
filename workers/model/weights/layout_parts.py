"""A decoder's weights, each with the tensors it is made of. `weight_layout.py` writes, `load_weights.py` reads it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from workers.model.model_spec import NormSpec
from workers.model.weights.weight_piece import Piece


@dataclass(frozen=True, slots=True)
class NormLayout:
    weight: Piece | None  # None: all ones
    bias: Piece | None
    spec: NormSpec
    size: int


@dataclass(frozen=True, slots=True)
class LinearLayout:
    weights: tuple[Piece, ...]  # one below the other
    biases: tuple[Piece, ...] = ()
    summed: bool = False  # the ranks' outputs are added up


@dataclass(frozen=True, slots=True)
class MlpLayout:
    gate_up: LinearLayout
    down: LinearLayout


@dataclass(frozen=True, slots=True)
class ExpertsLayout:
    router: LinearLayout
    experts: tuple[MlpLayout, ...]


@dataclass(frozen=True, slots=True)
class LayerLayout:
    attention_norm: NormLayout
    qkv: LinearLayout
    q_norm: NormLayout | None
    k_norm: NormLayout | None
    o: LinearLayout
    attention_post_norm: NormLayout | None
    mlp_norm: NormLayout | None
    mlp: MlpLayout | ExpertsLayout
    mlp_post_norm: NormLayout | None


@dataclass(frozen=True, slots=True)
class DecoderLayout:
    embedding: Piece
    positions: Piece | None
    project_in: LinearLayout | None
    layers: tuple[LayerLayout, ...]
    final_norm: NormLayout | None
    project_out: LinearLayout | None
    lm_head: Piece | None  # None: the embedding serves as one
    ignored: tuple[str, ...]  # endings of names that may be left over
    prefix: str  # of names; a checkpoint may lack it in all of them

    def pieces(self) -> Iterator[Piece]:
        return _pieces(self)


def _pieces(part: Any) -> Iterator[Piece]:
    """In the order of the fields, which is that of the forward pass."""
    if isinstance(part, Piece):
        yield part
    elif isinstance(part, tuple):
        for each in part:
            yield from _pieces(each)
    elif is_dataclass(part):
        for field in fields(part):
            yield from _pieces(getattr(part, field.name))
