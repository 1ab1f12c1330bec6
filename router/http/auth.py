"""Who may ask, and whose cache a request may hit. Used by `api.py`; checked where a socket is bound, too.

With API keys every tenant gets a salt that only the server can make, so that nobody can time another's cache; a
client's own `cache_salt` narrows that further and never widens it.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Sequence

from protocol.block_hash import isolation_key
from protocol.deployment_secrets import DeploymentSecrets
from protocol.errors import InvalidApiKey, InvalidRequest
from router.http.api_keys import ApiKey, Tenant, parse_keys

PROBES = frozenset({"/liveness", "/readiness", "/health"})  # load balancers come without a key
_SCHEME = "bearer "


class Authenticator:
    def __init__(self, api_keys: Sequence[ApiKey], secrets: DeploymentSecrets | None) -> None:
        self._digests = [_digest(key.secret) for key in api_keys]
        self._secrets = secrets
        self._tenants: dict[str, Tenant] = {}  # by key
        for key in api_keys:
            assert secrets is not None, "keys come with secrets"
            tenant_id = secrets.tenant_id(key.secret)
            self._tenants[key.secret] = Tenant(tenant_id, key.weight, key.priority)

    def check(self, authorization: str | None) -> str | None:
        """The key that a request came with; None where no key is needed. Raises InvalidApiKey."""
        if not self._digests:
            return None
        if authorization is None or not authorization.lower().startswith(_SCHEME):
            raise InvalidApiKey("an API key is needed: send the header 'Authorization: Bearer <key>'")
        key = authorization[len(_SCHEME) :].strip()
        given = _digest(key)
        # Every key is compared, and digests of equal length, so that time tells nothing.
        if sum(hmac.compare_digest(given, known) for known in self._digests) == 0:
            raise InvalidApiKey("this API key is not known here")
        return key

    def tenant(self, api_key: str | None) -> Tenant:
        """Whose a request with this key is. The key has been checked."""
        return Tenant() if api_key is None else self._tenants[api_key]

    def isolation(self, api_key: str | None, cache_salt: str | None) -> bytes:
        """What enters the digest of a request's first block."""
        if api_key is None:
            return isolation_key(None, cache_salt)
        assert self._secrets is not None, "keys come with secrets"
        tenant = self._secrets.tenant_salt(api_key)
        return isolation_key(None, tenant if cache_salt is None else f"{tenant}/{cache_salt}")


def check_bind(host: str, api_keys: Sequence[str], *, anybody: bool = False) -> None:
    """Raises InvalidRequest for an address that others can reach when no key protects it, unless that is meant.

    And for a key that is none: better now than where the router starts.
    """
    parse_keys(api_keys)
    if not api_keys and not anybody and not _is_loopback(host):
        raise InvalidRequest(
            f"refusing to listen on {host} without an API key: give --api-key, listen on 127.0.0.1, or say with "
            "--no-api-key that whoever reaches it may ask",
            param="host",
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()
