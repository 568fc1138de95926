"""The settings, read once from the environment. No other module reads the environment.

The process's environment takes precedence over the file ``.env`` beside ``app.py``. A blank variable counts as not set, so that
a copy of ``.env.example`` is valid.
"""

from __future__ import annotations

import difflib
import functools
import os
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from dataclasses import fields as dataclass_fields
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from dotenv import dotenv_values
from marshmallow import EXCLUDE, Schema, ValidationError, fields, validate, validates_schema

PROJECT = Path(__file__).resolve().parent.parent
INSTANCE = PROJECT / "instance"
MAX_SESSION_TTL = 600  # seconds; OpenAI's maximum and default
MIN_SECRET = 32  # characters
MAX_ATTACHMENT_BYTES = 8 * 1024 * 1024  # uploads are held in memory
MAX_MESSAGE_ATTACHMENTS = 10
RANDOM_HEX = "`python3 -c 'import secrets; print(secrets.token_hex(32))'`"


class SettingsError(Exception):
    """One or more settings are invalid. The message names each variable and how to correct it, but contains no values."""


class BackendName(StrEnum):
    HOSTED = "hosted"
    SELFHOSTED = "selfhosted"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings. ``None`` means not set: OpenAI or the user of the setting has a default."""

    environment: Literal["development", "production"]
    backend: BackendName
    openai_api_key: str | None = field(repr=False)
    workflow_id: str | None = field(repr=False)
    workflow_version: str | None
    api_base: str
    session_ttl: int | None
    max_requests_per_minute: int | None
    file_upload: bool | None
    file_upload_max_files: int | None
    file_upload_max_mb: int | None
    history: bool | None
    history_recent_threads: int | None
    tracing: bool | None
    agent: str | None
    agent_headers: tuple[str, ...]
    composer: Mapping[str, Any]
    """``models``, ``tools`` and, if there are any, ``attachments``, as in ChatKit's option ``composer``."""
    model: str | None
    title_model: str | None
    transcription_model: str
    instructions: str
    turn_seconds: int
    on_disconnect: str
    """What happens to a response when its reader disconnects, unless the request says: ``continue`` or ``stop``."""
    retention_days: int | None
    allowed_origins: tuple[re.Pattern[str], ...]
    """Origins of the pages that may call the API, including that of the host page if it is known."""
    host_page: bool
    domain_key: str
    database_url: str = field(repr=False)
    database_url_given: bool
    """Whether it is not the default."""
    database_connections: int  # per process
    secret_key: str = field(repr=False)
    secret_key_fallbacks: tuple[str, ...] = field(repr=False)
    """Former values of ``secret_key``, whose signatures are still accepted."""
    auth_required: bool
    auth_jwt_secret: str | None = field(repr=False)
    auth_jwks_url: str | None
    auth_jwt_issuer: str | None
    auth_jwt_audiences: tuple[str, ...]
    auth_user_claim: str
    auth_keep_conversations: bool
    agent_claim: str | None
    workflows: Mapping[str, str] = field(repr=False)
    agents: Mapping[str, str]
    state_claims: tuple[str, ...]
    tokens_per_day: int | None
    """Of one user."""
    rate_limit: tuple[int, int]
    """Sessions per minute, for one user and for one address."""
    redis_url: str | None = field(repr=False)
    proxy_hops: int
    log_level: str
    port: int
    workers: int
    threads: int
    stop_seconds: int
    drain_seconds: int
    notices: tuple[str, ...]
    """Warnings to log at start-up about settings that are valid but probably not intended."""

    @property
    def development(self) -> bool:
        """Whether this process serves a developer on their own machine."""
        return self.environment == "development"

    @property
    def agent_names(self) -> tuple[str, ...]:
        """The names that ``CHATKIT_AGENT_CLAIM`` can select, by priority."""
        return tuple(self.workflows if self.backend is BackendName.HOSTED else self.agents)

    @classmethod
    def load(cls, environ: Mapping[str, str], dotenv: Mapping[str, str | None] | None = None) -> Settings:
        """Read the settings from ``environ``, then from ``dotenv``.

        Raises:
            SettingsError: it names all invalid variables, not only the first.
        """
        merged = {**(dotenv or {}), **environ}
        given = {name: value.strip() for name, value in merged.items() if value and value.strip()}
        try:
            loaded = _SettingsSchema().load(given)
        except ValidationError as error:
            raise SettingsError(_format(error)) from None
        return _with_defaults(loaded, _platform_host(given), notices=_notices(given, environ, dotenv or {}, loaded["api_base"]))


