"""Which stretches of a checkpoint's tensors are a rank's."""

from __future__ import annotations

import pytest

from workers.model.families import llama
from workers.model.hf_config import HfConfig
from workers.model.model_spec import ModelSpec, QkvOrder, WeightNames
from workers.model.weights.layout_parts import LinearLayout, MlpLayout
from workers.model.weights.weight_layout import decoder_layout
from workers.model.weights.weight_piece import Piece, Units, stacked
from workers.shard import Shard

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 10,
    "hidden_size": 16,
    "intermediate_size": 6,
    "num_hidden_layers": 1,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
}


@pytest.fixture
def spec() -> ModelSpec:
    """Eight heads of two dimensions, two KV heads, six features."""
    return llama.spec(HfConfig(CONFIG, "config.json"))


def names(**changed: object) -> WeightNames:
    given = {
        "embedding": "wte",
        "attention_norm": "{}.ln_1",
        "qkv": ("{}.qkv",),
        "o": "{}.o",
        "lm_head": "lm_head",
        "final_norm": "ln_f",
        "mlp_norm": "{}.ln_2",
        "gate_up": ("{}.gate_up",),
        "down": "{}.down",
    }
    return WeightNames(**{**given, **changed})  # type: ignore[arg-type]


def rows(piece: Piece, rank: int, size: int) -> list[int]:
    """Along the divided axis, in the order in which a rank gets them."""
    return [row for part in piece.parts(Shard(rank, size)) for row in range(part.start, part.stop)]


def only_piece(layout: LinearLayout) -> Piece:
    (piece,) = layout.weights
    return piece


def test_what_does_not_divide_evenly_leaves_the_last_rank_a_shorter_part() -> None:
    piece = Piece("lm_head.weight", (10, 4), 0, (stacked(10),))
    assert [piece.parts(Shard(rank, 3)) for rank in range(3)] == [
        (slice(0, 4),),
        (slice(4, 8),),
        (slice(8, 10),),
    ]
    assert piece.part_shape(Shard(2, 3)) == (2, 4)


def test_ranks_without_a_unit_of_their_own_share_one() -> None:
    units = stacked(2, width=3)
    assert [units.slices(Shard(rank, 4)) for rank in range(4)] == [
        [slice(0, 3)],
        [slice(0, 3)],
        [slice(3, 6)],
        [slice(3, 6)],
    ]


def test_neighbours_are_read_as_one_stretch() -> None:
    assert Units((4, 0, 2, 8), 2).slices(Shard()) == [slice(4, 6), slice(0, 4), slice(8, 10)]


def test_a_fused_tensor_of_queries_keys_and_values_gives_each_rank_its_heads(spec: ModelSpec) -> None:
    piece = only_piece(decoder_layout(spec, names()).layers[0].qkv)
    assert piece.shape == (8 * 2 + 2 * 2 + 2 * 2, 16)
    assert rows(piece, 0, 2) == [*range(8), 16, 17, 20, 21]
    assert rows(piece, 1, 2) == [*range(8, 16), 18, 19, 22, 23]


def test_queries_keys_and_values_that_alternate_by_kv_head_are_sorted(spec: ModelSpec) -> None:
    layout = decoder_layout(spec, names(qkv_order=QkvOrder.PER_KV_HEAD))
    piece = only_piece(layout.layers[0].qkv)
    first, second = 0, 12  # each KV head: four queries, key, value, of two rows each
    queries = [*range(first, first + 8), *range(second, second + 8)]
    keys_and_values = [8, 9, 20, 21, 10, 11, 22, 23]
    assert rows(piece, 0, 1) == queries + keys_and_values
    assert rows(piece, 1, 2) == [*range(second, second + 8), 20, 21, 22, 23]


def test_four_ranks_hold_two_kv_heads_beside_the_queries_that_they_serve(spec: ModelSpec) -> None:
    layout = decoder_layout(spec, names(qkv_order=QkvOrder.PER_KV_HEAD))
    piece = only_piece(layout.layers[0].qkv)
    assert rows(piece, 1, 4) == [
        4,
        5,
        6,
        7,
        8,
        9,
        10,
        11,
    ]  # the first KV head's later queries, its key and value
    assert rows(piece, 2, 4) == [12, 13, 14, 15, 20, 21, 22, 23]


def test_gate_above_up_gives_each_rank_its_features_of_both(spec: ModelSpec) -> None:
    mlp = decoder_layout(spec, names()).layers[0].mlp
    assert isinstance(mlp, MlpLayout)
    assert rows(only_piece(mlp.gate_up), 1, 2) == [3, 4, 5, 9, 10, 11]
    assert rows(only_piece(mlp.down), 1, 2) == [3, 4, 5]


def test_a_transposed_matrix_is_divided_along_its_other_axis(spec: ModelSpec) -> None:
    layer = decoder_layout(spec, names(transposed=True)).layers[0]
    qkv, o = only_piece(layer.qkv), only_piece(layer.o)
    assert (qkv.shape, qkv.axis, qkv.part_shape(Shard(0, 2))) == ((16, 24), 1, (12, 16))
    assert (o.shape, o.axis, o.part_shape(Shard(0, 2))) == ((16, 16), 0, (16, 8))


def test_a_part_that_the_family_cannot_name_is_a_mistake_of_the_family(spec: ModelSpec) -> None:
    with pytest.raises(AssertionError, match="names no tensor for a part that its spec asks for"):
        decoder_layout(spec, names(mlp_norm=None))
