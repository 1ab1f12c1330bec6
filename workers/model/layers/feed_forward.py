"""A layer's second part on one rank's features: one MLP, or experts. Built by `decoder_layers.py`.

What it returns is this rank's summand: the layer adds the ranks' up.
"""

from __future__ import annotations

from torch import Tensor

from kernels.dispatch import Kernels
from kernels.linear import Linear
from workers.model.model_spec import ExpertsSpec, MlpSpec
from workers.model.weights.load_weights import ExpertsWeights, MlpWeights


class Mlp:
    __slots__ = ("_activate", "_down", "_gate_up")

    def __init__(self, spec: MlpSpec, weights: MlpWeights, kernels: Kernels) -> None:
        activations = kernels.gated_activations if spec.gated else kernels.activations
        self._gate_up = weights.gate_up
        self._activate = activations[spec.activation.value]
        self._down = weights.down

    def __call__(self, x: Tensor) -> Tensor:  # [tokens, hidden] -> the same
        return self._down(self._activate(self._gate_up(x)))


class Experts:
    """Every rank routes alike, over its part of each expert's features."""

    __slots__ = ("_activate", "_choose", "_experts", "_normalized", "_num_chosen", "_router")

    def __init__(self, spec: ExpertsSpec, weights: ExpertsWeights, kernels: Kernels) -> None:
        self._router = weights.router
        self._experts = weights.experts
        self._activate = kernels.gated_activations[spec.activation.value]
        self._num_chosen = spec.num_chosen
        self._normalized = spec.normalized
        self._choose = kernels.choose_experts

    def __call__(self, x: Tensor) -> Tensor:  # [tokens, hidden] -> the same
        weights, chosen = self._choose(self._router(x), self._num_chosen, self._normalized)
        return self._experts(x, weights, chosen, self._activate)


def make_feed_forward(
    spec: MlpSpec | ExpertsSpec, weights: MlpWeights | ExpertsWeights, kernels: Kernels
) -> Linear:
    if isinstance(spec, ExpertsSpec):
        assert isinstance(weights, ExpertsWeights), "the layout followed the spec"
        return Experts(spec, weights, kernels)
    assert isinstance(weights, MlpWeights), "the layout followed the spec"
    return Mlp(spec, weights, kernels)
