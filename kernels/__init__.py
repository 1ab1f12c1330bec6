"""Tensor kernels and what each means in plain torch. Called by `workers`; knows nothing of requests.

`__version__` stands here because Hugging Face publishes a distribution of the same name whose version
`transformers` looks up; without it that look-up fails (see docs/architecture.md, "Names").
"""

__version__ = "0.1.0"
