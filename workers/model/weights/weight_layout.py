"""Which tensors of a checkpoint make up each weight of the decoder, and how each is divided among ranks.

qkv, gate_up    in our order [q | k | v] and [gate | up], from one tensor or several; ranks divide their outputs: each
                computes its own heads and features, and KV heads fewer than ranks are held by several
o, down         ranks divide their inputs and sum what comes out; the bias is added by rank 0 alone
experts         each rank has its part of every expert's features
lm_head         ranks divide the vocabulary; the last part may be shorter
the rest        every rank has it whole
"""

from __future__ import annotations

from collections.abc import Sequence

from protocol.errors import UnsupportedModel
from workers.model.model_spec import (
    ExpertsSpec,
    LayerSpec,
    MlpSpec,
    ModelSpec,
    NormSpec,
    QkvOrder,
    ResidualOrder,
    WeightNames,
)
from workers.model.weights.layout_parts import (
    DecoderLayout,
    ExpertsLayout,
    LayerLayout,
    LinearLayout,
    MlpLayout,
    NormLayout,
)
from workers.model.weights.weight_piece import Piece, Units, stacked


def check_divides(spec: ModelSpec, size: int) -> None:
    """Raises UnsupportedModel where the heads or the MLP cannot be shared out evenly."""
    if _divides(spec, size):
        return
    possible = [n for n in range(1, spec.num_heads + 1) if _divides(spec, n)]
    features = " and ".join(map(str, sorted({layer.mlp.features for layer in spec.layers})))
    raise UnsupportedModel(
        f"a model with {spec.num_heads} heads, {spec.num_kv_heads} KV heads and {features} MLP features"
        f" cannot be divided among {size} workers: tensor_parallel_size can be {', '.join(map(str, possible))}",
        param="tensor_parallel_size",
    )


def _divides(spec: ModelSpec, size: int) -> bool:
    whole = (spec.num_heads, *{layer.mlp.features for layer in spec.layers})
    kv_heads = spec.num_kv_heads
    return all(total % size == 0 for total in whole) and (kv_heads % size == 0 or size % kv_heads == 0)


def decoder_layout(spec: ModelSpec, names: WeightNames) -> DecoderLayout:
    return _LayoutMaker(spec, names).decoder()