@functools.cache
def load() -> Settings:
    """Return the settings of this process. Raises as ``Settings.load`` does.

    The other variables of ``.env`` are put into the environment, where agents and their libraries look for them. The service's
    own are not: what agents start should not inherit its secrets.
    """
    dotenv = dotenv_values(PROJECT / ".env")
    for name, value in dotenv.items():
        if value and name not in VARIABLES:
            os.environ.setdefault(name, value)
    return Settings.load(os.environ, dotenv)


def _origin_pattern(text: str) -> re.Pattern[str]:
    """Compile an entry of ``CHATKIT_ALLOWED_ORIGINS``: an exact origin, or one with ``*`` in a label of the host name.

    ``*`` matches letters, digits and hyphens, but no dot. It is not allowed in the last two labels, so that one owner controls
    all matching names.
    """
    text = text.strip().rstrip("/").lower()
    if text == "*":
        raise ValidationError(
            "'*' would let every website request sessions at your expense; list the origins of your frontend."
        )
    if "@" in text:  # it is not quoted, because it may have a password
        raise ValidationError("an origin has no user name and no password.")
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:
        raise ValidationError(f"{text!r} is not an origin.") from None
    host = url.hostname or ""
    if url.scheme not in ("http", "https") or not host or url.netloc.startswith("*:") or text != f"{url.scheme}://{url.netloc}":
        raise ValidationError(f"{text!r} is not an origin: write scheme, host and port only, as in https://app.example.com.")
    if not re.fullmatch(r"[a-z0-9.*-]+|[0-9a-f:.]+", host):
        raise ValidationError(f"{text!r} is not an origin a browser sends: plain ASCII host names only (xn--… for others).")
    if "*" in ".".join(host.split(".")[-2:]):
        raise ValidationError(f"{text!r} is too wide: '*' may not stand in the last two parts of the host name.")
    bracketed = f"[{host}]" if ":" in host else host
    default_port = {"http": 80, "https": 443}[url.scheme]
    origin = f"{url.scheme}://{bracketed}" + (f":{port}" if port not in (None, default_port) else "")
    return re.compile(re.escape(origin).replace(r"\*", "[a-z0-9-]+") + r"\Z")


_LOCALHOST = re.compile(r"http://(localhost|127\.0\.0\.1|\[::1\])(:[0-9]+)?\Z")
"""Any port, because dev servers use the next one when theirs is in use."""

# Variables that platforms set to a service's public host name.
_PLATFORM_HOSTS = {
    "RENDER_EXTERNAL_HOSTNAME": "{}",
    "RAILWAY_PUBLIC_DOMAIN": "{}",
    "FLY_APP_NAME": "{}.fly.dev",
    "HEROKU_APP_DEFAULT_DOMAIN_NAME": "{}",  # after `heroku labs:enable runtime-dyno-metadata`
}


def _platform_host(given: Mapping[str, str]) -> str | None:
    """Return this service's public host name if the platform provides it."""
    hosts = (form.format(given[name]) for name, form in _PLATFORM_HOSTS.items() if name in given)
    return next((host for host in hosts if re.fullmatch(r"[a-z0-9-]+(\.[a-z0-9-]+)+", host)), None)


class _Origins(fields.Field[tuple[re.Pattern[str], ...]]):
    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> tuple[re.Pattern[str], ...]:
        return tuple(_origin_pattern(part) for part in value.split(",") if part.strip())


def _check_url(text: str, example: str, reason: str) -> str:
    """Require ``https://``, for ``reason``; ``http://`` is allowed for localhost."""
    try:
        url = urlsplit(text)
        host, _port = url.hostname, url.port
    except ValueError:
        host = None
    if not host or url.scheme not in ("http", "https") or url.query or url.fragment or "@" in url.netloc:
        raise ValidationError(f"must be an address such as {example}.")
    if url.scheme == "http" and host not in ("localhost", "127.0.0.1", "::1"):
        raise ValidationError(f"must begin with https://, because {reason}.")
    return text


