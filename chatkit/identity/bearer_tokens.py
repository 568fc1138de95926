"""Verification of bearer tokens: JSON Web Tokens of the operator's identity provider (RFC 7519, RFC 8725)."""

from __future__ import annotations

import math
import re
from typing import Any

import jwt

from chatkit.identity.jwks import JwksClient
from chatkit.identity.user import User
from chatkit.settings import Settings
from chatkit.web import errors

LEEWAY_SECONDS = 30  # between the provider's clock and ours
MAX_SUBJECT = 255  # ASCII characters, the limit of OpenID Connect
TOKEN_TYPES = ("jwt", "at+jwt")
BACKCHANNEL_LOGOUT = "http://schemas.openid.net/event/backchannel-logout"


class TokenVerifier:
    """Verifies bearer tokens.

    Signatures are verified with ``AUTH_JWT_SECRET`` and HS256, or with a key of ``AUTH_JWKS_URL`` and that key's algorithm.
    The token's header only selects the key; ``jku``, ``jwk``, ``x5u`` and ``x5c`` in it are ignored (RFC 8725, 3.1 and 3.10).
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._jwks = JwksClient(settings.auth_jwks_url) if settings.auth_jwks_url else None

    @property
    def can_verify(self) -> bool:
        """Whether sign-in is set up."""
        return bool(self._jwks or self._settings.auth_jwt_secret)

    def user(self, token: str) -> User:
        """Verify ``token`` and return its user.

        Raises:
            InvalidToken: the token is invalid; the log has the reason.
            SignInUnavailable: the JWKS can't be fetched.
        """
        if not self.can_verify:
            raise errors.InvalidToken("neither AUTH_JWT_SECRET nor AUTH_JWKS_URL is set")
        claims = self._verify(token)
        subject = claims.get(self._settings.auth_user_claim)
        # Other characters could forge log lines, or be rejected by the database.
        if not isinstance(subject, str) or not re.fullmatch(rf"[!-~]{{1,{MAX_SUBJECT}}}", subject):
            raise errors.InvalidToken(
                f"the claim named by AUTH_USER_CLAIM is not a string of 1 to {MAX_SUBJECT} ASCII characters without spaces"
            )
        named = _find_claim(claims, self._settings.agent_claim) if self._settings.agent_claim else None
        candidates = named if isinstance(named, list) else [named]
        agent = next((name for name in self._settings.agent_names if name in candidates), None)
        state = {name: _find_claim(claims, name) for name in self._settings.state_claims}
        return User("user", subject, agent, {name: value for name, value in state.items() if _is_primitive(value)})

    def _verify(self, token: str) -> dict[str, Any]:
        try:
            key, algorithm = self._key_for(token)
            decoded = jwt.decode_complete(
                token,
                key,
                algorithms=[algorithm],
                issuer=self._settings.auth_jwt_issuer,
                leeway=LEEWAY_SECONDS,
                options={"require": ["exp"], "verify_aud": False, "enforce_minimum_key_length": True},
            )
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError) as error:
            raise errors.InvalidToken("verification failed") from error
        claims: dict[str, Any] = decoded["payload"]
        _check_type(decoded["header"], claims)
        self._check_audience(claims)
        return claims

    def _key_for(self, token: str) -> tuple[Any, str]:
        """Return the key that verifies ``token``, and the only algorithm that is accepted."""
        if self._jwks is None:
            return self._settings.auth_jwt_secret, "HS256"
        key = self._jwks.find(jwt.get_unverified_header(token).get("kid"))
        return key, key.algorithm_name

    def _check_audience(self, claims: dict[str, Any]) -> None:
        """Reject a token that was issued for another service.

        A token with an audience has to name this service (RFC 7519, 4.1.3), so without ``AUTH_JWT_AUDIENCE`` it is rejected. In
        place of ``aud``, Cognito's access tokens have ``client_id``, and Clerk's tokens ``azp``.
        """
        accepted = self._settings.auth_jwt_audiences
        audience = claims.get("aud")
        if audience is None and accepted:
            audience = claims.get("client_id", claims.get("azp"))
        if audience is None and not accepted:
            return
        if not accepted:
            raise errors.InvalidToken("the token has an audience, and AUTH_JWT_AUDIENCE is not set")
        if not any(name in accepted for name in (audience if isinstance(audience, list) else [audience])):
            raise errors.InvalidToken("the token's audience is not in AUTH_JWT_AUDIENCE")


def _check_type(header: dict[str, Any], claims: dict[str, Any]) -> None:
    """Reject tokens for other purposes, such as the logout tokens of OpenID Connect (RFC 8725, 3.11 and 3.12).

    ``typ`` is a media type: case-insensitive, and ``application/`` may be omitted (RFC 7515, 4.1.9). Not all providers send it.
    """
    type_ = header.get("typ", "JWT")
    if not isinstance(type_, str) or type_.lower().removeprefix("application/") not in TOKEN_TYPES:
        raise errors.InvalidToken("the token's typ is neither JWT nor at+jwt")
    events = claims.get("events")
    if isinstance(events, dict) and BACKCHANNEL_LOGOUT in events:
        raise errors.InvalidToken("the token is a logout token")


def _find_claim(claims: dict[str, Any], name: str) -> Any:
    """Return the claim ``name``, else the nested claim with this dotted path, such as ``app_metadata.plan``."""
    if name in claims:
        return claims[name]
    value: Any = claims
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _is_primitive(value: Any) -> bool:
    return isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))
