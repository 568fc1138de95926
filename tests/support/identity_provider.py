"""An identity provider, which signs tokens and publishes its JWKS over real HTTP."""

from __future__ import annotations

import base64
import functools
import hmac
import itertools
import json
import time
from typing import Any, Self

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from tests.support.fake_server import FakeServer, responding

SECRET = "a-shared-secret-of-the-tests-that-is-long-enough-for-any-hmac-0123456789"


@functools.cache
def private_key(algorithm: str, number: int = 0, bits: int = 2048) -> Any:
    """A key pair for each ``number``."""
    if algorithm == "RS256":
        return rsa.generate_private_key(65537, bits)
    return ec.generate_private_key(ec.SECP256R1()) if algorithm == "ES256" else ed25519.Ed25519PrivateKey.generate()


def public_jwk(key: Any) -> dict[str, Any]:
    public = key.public_key()
    kinds: list[Any] = [RSAAlgorithm, ECAlgorithm, OKPAlgorithm]
    kind = kinds[[rsa.RSAPrivateKey, ec.EllipticCurvePrivateKey, ed25519.Ed25519PrivateKey].index(_kind(key))]
    members: dict[str, Any] = json.loads(kind.to_jwk(public))
    members.pop("key_ops", None)
    return members


def _kind(key: Any) -> Any:
    kinds = (rsa.RSAPrivateKey, ec.EllipticCurvePrivateKey, ed25519.Ed25519PrivateKey)
    return next(kind for kind in kinds if isinstance(key, kind))


def claims(**changes: Any) -> dict[str, Any]:
    """The claims of a token that is valid for an hour. ``None`` omits a claim."""
    now = int(time.time())
    whole = {"sub": "ada", "iat": now, "exp": now + 3600, **changes}
    return {name: value for name, value in whole.items() if value is not None}


def shared(payload: dict[str, Any] | None = None, secret: str = SECRET, **changes: Any) -> str:
    """A token signed with the shared secret."""
    return jwt.encode(payload or claims(**changes), secret, "HS256")


class IdentityProvider:
    """The identity provider's server and keys."""

    def __init__(self, algorithm: str = "RS256") -> None:
        self.server = FakeServer()
        self.url = f"{self.server.url}/.well-known/jwks.json"
        self._numbers = itertools.count()
        self.published: list[dict[str, Any]] = []
        self.rotate(algorithm)

    def __enter__(self) -> Self:
        self.server.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.__exit__()

    @property
    def fetches(self) -> int:
        return len(self.server.received)

    def rotate(self, algorithm: str = "RS256", *, keep: bool = False) -> None:
        """Sign with a new key from now on. The old one is no longer published unless ``keep``."""
        number = next(self._numbers)
        self.algorithm, self.key_id = algorithm, f"key-{number}"
        self.key = private_key(algorithm, number)
        published = {**public_jwk(self.key), "kid": self.key_id, "alg": algorithm, "use": "sig"}
        self.published = [*(self.published if keep else []), published]
        self.publish(*self.published)

    def publish(self, *keys: Any) -> None:
        self.server.behaviour = responding(200, {"keys": list(keys)})

    def token(self, payload: dict[str, Any] | None = None, headers: dict[str, Any] | None = None, **changes: Any) -> str:
        return jwt.encode(payload or claims(**changes), self.key, self.algorithm, {"kid": self.key_id, **(headers or {})})


def encoded(part: Any) -> str:
    raw = part if isinstance(part, bytes) else json.dumps(part).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def signed_with(secret: bytes, header: dict[str, Any], payload: Any) -> str:
    """A token signed with HMAC, whatever its header declares."""
    signed = f"{encoded(header)}.{encoded(payload)}"
    return f"{signed}.{encoded(hmac.digest(secret, signed.encode(), 'sha256'))}"
