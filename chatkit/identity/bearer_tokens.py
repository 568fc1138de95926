"""Bearer tokens: JSON Web Tokens of the operator's identity provider, verified by PyJWT (RFC 7519, RFC 8725)."""

from __future__ import annotations

import math
import re
from typing import Any

import jwt

from chatkit.identity.jwks import PublishedKeys
from chatkit.identity.user import User
from chatkit.settings import Settings
from chatkit.web import errors

LEEWAY_SECONDS = 30  # by which the provider's clock and ours may differ
MAX_SUBJECT = 255  # OpenID Connect's bound, in ASCII
TOKEN_TYPES = ("jwt", "at+jwt")
BACKCHANNEL_LOGOUT = "http://schemas.openid.net/event/backchannel-logout"


class TokenVerifier:
    """Knows whose a token is.

    Signatures are checked with ``AUTH_JWT_SECRET`` by HS256, or with a key of ``AUTH_JWKS_URL`` by that key's own algorithm.
    The token's header only names the key; ``jku``, ``jwk``, ``x5u`` and ``x5c`` in it are ignored (RFC 8725, 3.1 and 3.10).
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._keys = PublishedKeys(settings.auth_jwks_url) if settings.auth_jwks_url else None

    @property
    def can_verify(self) -> bool:
        """Whether there is anything to check a token with."""
        return bool(self._keys or self._settings.auth_jwt_secret)

    def user(self, token: str) -> User:
        """The user that ``token`` is for.

        Raises:
            InvalidToken: for whatever reason; the log has it.
            SignInUnavailable: the provider's keys can't be had.
        """
        if not self.can_verify:
            raise errors.InvalidToken("a token came, and neither AUTH_JWT_SECRET nor AUTH_JWKS_URL is set")
        claims = self._claims(token)
        subject = claims.get(self._settings.auth_user_claim)
        # Other characters would be a way into a log, or a database's refusal.
        if not isinstance(subject, str) or not re.fullmatch(rf"[!-~]{{1,{MAX_SUBJECT}}}", subject):
            raise errors.InvalidToken(
                f"the claim that AUTH_USER_CLAIM names is not a text of 1 to {MAX_SUBJECT} ASCII characters without spaces"
            )
        agents = _at(claims, self._settings.agent_claim) if self._settings.agent_claim else None
        held = agents if isinstance(agents, list) else [agents]
        agent = next((name for name in self._settings.agent_names if name in held), None)
        known = {name: _at(claims, name) for name in self._settings.state_claims}
        return User("user", subject, agent, {name: value for name, value in known.items() if _is_primitive(value)})

    def _claims(self, token: str) -> dict[str, Any]:
        try:
            key, algorithm = self._key_for(token)
            verified = jwt.decode_complete(
                token,
                key,
                algorithms=[algorithm],
                issuer=self._settings.auth_jwt_issuer,
                leeway=LEEWAY_SECONDS,
                options={"require": ["exp"], "verify_aud": False, "enforce_minimum_key_length": True},
            )
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError) as error:
            raise errors.InvalidToken("the token does not hold") from error
        claims: dict[str, Any] = verified["payload"]
        _check_type(verified["header"], claims)
        self._check_audience(claims)
        return claims

    def _key_for(self, token: str) -> tuple[Any, str]:
        """The key to check ``token`` with, and the only algorithm that will do."""
        if self._keys is None:
            return self._settings.auth_jwt_secret, "HS256"
        key = self._keys.find(jwt.get_unverified_header(token).get("kid"))
        return key, key.algorithm_name

    def _check_audience(self, claims: dict[str, Any]) -> None:
        """Refuse a token that was issued for another service.

        One that says for whom it is has to name us (RFC 7519, 4.1.3), so without ``AUTH_JWT_AUDIENCE`` it is refused. Some
        say, in place of that, to which client they were issued: Cognito's access tokens (``client_id``), Clerk's (``azp``).
        """
        ours = self._settings.auth_jwt_audiences
        named = claims.get("aud")
        if named is None and ours:
            named = claims.get("client_id", claims.get("azp"))
        if named is None and not ours:
            return
        if not ours:
            raise errors.InvalidToken("the token is for an audience, and AUTH_JWT_AUDIENCE is not set")
        if not any(name in ours for name in (named if isinstance(named, list) else [named])):
            raise errors.InvalidToken("the token's audience is not in AUTH_JWT_AUDIENCE")


def _check_type(header: dict[str, Any], claims: dict[str, Any]) -> None:
    """Refuse what a provider signs for other purposes, such as the logout tokens of OpenID Connect (RFC 8725, 3.11 and 3.12).

    ``typ`` is a media type, whose case and ``application/`` don't matter (RFC 7515, 4.1.9). Not all providers send it.
    """
    type_ = header.get("typ", "JWT")
    if not isinstance(type_, str) or type_.lower().removeprefix("application/") not in TOKEN_TYPES:
        raise errors.InvalidToken("the token's typ is neither JWT nor at+jwt")
    events = claims.get("events")
    if isinstance(events, dict) and BACKCHANNEL_LOGOUT in events:
        raise errors.InvalidToken("the token is a logout token")


def _at(claims: dict[str, Any], name: str) -> Any:
    """The claim ``name``, else what ``name`` leads to when its dots are taken for a path, as in ``app_metadata.plan``."""
    if name in claims:
        return claims[name]
    value: Any = claims
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _is_primitive(value: Any) -> bool:
    return isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))
