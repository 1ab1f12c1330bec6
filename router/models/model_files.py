"""What a router reads of one version of a model: where its files are, its tokenizer, its authors' sampling defaults.

Read by `model_version.py`, in a thread: a hub may have to be asked, and a large tokenizer takes a second.
"""

from __future__ import annotations

from dataclasses import dataclass

from protocol.block_hash import ALGORITHM
from protocol.membership import ServedModel
from protocol.messages import Identity
from protocol.model_source import ModelSource, resolve_model
from router.http.request_sampling import SamplingDefaults
from router.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class ModelFiles:
    source: ModelSource
    tokenizer: Tokenizer
    defaults: SamplingDefaults

    @classmethod
    def read(cls, served: ServedModel) -> ModelFiles:
        """Raises ModelNotFound, UnsupportedModel, OSError."""
        source = resolve_model(served.source, served_name=served.name)
        tokenizer = Tokenizer.from_directory(source.directory)
        return cls(source, tokenizer, SamplingDefaults.from_directory(source.directory))

    @property
    def identity(self) -> Identity:
        """What a replica's must agree with."""
        source = self.source
        return Identity(
            source.name,
            source.model_digest,
            source.tokenizer_digest,
            hash_algorithm=ALGORITHM,
            template_digest=source.template_digest,
        )
