"""What a core knows of the version that it routes: its identity, completed by the replicas', and its block hasher.

Shared by the links (whom to greet, with which key) and the dispatcher (how to hash a prompt).
"""

from __future__ import annotations

from dataclasses import replace

from protocol.block_hash import BlockHasher
from protocol.deployment_secrets import DeploymentSecrets
from protocol.handshake import REMEDIES, HelloRefused, adopted
from protocol.messages import Identity, Welcome


class Deployment:
    """Learns the block size once; a replica with another one, or with another hash, is refused from then on."""

    def __init__(self, identity: Identity, secrets: DeploymentSecrets) -> None:
        self._secrets = secrets
        self.hasher = None if identity.block_size is None else self._hasher(identity.block_size)
        self.identity = identity if self.hasher is None else self._with_fingerprint(identity, self.hasher)

    @property
    def hello_key(self) -> bytes:
        return self._secrets.hello_key

    def admit(self, welcome: Welcome) -> None:
        """Adopt what the first replica says. Raises HelloRefused when it hashes otherwise than this router."""
        block_size = welcome.identity.block_size
        if block_size is None:
            raise HelloRefused("the replica does not say its block size")
        hasher = self.hasher or self._hasher(block_size)
        if welcome.identity.hash_fingerprint != hasher.fingerprint:
            raise HelloRefused(f"hash_fingerprint differs: {REMEDIES['hash_fingerprint']}")
        self.identity, self.hasher = adopted(self.identity, welcome), hasher

    def _hasher(self, block_size: int) -> BlockHasher:
        return BlockHasher(self._secrets.hash_secret, block_size)

    @staticmethod
    def _with_fingerprint(identity: Identity, hasher: BlockHasher) -> Identity:
        return replace(identity, hash_fingerprint=hasher.fingerprint)
