"""The activations that config.json names, under all the names that there are for one."""

from __future__ import annotations

from workers.model.hf_config import HfConfig
from workers.model.model_spec import Activation

_NAMES = {
    "silu": Activation.SILU,
    "swish": Activation.SILU,
    "gelu": Activation.GELU,
    "gelu_python": Activation.GELU,
    "gelu_new": Activation.GELU_TANH,
    "gelu_fast": Activation.GELU_TANH,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
    "gelu_python_tanh": Activation.GELU_TANH,
    "relu": Activation.RELU,
}


def activation(config: HfConfig, name: str, default: str) -> Activation:
    """`name`: of the config's entry. Raises UnsupportedModel for one that we do not know."""
    value = config.text(name, default)
    if value not in _NAMES:
        raise config.unsupported(f"its {name} is {value!r}, and known are {', '.join(_NAMES)}")
    return _NAMES[value]