class _ApiBase(fields.String):
    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> str:
        base = _check_url(value.rstrip("/"), "https://api.openai.com", "the API key is sent there")
        if base.endswith("/v1"):
            raise ValidationError("must not end in /v1: the service adds /v1/chatkit/sessions itself.")
        return base


class _JwksUrl(fields.String):
    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> str:
        example = "https://login.example.com/.well-known/jwks.json"
        return _check_url(value, example, "an attacker who can replace the keys can impersonate any user")


class _Names(fields.Field[tuple[str, ...]]):
    """A comma-separated list of names in printable ASCII without spaces."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> tuple[str, ...]:
        names = tuple(name.strip() for name in value.split(","))
        for name in names:
            _printable(name)
        return names


class _SecretKeys(fields.Field[tuple[str, ...]]):
    """A comma-separated list of secret keys."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> tuple[str, ...]:
        keys = tuple(key.strip() for key in value.split(","))
        if any(len(key) < MIN_SECRET for key in keys):
            raise ValidationError("must be former values of SECRET_KEY, comma-separated, each of at least 32 characters.")
        return keys


class _NamedValues(fields.Field[Mapping[str, str]]):
    """A comma-separated list of ``name=value``. ``validator`` checks each value."""

    def __init__(self, example: str, validator: Callable[[str], Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._example = example
        self._validator = validator

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> Mapping[str, str]:
        pairs = [tuple(part.strip() for part in pair.split("=", 1)) for pair in value.split(",")]
        by_name = {pair[0]: pair[1] for pair in pairs if len(pair) == 2 and all(pair)}
        if len(by_name) != len(pairs):
            raise ValidationError(f"must be names and what they stand for, each name once, as in {self._example}.")
        for item in by_name.values():
            self._validator(item)
        return by_name


class _ModelSchema(Schema):
    id = fields.String(required=True, validate=validate.Length(1))
    label = fields.String(required=True)
    description = fields.String()
    disabled = fields.Boolean()
    default = fields.Boolean()


class _ToolSchema(Schema):
    id = fields.String(required=True, validate=validate.Length(1))
    label = fields.String(required=True)
    icon = fields.String(required=True)
    shortLabel = fields.String()  # noqa: N815  as in ChatKit's options
    placeholderOverride = fields.String()  # noqa: N815
    pinned = fields.Boolean()
    persistent = fields.Boolean()


_READABLE_FILES = {
    "image/png": [".png"],
    "image/jpeg": [".jpg", ".jpeg"],
    "image/webp": [".webp"],
    "image/gif": [".gif"],
    "application/pdf": [".pdf"],
    "application/json": [".json"],
    "text/plain": [".txt"],
    "text/markdown": [".md"],
    "text/csv": [".csv"],
}
"""The extensions, by media type, of files that OpenAI's models read. Texts are given to any model as text."""


class _AttachmentsSchema(Schema):
    enabled = fields.Boolean(required=True)
    maxSize = fields.Integer(  # noqa: N815
        strict=True, validate=validate.Range(1, MAX_ATTACHMENT_BYTES), load_default=MAX_ATTACHMENT_BYTES
    )
    maxCount = fields.Integer(  # noqa: N815
        strict=True, validate=validate.Range(1, MAX_MESSAGE_ATTACHMENTS), load_default=MAX_MESSAGE_ATTACHMENTS
    )
    accept = fields.Dict(
        keys=fields.String(validate=validate.Regexp(r"[a-z0-9.+*-]+/[a-z0-9.+*-]+\Z")),
        values=fields.List(fields.String(validate=validate.Regexp(r"\.[a-z0-9.]+\Z"))),
        validate=validate.Length(1),
        load_default=_READABLE_FILES.copy,
    )


class _ComposerSchema(Schema):
    """The part of ChatKit's option ``composer`` that the service has to know."""

    attachments = fields.Nested(_AttachmentsSchema)
    models = fields.List(fields.Nested(_ModelSchema), load_default=list)
    tools = fields.List(fields.Nested(_ToolSchema), load_default=list)


class _Composer(fields.Field[Mapping[str, Any]]):
    """A ``_ComposerSchema`` in JSON."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> Mapping[str, Any]:
        example = '{"models": [{"id": "gpt-5.2", "label": "Thorough"}], "tools": []}'
        try:
            composer: dict[str, Any] = _ComposerSchema().loads(value)
        except ValidationError as error:
            raise ValidationError(f"must be like {example}; look at {_first(error.messages)}") from None
        except ValueError:
            raise ValidationError(f"must be JSON like {example}.") from None
        for options in (composer["models"], composer["tools"]):
            if len({option["id"] for option in options}) != len(options):
                raise ValidationError("must have each id once.")
        if not composer.get("attachments", {"enabled": True})["enabled"]:
            del composer["attachments"]
        return composer


def _first(messages: Any, *place: object) -> str:
    """Return the first of nested ``messages``, after the names and numbers that lead to it, those of ``place`` first."""
    if not isinstance(messages, dict):
        return f"{' '.join(map(str, place))}: {messages[0]}"
    name, inner = next(iter(messages.items()))
    return _first(inner, *place, "its members" if name == "_schema" else name)


class _RateLimit(fields.Field[tuple[int, int]]):
    """One number for both a user and an address, or one for each."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> tuple[int, int]:
        numbers = re.fullmatch(r"([1-9]\d{0,8})(?:\s*,\s*([1-9]\d{0,8}))?", value)
        if not numbers:
            raise ValidationError("must be the sessions per minute for one user and for one address, as in 60 or 20,600.")
        return int(numbers[1]), int(numbers[2] or numbers[1])


class _DatabaseUrl(fields.String):
    """An SQLAlchemy URL. ``postgres://``, which platforms use, is replaced by the installed driver's scheme."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> str:
        url, replaced = re.subn(r"^postgres(ql)?(\+psycopg)?://", "postgresql+psycopg://", value)
        if not replaced and not url.startswith("sqlite:///"):
            raise ValidationError("must begin with postgresql:// or sqlite:///.")
        if re.match(r"sqlite:///(\?|:memory:|\Z)|sqlite:.*[?&]mode=memory", url):
            raise ValidationError("must name a file, because each process would have its own database in memory.")
        return url


_printable = validate.Regexp(r"[!-~]+\Z", error="must be printable ASCII without spaces; was it pasted with a line break?")
_agent = validate.Regexp(
    r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*\Z", error="must be package.module:name, as in my_agents.support:agent."
)


def _is_guessable(secret: str) -> bool:
    """Whether ``secret`` is a placeholder from some documentation, or a repeated pattern."""
    letters = re.sub(r"[^a-z]", "", secret.lower())
    placeholder = re.search(
        r"(change|replace)(this|me|it|with)|your(super|own)?(secret|jwt|key)|supersecret|insecure|placeholder", letters
    )
    repeats = any(secret.startswith(secret[length:]) for length in range(1, len(secret) // 2 + 1))
    return bool(placeholder) or repeats


def _check_redis_url(url: str) -> None:
    """Parse the address as Redis's client does at the first connection."""
    import redis

    try:
        redis.Redis.from_url(url).connection_pool.make_connection()
    except Exception:  # noqa: BLE001  of any type, depending on the mistake
        raise ValidationError(
            "has a part that Redis's client does not accept; ssl_cert_reqs, for example, needs rediss://."
        ) from None


def _check_state_claims(names: tuple[str, ...]) -> None:
    """Enforce OpenAI's limits on state variables; it would reject every session."""
    if len(names) > 64 or any(len(name) > 64 for name in names):
        raise ValidationError("must be at most 64 names of at most 64 characters.")


def _check_headers(names: tuple[str, ...]) -> None:
    """Reject the headers that hold a secret. Whatever an agent knows may get into a prompt or a log."""
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9-]+", name) or name.lower() in ("authorization", "cookie", "proxy-authorization"):
            raise ValidationError("must be names of headers, and not Authorization or Cookie, which hold secrets.")


class _Integer(fields.Integer):
    def __init__(self, low: int, high: int | None, unit: str, **kwargs: Any) -> None:
        limits = f"from {low} to {high}" if high is not None else f"of at least {low}"
        error = f"must be a whole number {limits} ({unit})."
        in_range = validate.Range(min=low, max=high, error=error)
        super().__init__(validate=in_range, error_messages={"invalid": error, "too_large": error}, **kwargs)


class _Boolean(fields.Boolean):
    default_error_messages = {"invalid": "must be true or false."}  # noqa: RUF012  as marshmallow declares it


class _SettingsSchema(Schema):
    """The variables. Each error message says how to correct the value."""

    class Meta:
        unknown = EXCLUDE

    environment = fields.String(
        data_key="CHATKIT_ENV",
        load_default="production",
        validate=validate.OneOf(["development", "production"], error="must be development or production."),
    )
    backend = fields.Enum(
        BackendName, by_value=True, data_key="CHATKIT_BACKEND", error_messages={"unknown": "must be hosted or selfhosted."}
    )
    openai_api_key = fields.String(data_key="OPENAI_API_KEY", validate=_printable)
    workflow_id = fields.String(data_key="CHATKIT_WORKFLOW_ID", validate=_printable)
    workflow_version = fields.String(
        data_key="CHATKIT_WORKFLOW_VERSION",
        validate=[
            _printable,
            validate.NoneOf(
                ["latest"],
                error="must not be 'latest': OpenAI accepts the word, and then every message fails. "
                "Leave the variable out to run the latest version.",
            ),
        ],
    )
    api_base = _ApiBase(data_key="CHATKIT_API_BASE", load_default="https://api.openai.com")
    session_ttl = _Integer(1, MAX_SESSION_TTL, "seconds", data_key="CHATKIT_SESSION_TTL")
    max_requests_per_minute = _Integer(1, None, "messages per minute", data_key="CHATKIT_MAX_REQUESTS_PER_MINUTE")
    file_upload = _Boolean(data_key="CHATKIT_FILE_UPLOAD")
    file_upload_max_files = _Integer(1, None, "files", data_key="CHATKIT_FILE_UPLOAD_MAX_FILES")
    file_upload_max_mb = _Integer(1, 512, "megabytes", data_key="CHATKIT_FILE_UPLOAD_MAX_MB")
    history = _Boolean(data_key="CHATKIT_HISTORY")
    history_recent_threads = _Integer(1, None, "threads", data_key="CHATKIT_HISTORY_RECENT_THREADS")
    tracing = _Boolean(data_key="CHATKIT_TRACING")
    agent = fields.String(data_key="CHATKIT_AGENT", validate=_agent)
    agent_headers = _Names(data_key="CHATKIT_AGENT_HEADERS", load_default=(), validate=_check_headers)
    composer = _Composer(data_key="CHATKIT_COMPOSER", load_default=lambda: {"models": [], "tools": []})
    auth_keep_conversations = _Boolean(data_key="AUTH_KEEP_CONVERSATIONS", load_default=False)
    agent_claim = fields.String(data_key="CHATKIT_AGENT_CLAIM", validate=_printable)
    workflows = _NamedValues("pro=wf_…,free=wf_…", _printable, data_key="CHATKIT_WORKFLOWS", load_default=dict)
    agents = _NamedValues(
        "pro=my_agents.support:senior,free=my_agents.support:junior", _agent, data_key="CHATKIT_AGENTS", load_default=dict
    )
    state_claims = _Names(data_key="CHATKIT_STATE_CLAIMS", load_default=(), validate=_check_state_claims)
    model = fields.String(data_key="CHATKIT_MODEL", validate=_printable)
    title_model = fields.String(data_key="CHATKIT_TITLE_MODEL", validate=_printable)
    transcription_model = fields.String(
        data_key="CHATKIT_TRANSCRIPTION_MODEL", load_default="gpt-transcribe", validate=_printable
    )
    instructions = fields.String(data_key="CHATKIT_INSTRUCTIONS", load_default="You are a helpful assistant.")
    turn_seconds = _Integer(1, 3600, "seconds", data_key="CHATKIT_TURN_SECONDS", load_default=120)
    on_disconnect = fields.String(
        data_key="CHATKIT_ON_DISCONNECT",
        load_default="stop",
        validate=validate.OneOf(["continue", "stop"], error="must be continue or stop."),
    )
    retention_days = _Integer(1, 36500, "days", data_key="CHATKIT_RETENTION_DAYS")
    tokens_per_day = _Integer(1, None, "tokens per UTC day and user", data_key="CHATKIT_TOKENS_PER_DAY")
    allowed_origins = _Origins(data_key="CHATKIT_ALLOWED_ORIGINS")
    host_page = _Boolean(data_key="CHATKIT_HOST_PAGE", load_default=True)
    domain_key = fields.String(data_key="CHATKIT_DOMAIN_KEY", load_default="local-dev", validate=_printable)
    database_url = _DatabaseUrl(data_key="DATABASE_URL")
    database_connections = _Integer(1, 100, "connections per process", data_key="CHATKIT_DATABASE_CONNECTIONS", load_default=5)
    secret_key = fields.String(
        data_key="SECRET_KEY",
        validate=validate.Length(min=MIN_SECRET, error="is too short: at least 32 random characters."),
    )
    secret_key_fallbacks = _SecretKeys(data_key="SECRET_KEY_FALLBACKS", load_default=())
    auth_required = _Boolean(data_key="AUTH_REQUIRED", load_default=False)
    auth_jwt_secret = fields.String(
        data_key="AUTH_JWT_SECRET",
        validate=[
            _printable,
            validate.Length(min=MIN_SECRET, error="is too short: HS256 needs at least 32 random characters (RFC 7518)."),
        ],
    )
    auth_jwks_url = _JwksUrl(data_key="AUTH_JWKS_URL")
    auth_jwt_issuer = fields.String(data_key="AUTH_JWT_ISSUER", validate=_printable)
    auth_jwt_audiences = _Names(data_key="AUTH_JWT_AUDIENCE", load_default=())
    auth_user_claim = fields.String(data_key="AUTH_USER_CLAIM", load_default="sub", validate=_printable)
    rate_limit = _RateLimit(data_key="RATE_LIMIT", load_default=(60, 60))
    redis_url = fields.String(
        data_key="REDIS_URL",
        validate=[
            _printable,
            validate.Regexp(r"rediss?://[^/]", error="must be an address such as redis://localhost:6379/0."),
            _check_redis_url,
        ],
    )
    proxy_hops = _Integer(0, 10, "proxies", data_key="PROXY_HOPS")
    log_level = fields.String(
        data_key="LOG_LEVEL",
        load_default="INFO",
        validate=validate.OneOf(["DEBUG", "INFO", "WARNING", "ERROR"], error="must be DEBUG, INFO, WARNING or ERROR."),
    )
    port = _Integer(1, 65535, "a TCP port", data_key="PORT", load_default=8000)
    workers = _Integer(1, 64, "processes", data_key="WEB_CONCURRENCY", load_default=2)
    threads = _Integer(1, 1024, "threads per process", data_key="GUNICORN_THREADS", load_default=256)
    stop_seconds = _Integer(3, 3600, "seconds", data_key="CHATKIT_STOP_SECONDS", load_default=25)
    drain_seconds = _Integer(0, 300, "seconds", data_key="CHATKIT_DRAIN_SECONDS", load_default=0)

    @validates_schema(skip_on_field_errors=False, pass_original=True)
    def _secret_key_in_production(self, data: dict[str, Any], given: Mapping[str, str], **kwargs: Any) -> None:
        if data.get("environment") == "production" and "SECRET_KEY" not in given:
            raise ValidationError(
                f"is missing; it signs the visitor cookie. Set it to the output of {RANDOM_HEX}, the same for all processes, "
                "and keep it. On your own machine, set CHATKIT_ENV=development instead.",
                "SECRET_KEY",
            )

    @validates_schema(skip_on_field_errors=False)
    def _secrets_in_production(self, data: dict[str, Any], **kwargs: Any) -> None:
        """Allow published secrets in development, such as that of a local Supabase."""
        secrets_by_name = {
            "SECRET_KEY": [data.get("secret_key")],
            "SECRET_KEY_FALLBACKS": data.get("secret_key_fallbacks", ()),
            "AUTH_JWT_SECRET": [data.get("auth_jwt_secret")],
        }
        guessable = [
            name for name, values in secrets_by_name.items() if any(value and _is_guessable(value) for value in values)
        ]
        if data.get("environment") == "production" and guessable:
            message = f"is published, or a pattern, so that anyone can guess it. Set it to the output of {RANDOM_HEX}."
            raise ValidationError({name: [message] for name in guessable})

    @validates_schema(skip_on_field_errors=False, pass_original=True)
    def _sign_in(self, data: dict[str, Any], given: Mapping[str, str], **kwargs: Any) -> None:
        if "AUTH_JWT_SECRET" in given and "AUTH_JWKS_URL" in given:
            raise ValidationError(
                "must not be set together with AUTH_JWT_SECRET: tokens are verified with the one or the other.", "AUTH_JWKS_URL"
            )
        if data.get("auth_required") and not given.keys() & {"AUTH_JWT_SECRET", "AUTH_JWKS_URL"}:
            raise ValidationError(
                "is true, but sign-in is not configured: set AUTH_JWT_SECRET or AUTH_JWKS_URL.", "AUTH_REQUIRED"
            )
        restricted = given.keys() & {"AUTH_JWT_ISSUER", "AUTH_JWT_AUDIENCE"}
        if data.get("environment") == "production" and "AUTH_JWKS_URL" in given and not restricted:
            raise ValidationError(
                "must come with AUTH_JWT_ISSUER or AUTH_JWT_AUDIENCE: some providers use the same keys for all customers.",
                "AUTH_JWKS_URL",
            )


VARIABLES = frozenset(str(declared.data_key) for declared in _SettingsSchema().fields.values())
"""The names of all variables that this service reads."""


def _with_defaults(loaded: dict[str, Any], platform_host: str | None, notices: tuple[str, ...]) -> Settings:
    """Add the defaults, including those that depend on other settings, and notices about them."""
    development = loaded["environment"] == "development"
    unset = dict.fromkeys(declared.name for declared in dataclass_fields(Settings))
    defaults: dict[str, Any] = {
        "backend": BackendName.SELFHOSTED if development else BackendName.HOSTED,
        "allowed_origins": (_LOCALHOST if development else _origin_pattern("http://localhost:3000"),),
        "database_url": f"sqlite:///{INSTANCE / 'chatkit.db'}",
        "database_url_given": "database_url" in loaded,
        "proxy_hops": 0 if development else 1,
    }
    settings = {**unset, **defaults, **loaded}
    own_origins = _own_origins(settings, platform_host)
    settings["allowed_origins"] += tuple(_origin_pattern(origin) for origin in own_origins)
    if settings["secret_key"] is None:
        settings["secret_key"] = _development_secret_key()
    if settings["backend"] is BackendName.HOSTED:
        notices += (
            "CHATKIT_BACKEND=hosted: OpenAI ends hosted workflows on 30 November 2026. After that only "
            "CHATKIT_BACKEND=selfhosted works; see docs/moving-from-agent-builder.md.",
        )
        for variable, value in {
            "CHATKIT_AGENT": settings["agent"],
            "CHATKIT_TOKENS_PER_DAY": settings["tokens_per_day"],
        }.items():
            if value:
                notices += (f"{variable} is set and not used, because CHATKIT_BACKEND is hosted.",)
        if settings["auth_keep_conversations"]:
            notices += (
                "AUTH_KEEP_CONVERSATIONS is set and not used, because OpenAI stores the conversations of hosted sessions.",
            )
    if not development:
        if settings["backend"] is BackendName.SELFHOSTED and not (settings["agent"] or settings["openai_api_key"]):
            notices += ("Neither CHATKIT_AGENT nor OPENAI_API_KEY is set: users get the replies of the offline demo.",)
        if "allowed_origins" not in loaded:
            allowed = " and ".join(["http://localhost:3000", *own_origins])
            notice = f"CHATKIT_ALLOWED_ORIGINS is not set: only pages from {allowed} may call the API."
            if settings["host_page"] and not own_origins:
                notice += " To use the page at /, also list this service's own origin, such as https://chat.example.com."
            notices += (notice,)
        if settings["backend"] is BackendName.SELFHOSTED and not settings["database_url_given"]:
            notices += (
                "DATABASE_URL is not set: conversations are stored in a SQLite file, which most platforms delete at a restart.",
            )
    complete = Settings(**{**settings, "notices": notices})
    if bool(complete.agent_claim) != bool(complete.agent_names):
        table = "CHATKIT_WORKFLOWS" if complete.backend is BackendName.HOSTED else "CHATKIT_AGENTS"
        notice = f"Only one of CHATKIT_AGENT_CLAIM and {table} is set: all users get the same agent."
        return replace(complete, notices=(*notices, notice))
    return complete


def _own_origins(settings: dict[str, Any], platform_host: str | None) -> list[str]:
    """Return the origins of the host page that need not be listed in ``CHATKIT_ALLOWED_ORIGINS``."""
    if not settings["host_page"]:
        return []
    if settings["environment"] == "development":
        return [f"http://{host}:{settings['port']}" for host in ("localhost", "127.0.0.1")]
    return [f"https://{platform_host}"] if platform_host else []


def _development_secret_key() -> str:
    """Return a random key, stored beside the SQLite file so that visitors survive a restart."""
    path = INSTANCE / "secret_key"
    try:
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            path.touch(mode=0o600)
            path.write_text(secrets.token_hex(32))
        return path.read_text()
    except OSError as error:
        raise SettingsError(f"SECRET_KEY is not set, and no key can be stored in {path}: {error.strerror}.") from None


def _notices(
    given: Mapping[str, str], environ: Mapping[str, str], dotenv: Mapping[str, str | None], api_base: str
) -> tuple[str, ...]:
    unknown = sorted(name for name in given if name.startswith("CHATKIT_") and name not in VARIABLES)
    similar = {name: difflib.get_close_matches(name, VARIABLES, n=2) for name in unknown}
    notices = [
        f"{name} is not a setting of this service" + (f"; did you mean {' or '.join(similar[name])}?" if similar[name] else ".")
        for name in unknown
    ]
    if dotenv.get("OPENAI_API_KEY") and environ.get("OPENAI_API_KEY") not in (None, dotenv["OPENAI_API_KEY"]):
        notices.append(
            "OPENAI_API_KEY has one value in the environment and another in .env; the environment's is used. If OpenAI does "
            "not find the workflow, the two keys belong to different projects."
        )
    if given.get("OPENAI_BASE_URL", f"{api_base}/v1").rstrip("/") != f"{api_base}/v1":
        notices.append(
            f"OPENAI_BASE_URL is set, but this service calls OpenAI at CHATKIT_API_BASE, {api_base}: set that, without /v1."
        )
    notices += _public_suffix_notices(given.get("CHATKIT_ALLOWED_ORIGINS", ""))
    if not given.keys() & {"AUTH_JWT_SECRET", "AUTH_JWKS_URL"}:
        claims = {"AUTH_USER_CLAIM", "CHATKIT_AGENT_CLAIM", "CHATKIT_STATE_CLAIMS"}
        unused = sorted(given.keys() & {"AUTH_JWT_ISSUER", "AUTH_JWT_AUDIENCE", "AUTH_KEEP_CONVERSATIONS", *claims})
        notices += [f"{name} is set and not used, because neither AUTH_JWT_SECRET nor AUTH_JWKS_URL is." for name in unused]
    return tuple(notices)


def _public_suffix_notices(origins: str) -> list[str]:
    """Warn of each origin with a wildcard directly below a public suffix, such as ``co.uk`` or ``vercel.app``."""
    if "*" not in origins:
        return []
    from publicsuffixlist import PublicSuffixList  # reads a file of 340 KB

    suffixes = PublicSuffixList()
    notices = []
    for origin in (text.strip().rstrip("/").lower() for text in origins.split(",")):
        fixed = origin.rpartition("*")[2].partition(".")[2].partition(":")[0]
        if "*" in origin and suffixes.publicsuffix(fixed) == fixed:
            notices.append(
                f"CHATKIT_ALLOWED_ORIGINS: anyone can register names below {fixed}, and call the API if they match {origin}."
            )
    return notices


def _format(error: ValidationError) -> str:
    messages = error.messages_dict
    return " ".join(f"{name} {'; '.join(texts)}".replace(".; ", "; ") for name, texts in sorted(messages.items()))
