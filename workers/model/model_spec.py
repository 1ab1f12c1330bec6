"""What a decoder is made of. `families/` derive it from a model's config.json; `layers/` and `weights/` read it.

A field is here because some code reads it: a family that needs more adds the field together with its code. What
every layer of a model has is described once; `LayerSpec` holds what may differ from layer to layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto


class NormKind(Enum):
    RMS = auto()  # x / sqrt(mean(x²) + eps) · weight
    LAYER = auto()  # (x - mean(x)) / sqrt(variance(x) + eps) · weight + bias


@dataclass(frozen=True, slots=True)
class NormSpec:
    eps: float
    kind: NormKind = NormKind.RMS
    bias: bool = False  # LAYER only
    weight: bool = True  # LAYER may have none, and then no bias
    one_plus: bool = False  # the checkpoint holds weight - 1 (Gemma)


@dataclass(frozen=True, slots=True)
class LinearScaling:
    """Every position is divided by `factor`."""

    factor: float


@dataclass(frozen=True, slots=True)
class DynamicScaling:
    """A larger theta, and only where the served context is longer than the original one. The context decides, not each
    sequence's length: a cached key's rotation must not change when its sequence grows."""

    factor: float
    original_max_positions: int


@dataclass(frozen=True, slots=True)
class YarnScaling:
    """Slow rotations are divided by `factor`, fast ones kept, with a ramp between the two betas (turns within the
    original context); queries and keys both grow by `attention_factor`."""

    factor: float
    original_max_positions: int
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncated: bool = True  # the ramp's ends are whole dimensions


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Slow rotations are divided by `factor`, fast ones kept, those between blended (Llama 3.1's long context)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclass(frozen=True, slots=True)
class LongScaling:
    """A divisor for every rotation, of two sets: `long_factors` where the served context is longer than the original
    one, else `short_factors` (longrope). Queries and keys both grow by `attention_factor`."""

    short_factors: tuple[float, ...]  # one per rotated pair: half of RotarySpec.dims
    long_factors: tuple[float, ...]
    original_max_positions: int
    attention_factor: float


RotaryScaling = LinearScaling | DynamicScaling | YarnScaling | Llama3Scaling | LongScaling


@dataclass(frozen=True, slots=True)
class RotarySpec:
    """Queries and keys are turned by their position. Dimension i is paired with i + dims / 2."""

    theta: float
    scaling: RotaryScaling | None = None
    dims: int | None = None  # how many of a head's, from its start, even; None: all. The rest stays as it is


@dataclass(frozen=True, slots=True)
class AlibiSpec:
    """Scores grow by slope · (key's position - query's position), after they were scaled."""

    slopes: tuple[float, ...]  # one per head of the whole model, see `alibi_slopes`
    in_bfloat16: bool = (
        False  # Falcon's way: slope · key's position, rounded to bfloat16, before the scores are scaled
    )


@dataclass(frozen=True, slots=True)
class LearnedPositions:
    """A vector per position, added to the (projected) embedding: row position + offset of a table."""

    num_rows: int  # of the table, those below the offset included
    offset: int = 0


@dataclass(frozen=True, slots=True)
class EmbeddingSpec:
    size: int | None = (
        None  # of a token's vector, where a projection without bias leads to the hidden size and back
    )
    scale: float = 1.0  # rounded to the model's dtype, then multiplied with every token's vector
    positions: LearnedPositions | None = None


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    bias: bool = False  # of the projection to queries, keys and values
    output_bias: bool = False
    scale: float | None = None  # of query · key; None: 1 / sqrt(head_dim)
    softcap: float | None = None  # scores become softcap · tanh(score / softcap)
    clip: float | None = None  # queries, keys and values are clamped to ±clip as they are projected
    head_norm: NormSpec | None = (
        None  # over each query's and key's head_dim, before they are turned; RMS only
    )


class Activation(Enum):
    """The values are the names in `kernels/activations.py`."""

    SILU = "silu"
    GELU = "gelu"  # exact, by erf
    GELU_TANH = "gelu_tanh"  # also called gelu_new, gelu_pytorch_tanh, gelu_fast
    RELU = "relu"


@dataclass(frozen=True, slots=True)
class MlpSpec:
    """down(act(gate(x)) · up(x)) where gated, else down(act(up(x)))."""

    features: int
    activation: Activation
    gated: bool
    bias: bool = False  # of all its linears


@dataclass(frozen=True, slots=True)
class ExpertsSpec:
    """Each token goes through the `num_chosen` gated MLPs that softmax(router(x)) likes best, and their outputs are
    summed by those probabilities."""

    num_experts: int
    num_chosen: int
    features: int  # of one expert
    activation: Activation
    normalized: bool  # the chosen probabilities are made to sum to 1


@dataclass(frozen=True, slots=True)
class LayerSpec:
    mlp: MlpSpec | ExpertsSpec
    positions: RotarySpec | AlibiSpec | None = None  # None: attention itself knows none
    attention_scale: float | None = None  # in place of AttentionSpec.scale
    window: int | None = None  # query i sees keys j with i - window < j <= i; None: all up to i


class ResidualOrder(Enum):
    """How a layer adds its two parts to the residual stream h."""

    NORM_BEFORE = auto()  # h += attention(attention_norm(h));  h += mlp(mlp_norm(h))
    NORM_AFTER = auto()  # h = attention_norm(h + attention(h));  h = mlp_norm(h + mlp(h))
    NORM_AROUND = auto()  # h += attention_post_norm(attention(attention_norm(h)));  the same with mlp
    PARALLEL = auto()  # h += attention(attention_norm(h)) + mlp(mlp_norm(h))
    PARALLEL_ONE_NORM = auto()  # h += attention(attention_norm(h)) + mlp(attention_norm(h))


@dataclass(frozen=True, slots=True)
class ModelSpec:
    vocab_size: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int  # each serves num_heads / num_kv_heads query heads, neighbours
    head_dim: int
    max_positions: int  # tokens; the longest context that may be asked for
    norm: NormSpec  # every norm of the model but the heads'
    layers: tuple[LayerSpec, ...]  # the first layer first; equal ones may be the same object
    attention: AttentionSpec = AttentionSpec()
    order: ResidualOrder = ResidualOrder.NORM_BEFORE
    embedding: EmbeddingSpec = EmbeddingSpec()
    final_norm: bool = True
    tied_embeddings: bool = False  # the embedding serves as lm_head; a checkpoint's own is then ignored
    logits_softcap: float | None = None
    default_positions: int | None = None  # tokens; the context where none is asked for; None: max_positions

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def rotaries(self) -> tuple[RotarySpec, ...]:
        """The ways in which layers turn, each once, in the order of the layers."""
        found = (layer.positions for layer in self.layers)
        return tuple(dict.fromkeys(each for each in found if isinstance(each, RotarySpec)))

    def kv_heads_per_rank(self, num_ranks: int) -> int:
        """Where there are more ranks than KV heads, several ranks hold the same one."""
        return max(1, self.num_kv_heads // num_ranks)


class QkvOrder(Enum):
    """How the outputs of one fused tensor lie."""

    STACKED = auto()  # all queries, all keys, all values
    PER_KV_HEAD = auto()  # of each KV head in turn: its query heads, its key, its value


@dataclass(frozen=True, slots=True)
class WeightNames:
    """What a family calls its tensors in a checkpoint, without `.weight` and `.bias`, which are appended where the spec
    says that there is one.

    Names of a layer's parts are templates over the layer's number: `layers.{}.attn.out`; those of an expert's over the
    layer's and the expert's: `layers.{}.experts.{}.down`. None: the family has no such part; what the spec asks for
    must have a name. `prefix` goes before every name but `lm_head`; a checkpoint whose names all lack it is read too
    (GPT-2's on the hub are saved without their `transformer.`), so everything that may be missing must stand in it.
    """

    embedding: str
    attention_norm: str
    qkv: tuple[str, ...]  # queries, keys, values; or one name: a fused tensor
    o: str
    lm_head: str
    final_norm: str | None = None
    mlp_norm: str | None = None  # all orders but PARALLEL_ONE_NORM
    gate_up: tuple[str, ...] = ()  # gate, up; or one name: up alone, or where gated a tensor of gate above up
    down: str | None = None
    attention_post_norm: str | None = None  # NORM_AROUND
    mlp_post_norm: str | None = None  # NORM_AROUND
    q_norm: str | None = None  # AttentionSpec.head_norm
    k_norm: str | None = None
    positions: str | None = None  # EmbeddingSpec.positions
    project_in: str | None = None  # EmbeddingSpec.size
    project_out: str | None = None
    router: str | None = None  # ExpertsSpec; [num_experts, hidden_size], without a bias
    expert_gate_up: tuple[str, ...] = ()  # gate, up
    expert_down: str | None = None
    prefix: str = ""
    qkv_order: QkvOrder = QkvOrder.STACKED  # of a fused qkv tensor and its bias
    transposed: bool = False  # the layers' linears are saved as [inputs, outputs] (GPT-2's Conv1D)
    ignored: tuple[str, ...] = ()  # endings of tensors that checkpoints carry and nobody needs
