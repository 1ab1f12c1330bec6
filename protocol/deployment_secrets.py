"""The three secrets of a deployment, made once or derived from a given one, and kept beside its wanted state.

They travel as actor arguments: never in argv, the environment, a log or a repr.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass, field

from protocol.block_hash import SECRET_BYTES


@dataclass(frozen=True, slots=True)
class DeploymentSecrets:
    hash_secret: bytes = field(repr=False)  # seeds every block digest
    hello_key: bytes = field(repr=False)  # proves router and replica to each other
    salt_key: bytes = field(repr=False)  # makes a tenant's cache salt from its API key

    @classmethod
    def generate(cls) -> DeploymentSecrets:
        return cls(secrets.token_bytes(SECRET_BYTES), secrets.token_bytes(32), secrets.token_bytes(32))

    @classmethod
    def derived(cls, secret: str) -> DeploymentSecrets:
        """Always the same three of one secret; none tells of another, nor of it (HKDF-Expand, RFC 5869)."""

        def expand(purpose: bytes) -> bytes:
            return hmac.new(secret.encode(), purpose + b"\x01", hashlib.sha256).digest()

        return cls(
            expand(b"trunkline hash")[:SECRET_BYTES], expand(b"trunkline hello"), expand(b"trunkline salt")
        )

    def tenant_salt(self, api_key: str) -> str:
        """One tenant's cache salt: nobody can make another's, so nobody can time another's cache."""
        return hmac.new(self.salt_key, api_key.encode(), hashlib.sha256).hexdigest()[:32]

    def tenant_id(self, api_key: str) -> bytes:
        """Names one tenant among others, to count what it gets; says nothing of its key, nor of its salt."""
        return hmac.new(self.salt_key, b"tenant\0" + api_key.encode(), hashlib.sha256).digest()[:16]