class _LayoutMaker:
    def __init__(self, spec: ModelSpec, names: WeightNames) -> None:
        self._spec = spec
        self._names = names

    def decoder(self) -> DecoderLayout:
        spec, names = self._spec, self._names
        size, positions = spec.embedding.size, spec.embedding.positions
        vocabulary, lm_head = (spec.vocab_size, size or spec.hidden_size), f"{names.lm_head}.weight"
        table = (positions.num_rows, spec.hidden_size) if positions is not None else None
        return DecoderLayout(
            embedding=Piece(f"{self._name(names.embedding)}.weight", vocabulary),
            positions=Piece(f"{self._name(names.positions)}.weight", table) if table else None,
            project_in=self._whole(self._name(names.project_in), spec.hidden_size, size) if size else None,
            layers=tuple(self._layer(index, layer) for index, layer in enumerate(spec.layers)),
            final_norm=self._norm(self._name(names.final_norm)) if spec.final_norm else None,
            project_out=self._whole(self._name(names.project_out), size, spec.hidden_size) if size else None,
            lm_head=None if spec.tied_embeddings else divided_vocabulary(lm_head, vocabulary),
            ignored=(*names.ignored, lm_head) if spec.tied_embeddings else names.ignored,
            prefix=names.prefix,
        )

    def _layer(self, index: int, layer: LayerSpec) -> LayerLayout:
        spec, names, order = self._spec, self._names, self._spec.order
        around, heads = order is ResidualOrder.NORM_AROUND, spec.attention.head_norm
        one_norm = order is ResidualOrder.PARALLEL_ONE_NORM

        def norm(template: str | None) -> NormLayout:
            return self._norm(self._name(template, index))

        def head_norm(template: str | None, of_heads: NormSpec) -> NormLayout:
            return _norm(self._name(template, index), spec.head_dim, of_heads)

        return LayerLayout(
            attention_norm=norm(names.attention_norm),
            qkv=self._qkv(index),
            q_norm=head_norm(names.q_norm, heads) if heads else None,
            k_norm=head_norm(names.k_norm, heads) if heads else None,
            o=self._summed(
                self._name(names.o, index), spec.num_heads, spec.head_dim, spec.attention.output_bias
            ),
            attention_post_norm=norm(names.attention_post_norm) if around else None,
            mlp_norm=None if one_norm else norm(names.mlp_norm),
            mlp=self._experts(index, layer.mlp)
            if isinstance(layer.mlp, ExpertsSpec)
            else self._mlp(index, layer.mlp),
            mlp_post_norm=norm(names.mlp_post_norm) if around else None,
        )

    def _qkv(self, index: int) -> LinearLayout:
        spec = self._spec
        sizes = (spec.num_heads, spec.num_kv_heads, spec.num_kv_heads)
        names = [self._name(name, index) for name in self._names.qkv]
        units: Sequence[tuple[Units, ...]]
        if len(names) == 3:
            units = [(stacked(num_heads, spec.head_dim),) for num_heads in sizes]
        elif self._names.qkv_order is QkvOrder.PER_KV_HEAD:
            units = [_per_kv_head(*sizes[:2], spec.head_dim)]
        else:
            units = [_stacked(sizes, spec.head_dim)]
        return self._fused(names, units, spec.attention.bias)

    def _mlp(self, index: int, mlp: MlpSpec) -> MlpLayout:
        gate_up = [self._name(name, index) for name in self._names.gate_up]
        return self._feed_forward(
            gate_up, self._name(self._names.down, index), mlp.features, mlp.gated, mlp.bias
        )

    def _experts(self, index: int, experts: ExpertsSpec) -> ExpertsLayout:
        names = self._names
        router = Piece(
            f"{self._name(names.router, index)}.weight", (experts.num_experts, self._spec.hidden_size)
        )

        def expert(number: int) -> MlpLayout:
            gate_up = [self._name(name, index, number) for name in names.expert_gate_up]
            down = self._name(names.expert_down, index, number)
            return self._feed_forward(gate_up, down, experts.features, gated=True, bias=False)

        return ExpertsLayout(LinearLayout((router,)), tuple(map(expert, range(experts.num_experts))))

    def _feed_forward(
        self, gate_up: list[str], down: str, features: int, gated: bool, bias: bool
    ) -> MlpLayout:
        sizes = (features, features) if gated else (features,)
        fused = len(gate_up) == 1
        units: Sequence[tuple[Units, ...]]
        units = [_stacked(sizes)] if fused else [(stacked(features),) for _ in gate_up]
        return MlpLayout(self._fused(gate_up, units, bias), self._summed(down, features, 1, bias))

    def _fused(self, names: list[str], units: Sequence[tuple[Units, ...]], bias: bool) -> LinearLayout:
        """Linears from the hidden size, one below the other, whose outputs are divided."""
        inputs, transposed = self._spec.hidden_size, self._names.transposed
        outputs = [sum(len(each.starts) * each.width for each in of_one) for of_one in units]
        parts = list(zip(names, outputs, units, strict=True))
        return LinearLayout(
            tuple(
                _matrix(f"{name}.weight", size, inputs, 0, of_one, transposed) for name, size, of_one in parts
            ),
            tuple(Piece(f"{name}.bias", (size,), 0, of_one) for name, size, of_one in parts if bias),
        )

    def _summed(self, name: str, num_units: int, width: int, bias: bool) -> LinearLayout:
        """A linear to the hidden size whose inputs are divided."""
        outputs, units = self._spec.hidden_size, (stacked(num_units, width),)
        weight = _matrix(f"{name}.weight", outputs, num_units * width, 1, units, self._names.transposed)
        return LinearLayout((weight,), (Piece(f"{name}.bias", (outputs,)),) if bias else (), summed=True)

    def _whole(self, name: str, outputs: int, inputs: int) -> LinearLayout:
        return LinearLayout((Piece(f"{name}.weight", (outputs, inputs)),))

    def _norm(self, name: str) -> NormLayout:
        return _norm(name, self._spec.hidden_size, self._spec.norm)

    def _name(self, template: str | None, *numbers: int) -> str:
        assert template is not None, "the family names no tensor for a part that its spec asks for"
        return self._names.prefix + template.format(*numbers)


def divided_vocabulary(name: str, shape: tuple[int, int]) -> Piece:
    return Piece(name, shape, 0, (stacked(shape[0]),))


def _norm(name: str, size: int, spec: NormSpec) -> NormLayout:
    weight = Piece(f"{name}.weight", (size,), mean=0.0 if spec.one_plus else 1.0)
    bias = Piece(f"{name}.bias", (size,)) if spec.bias else None
    return NormLayout(weight if spec.weight else None, bias, spec, size)


def _matrix(
    name: str, outputs: int, inputs: int, axis: int, units: tuple[Units, ...], transposed: bool
) -> Piece:
    """`axis` is that of [outputs, inputs]."""
    if transposed:
        return Piece(name, (inputs, outputs), 1 - axis, units, transposed=True)
    return Piece(name, (outputs, inputs), axis, units)


def _stacked(sizes: tuple[int, ...], width: int = 1) -> tuple[Units, ...]:
    """Of so many units each, one kind below the other."""
    return tuple(stacked(size, width, sum(sizes[:index]) * width) for index, size in enumerate(sizes))


def _per_kv_head(num_heads: int, num_kv_heads: int, head_dim: int) -> tuple[Units, ...]:
    """Of a tensor that holds, for each KV head in turn, its query heads, its key and its value."""
    group = num_heads // num_kv_heads
    stride = (group + 2) * head_dim
    queries = [head // group * stride + head % group * head_dim for head in range(num_heads)]
    keys, values = (range((group + own) * head_dim, num_kv_heads * stride, stride) for own in (0, 1))
    return Units(tuple(queries), head_dim), Units(keys, head_dim), Units(values, head_dim)
