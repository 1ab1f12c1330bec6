"""Which tensors of a checkpoint make up each weight of the decoder, and how each is divided among ranks.

qkv, gate_up    fused from several tensors; ranks divide their outputs (rows): each computes its own heads
o, down         ranks divide their inputs (columns) and sum what comes out; the bias is added by rank 0 alone
lm_head         ranks divide the vocabulary; the last part may be shorter
the rest        every rank has it whole
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from protocol.errors import UnsupportedModel
from workers.model.model_spec import ModelSpec, WeightNames
from workers.shard import Shard


@dataclass(frozen=True, slots=True)
class Piece:
    """One tensor of the checkpoint."""

    name: str
    shape: tuple[int, ...]  # whole, as in the checkpoint
    axis: int | None = None  # divided among ranks along it; None: every rank has it whole
    mean: float = 0.0  # of dummy values

    def part(self, shard: Shard) -> slice:
        """This rank's share along `axis`; the last rank's may be shorter."""
        assert self.axis is not None, f"{self.name} is not divided"
        total = self.shape[self.axis]
        share = -(-total // shard.size)
        return slice(min(shard.rank * share, total), min((shard.rank + 1) * share, total))


@dataclass(frozen=True, slots=True)
class LinearLayout:
    weights: tuple[Piece, ...]  # one below the other
    biases: tuple[Piece, ...] = ()
    summed: bool = False  # the ranks' outputs are added up


@dataclass(frozen=True, slots=True)
class LayerLayout:
    attention_norm: Piece
    qkv: LinearLayout
    o: LinearLayout
    mlp_norm: Piece
    gate_up: LinearLayout
    down: LinearLayout

    def pieces(self) -> Iterator[Piece]:
        yield self.attention_norm
        yield self.mlp_norm
        for linear in (self.qkv, self.o, self.gate_up, self.down):
            yield from linear.weights
            yield from linear.biases


@dataclass(frozen=True, slots=True)
class DecoderLayout:
    embedding: Piece
    layers: tuple[LayerLayout, ...]
    final_norm: Piece
    lm_head: Piece | None  # None: the embedding serves as one
    ignored: tuple[str, ...]  # endings of names that may be left over

    def pieces(self) -> Iterator[Piece]:
        yield self.embedding
        for layer in self.layers:
            yield from layer.pieces()
        yield self.final_norm
        if self.lm_head is not None:
            yield self.lm_head


def check_divides(spec: ModelSpec, size: int) -> None:
    """Raises UnsupportedModel where the heads or the MLP cannot be shared out evenly."""
    totals = (spec.num_heads, spec.num_kv_heads, spec.intermediate_size)
    if all(total % size == 0 for total in totals):
        return
    possible = [n for n in range(1, spec.num_kv_heads + 1) if all(total % n == 0 for total in totals)]
    raise UnsupportedModel(
        f"a model with {spec.num_heads} heads, {spec.num_kv_heads} KV heads and {spec.intermediate_size} MLP features"
        f" cannot be divided among {size} workers: tensor_parallel_size can be {', '.join(map(str, possible))}",
        param="tensor_parallel_size",
    )


def decoder_layout(spec: ModelSpec, names: WeightNames) -> DecoderLayout:
    vocabulary, lm_head = (spec.vocab_size, spec.hidden_size), f"{names.lm_head}.weight"
    return DecoderLayout(
        embedding=Piece(f"{names.embedding}.weight", vocabulary),
        layers=tuple(_layer(spec, names, index) for index in range(spec.num_layers)),
        final_norm=_norm(spec, names.final_norm),
        lm_head=None if spec.tied_embeddings else Piece(lm_head, vocabulary, axis=0),
        ignored=(*names.ignored, lm_head) if spec.tied_embeddings else names.ignored,
    )


def _layer(spec: ModelSpec, names: WeightNames, index: int) -> LayerLayout:
    q, kv = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    hidden, features = spec.hidden_size, spec.intermediate_size

    def named(*templates: str) -> list[str]:
        return [template.format(index) for template in templates]

    return LayerLayout(
        attention_norm=_norm(spec, names.attention_norm.format(index)),
        qkv=_fused(named(names.q, names.k, names.v), (q, kv, kv), hidden, spec.attention_bias),
        o=_summed(names.o.format(index), hidden, q, spec.attention_bias),
        mlp_norm=_norm(spec, names.mlp_norm.format(index)),
        gate_up=_fused(named(names.gate, names.up), (features, features), hidden, spec.mlp_bias),
        down=_summed(names.down.format(index), hidden, features, spec.mlp_bias),
    )


def _norm(spec: ModelSpec, name: str) -> Piece:
    return Piece(f"{name}.weight", (spec.hidden_size,), mean=1.0)


def _fused(names: list[str], outputs: tuple[int, ...], inputs: int, bias: bool) -> LinearLayout:
    pairs = list(zip(names, outputs, strict=True))
    return LinearLayout(
        weights=tuple(Piece(f"{name}.weight", (size, inputs), axis=0) for name, size in pairs),
        biases=tuple(Piece(f"{name}.bias", (size,), axis=0) for name, size in pairs if bias),
    )


def _summed(name: str, outputs: int, inputs: int, bias: bool) -> LinearLayout:
    biases = (Piece(f"{name}.bias", (outputs,)),) if bias else ()
    return LinearLayout((Piece(f"{name}.weight", (outputs, inputs), axis=1),), biases, summed=True)
