"""The deployment that the benchmark's router and mock engine both belong to. No part of it is secret."""

from __future__ import annotations

from protocol.block_hash import ALGORITHM, BlockHasher
from protocol.deployment_secrets import DeploymentSecrets
from protocol.handshake import ReplicaFacts
from protocol.messages import Identity
from protocol.model_source import resolve_model

MODEL = "sapling"
HOST = "127.0.0.1"
SECRETS = DeploymentSecrets(b"h" * 24, b"k" * 32, b"s" * 32)
BLOCK_SIZE = 16
CONTEXT_TOKENS = 131_072
NUM_BLOCKS = 65_536


def identity() -> Identity:
    """A replica's. A router says the same, or less of it."""
    source = resolve_model(MODEL)
    return Identity(
        source.name,
        source.model_digest,
        source.tokenizer_digest,
        BLOCK_SIZE,
        BlockHasher(SECRETS.hash_secret, BLOCK_SIZE).fingerprint,
        ALGORITHM,
        source.template_digest,
    )


def replica_facts(replica_id: str) -> ReplicaFacts:
    return ReplicaFacts(replica_id, 1, identity(), CONTEXT_TOKENS, NUM_BLOCKS)
