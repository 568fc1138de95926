"""Settings: defaults, and all mistakes named at once, without their values."""

from __future__ import annotations

import os
import re
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest

from chatkit import settings as module
from chatkit.settings import VARIABLES, BackendName, Settings, SettingsError

KEY = "a-key-of-these-tests-and-of-no-service"
PRODUCTION = {"SECRET_KEY": KEY}


def load(**variables: str) -> Settings:
    return Settings.load({**PRODUCTION, **variables})


def mistakes(**variables: str) -> str:
    with pytest.raises(SettingsError) as caught:
        load(**variables)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_production_defaults() -> None:
    settings = load()
    assert (settings.environment, settings.backend, settings.api_base) == (
        "production",
        BackendName.HOSTED,
        "https://api.openai.com",
    )
    assert (settings.port, settings.workers, settings.threads, settings.proxy_hops) == (8000, 2, 256, 1)
    assert settings.session_ttl is None
    assert settings.allowed_origins[0].fullmatch("http://localhost:3000")
    assert settings.database_url.endswith("/instance/chatkit.db")


def test_development_defaults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "INSTANCE", tmp_path / "instance")
    settings = Settings.load({"CHATKIT_ENV": "development"})
    assert (settings.backend, settings.proxy_hops) == (BackendName.SELFHOSTED, 0)
    assert len(settings.secret_key) == 64
    assert Settings.load({"CHATKIT_ENV": "development"}).secret_key == settings.secret_key
    assert (tmp_path / "instance" / "secret_key").stat().st_mode & 0o077 == 0
    assert settings.notices == ()


def test_development_key_that_cannot_be_stored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(module, "INSTANCE", tmp_path / "file" / "instance")
    assert "SECRET_KEY is not set, and no key can be stored in " in mistakes(CHATKIT_ENV="development", SECRET_KEY="")


def test_production_requires_a_secret_key() -> None:
    with pytest.raises(SettingsError, match="SECRET_KEY is missing") as caught:
        Settings.load({})
    assert "secrets.token_hex" in str(caught.value)


def test_settings_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        load().port = 1  # type: ignore[misc]


def test_blank_variable_is_unset_and_overrides_the_file() -> None:
    settings = Settings.load({**PRODUCTION, "PORT": " ", "OPENAI_API_KEY": ""}, {"OPENAI_API_KEY": "sk-file", "PORT": "1"})
    assert settings.port == 8000
    assert settings.openai_api_key is None


def test_environment_overrides_the_file() -> None:
    settings = Settings.load({**PRODUCTION, "PORT": "81"}, {"PORT": "80", "WEB_CONCURRENCY": "4"})
    assert (settings.port, settings.workers) == (81, 4)


def test_surrounding_whitespace_is_stripped() -> None:
    assert load(OPENAI_API_KEY=" sk-abc\n").openai_api_key == "sk-abc"


WRONG = {
    "CHATKIT_ENV": "staging-XYZZY",
    "CHATKIT_BACKEND": "XYZZY",
    "OPENAI_API_KEY": "sk XYZZY",
    "CHATKIT_WORKFLOW_ID": "wf\tXYZZY",
    "CHATKIT_WORKFLOW_VERSION": "latest",
    "CHATKIT_API_BASE": "ftp://XYZZY",
    "CHATKIT_SESSION_TTL": "601",
    "CHATKIT_MAX_REQUESTS_PER_MINUTE": "0",
    "CHATKIT_FILE_UPLOAD": "XYZZY",
    "CHATKIT_FILE_UPLOAD_MAX_FILES": "-1",
    "CHATKIT_FILE_UPLOAD_MAX_MB": "513",
    "CHATKIT_HISTORY": "XYZZY",
    "CHATKIT_HISTORY_RECENT_THREADS": "1.5",
    "CHATKIT_TRACING": "XYZZY",
    "CHATKIT_AGENT": "XYZZY",
    "CHATKIT_AGENT_CLAIM": "XY ZZY",
    "CHATKIT_AGENT_HEADERS": "XYZZY,Cookie",
    "CHATKIT_COMPOSER": '{"models": [{"id": "XYZZY"}]}',
    "CHATKIT_WORKFLOWS": "XYZZY",
    "CHATKIT_AGENTS": "pro=XYZZY",
    "CHATKIT_STATE_CLAIMS": ",XYZZY",
    "CHATKIT_MODEL": "gpt XYZZY",
    "CHATKIT_TITLE_MODEL": "gpt XYZZY",
    "CHATKIT_TRANSCRIPTION_MODEL": "gpt XYZZY",
    "CHATKIT_INSTRUCTIONS": "",
    "CHATKIT_TURN_SECONDS": "0",
    "CHATKIT_ON_DISCONNECT": "XYZZY",
    "CHATKIT_RETENTION_DAYS": "0",
    "CHATKIT_TOKENS_PER_DAY": "0",
    "CHATKIT_ALLOWED_ORIGINS": "*",
    "CHATKIT_HOST_PAGE": "XYZZY",
    "CHATKIT_DOMAIN_KEY": "domain pk XYZZY",
    "CHATKIT_DATABASE_CONNECTIONS": "0",
    "DATABASE_URL": "mysql://u:XYZZY@h/d",
    "SECRET_KEY": "XYZZY",
    "SECRET_KEY_FALLBACKS": "XYZZY",
    "AUTH_REQUIRED": "XYZZY",
    "AUTH_JWT_SECRET": "XYZZY",
    "AUTH_JWKS_URL": "http://XYZZY",
    "AUTH_JWT_ISSUER": "XY ZZY",
    "AUTH_JWT_AUDIENCE": "a,XY ZZY",
    "AUTH_USER_CLAIM": "XY ZZY",
    "AUTH_KEEP_CONVERSATIONS": "XYZZY",
    "RATE_LIMIT": "0",
    "REDIS_URL": "XYZZY://localhost",
    "PROXY_HOPS": "XYZZY",
    "LOG_LEVEL": "XYZZY",
    "PORT": "70000",
    "WEB_CONCURRENCY": "0",
    "GUNICORN_THREADS": "XYZZY",
    "CHATKIT_STOP_SECONDS": "2",
    "CHATKIT_DRAIN_SECONDS": "-1",
}


def test_all_mistakes_are_named_without_values() -> None:
    assert WRONG.keys() == VARIABLES, "a new setting needs a wrong value here"
    message = mistakes(**WRONG)
    for name in WRONG.keys() - {"CHATKIT_INSTRUCTIONS"}:  # any text is valid
        assert re.search(rf"\b{name} (must|is too short|'\*' would)", message), name
    assert "ZZY" not in message
    assert "601" not in message


@pytest.mark.parametrize(
    "address",
    [
        "redis://localhost:XYZZY/0",
        "redis://localhost:70000/0",
        "redis://localhost:6379/0?ssl_cert_reqs=none",
        "rediss://localhost:6379/0?ssl_cert_reqs=XYZZY",
        "redis://localhost:6379/0?XYZZY=1",
        "redis://localhost:6379/0?socket_timeout=XYZZY",
    ],
)
def test_address_that_the_client_of_redis_does_not_accept(address: str) -> None:
    message = mistakes(REDIS_URL=address)
    assert message.startswith("REDIS_URL has a part")
    assert "XYZZY" not in message


@pytest.mark.parametrize("address", ["rediss://:pw@h:6380/1?ssl_cert_reqs=none", "redis://u:pw@[::1]:6379", "redis://h"])
def test_address_of_redis(address: str) -> None:
    assert load(REDIS_URL=address).redis_url == address


@pytest.mark.parametrize(
    "address", ["sqlite:///", "sqlite:///?timeout=1", "sqlite:///:memory:", "sqlite:///file:x?mode=memory&uri=true"]
)
def test_database_in_memory_is_refused(address: str) -> None:
    assert "DATABASE_URL must name a file" in mistakes(DATABASE_URL=address)


def test_workflow_version_latest_is_refused() -> None:
    assert "every message fails" in mistakes(CHATKIT_WORKFLOW_VERSION="latest")


@pytest.mark.parametrize("ttl", ["0", "601", "-5", "ten", "1e2", "60.5"])
def test_time_to_live_out_of_range(ttl: str) -> None:
    assert "CHATKIT_SESSION_TTL" in mistakes(CHATKIT_SESSION_TTL=ttl)


@pytest.mark.parametrize(
    ("given", "base"),
    [
        ("https://api.openai.com/", "https://api.openai.com"),
        ("https://gateway.example.com/openai", "https://gateway.example.com/openai"),
        ("http://localhost:9000", "http://localhost:9000"),
        ("http://127.0.0.1:9000", "http://127.0.0.1:9000"),
    ],
)
def test_api_base(given: str, base: str) -> None:
    assert load(CHATKIT_API_BASE=given).api_base == base


@pytest.mark.parametrize(
    "base",
    [
        "api.openai.com",
        "http://api.openai.com",
        "https://api.openai.com/v1",
        "https://u:p@api.openai.com",
        "https://",
        "https://x?y=1",
        "https://[::1",
    ],
)
def test_invalid_api_base(base: str) -> None:
    assert "CHATKIT_API_BASE" in mistakes(CHATKIT_API_BASE=base)


JWKS = {"AUTH_JWKS_URL": "https://login.example.com/.well-known/jwks.json"}
JWKS_WITH_ISSUER = {**JWKS, "AUTH_JWT_ISSUER": "https://login.example.com/"}
SECRET = {"AUTH_JWT_SECRET": "a-secret-of-these-tests-and-no-provider"}


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"SECRET_KEY_FALLBACKS": f"{'f' * 32},{'f' * 31}"}, "SECRET_KEY_FALLBACKS must be former values of SECRET_KEY"),
        ({"SECRET_KEY_FALLBACKS": f"{'f' * 32},"}, "SECRET_KEY_FALLBACKS must be former values of SECRET_KEY"),
        ({"AUTH_REQUIRED": "true"}, "AUTH_REQUIRED is true, but sign-in is not configured"),
        ({**JWKS_WITH_ISSUER, **SECRET}, "AUTH_JWKS_URL must not be set together with AUTH_JWT_SECRET"),
        (JWKS, "AUTH_JWKS_URL must come with AUTH_JWT_ISSUER or AUTH_JWT_AUDIENCE"),
        ({**JWKS_WITH_ISSUER, "AUTH_JWKS_URL": "http://login.example.com/keys"}, "AUTH_JWKS_URL must begin with https://"),
        ({**JWKS_WITH_ISSUER, "AUTH_JWKS_URL": "https://u:p@login.example.com/keys"}, "AUTH_JWKS_URL must be an address"),
        ({"AUTH_JWT_SECRET": "s" * 31}, "AUTH_JWT_SECRET is too short"),
        ({"AUTH_JWT_SECRET": "-----BEGIN PUBLIC KEY-----\nMIIB" + "A" * 40}, "AUTH_JWT_SECRET must be printable"),
        (
            {"CHATKIT_STATE_CLAIMS": ",".join(f"claim{number}" for number in range(65))},
            "CHATKIT_STATE_CLAIMS must be at most 64",
        ),
        ({"CHATKIT_STATE_CLAIMS": "a,https://example.com/" + "a" * 50}, "CHATKIT_STATE_CLAIMS must be at most 64"),
        ({"CHATKIT_WORKFLOWS": "pro=wf_a,pro=wf_b"}, "CHATKIT_WORKFLOWS must be names and what they stand for, each name once"),
        ({"CHATKIT_WORKFLOWS": "pro=wf_a,"}, "CHATKIT_WORKFLOWS must be names"),
        (
            {"CHATKIT_AGENT_HEADERS": "X-Org-Id,authorization"},
            "CHATKIT_AGENT_HEADERS must be names of headers, and not Authoriz",
        ),
        ({"CHATKIT_AGENT_HEADERS": "Proxy-Authorization"}, "CHATKIT_AGENT_HEADERS must be names of headers"),
        ({"CHATKIT_AGENT_HEADERS": "X-Org:Id"}, "CHATKIT_AGENT_HEADERS must be names of headers"),
        ({"CHATKIT_COMPOSER": "gpt-5.2"}, "CHATKIT_COMPOSER must be JSON like"),
        ({"CHATKIT_COMPOSER": "[]"}, "CHATKIT_COMPOSER must be like"),
        ({"CHATKIT_COMPOSER": "[1]"}, "look at its members: Invalid input type."),
        ({"CHATKIT_COMPOSER": '{"models": {}}'}, "look at models: "),
        ({"CHATKIT_COMPOSER": '{"tools": [{"id": "a", "label": "A"}]}'}, "look at tools 0 icon: "),
        ({"CHATKIT_COMPOSER": '{"models": [{"id": "", "label": "A"}]}'}, "look at models 0 id: "),
        ({"CHATKIT_COMPOSER": '{"attachments": {}}'}, "look at attachments enabled: "),
        ({"CHATKIT_COMPOSER": '{"attachments": {"enabled": true, "maxSize": 8388609}}'}, "look at attachments maxSize: "),
        ({"CHATKIT_COMPOSER": '{"attachments": {"enabled": true, "maxSize": 0}}'}, "look at attachments maxSize: "),
        ({"CHATKIT_COMPOSER": '{"attachments": {"enabled": true, "maxCount": 11}}'}, "look at attachments maxCount: "),
        ({"CHATKIT_COMPOSER": '{"attachments": {"enabled": true, "accept": {}}}'}, "look at attachments accept: "),
        (
            {"CHATKIT_COMPOSER": '{"attachments": {"enabled": true, "accept": {"png": []}}}'},
            "look at attachments accept png key: ",
        ),
        (
            {"CHATKIT_COMPOSER": '{"attachments": {"enabled": true, "accept": {"image/*": ["png"]}}}'},
            "look at attachments accept image/* value 0: ",
        ),
        (
            {"CHATKIT_COMPOSER": '{"models": [{"id": "a", "label": "A"}, {"id": "a", "label": "B"}]}'},
            "CHATKIT_COMPOSER must have each id once.",
        ),
        ({"CHATKIT_AGENTS": "pro=wf_a"}, "CHATKIT_AGENTS must be package.module:name"),
    ],
)
def test_unsafe_or_contradictory_settings(variables: dict[str, str], message: str) -> None:
    assert message in mistakes(**variables)


EXAMPLES = {
    f"{name}, {number}": block
    for name in ("sign-in.md", "security.md")
    for number, block in enumerate(re.findall(r"```sh\n(.*?)```", (module.PROJECT / "docs" / name).read_text(), re.DOTALL))
    if "curl" not in block
}


@pytest.mark.parametrize("block", EXAMPLES)
def test_examples_of_the_documentation(block: str) -> None:
    """Each example starts, alone or together with other settings, and none of its settings is ignored."""
    variables = dict(re.findall(r"^([A-Z_]+)=(\S+)", EXAMPLES[block], re.MULTILINE))
    assert variables
    assert variables.keys() <= VARIABLES
    signed_in = SECRET if "CHATKIT_AGENT_CLAIM" in variables else {}
    own = {name: value for name, value in {**PRODUCTION, **SECRET}.items() if name in variables}  # in place of placeholders
    settings = load(**{"CHATKIT_BACKEND": "selfhosted", **signed_in, **variables, **own})
    assert not [text for text in settings.notices if "not used" in text or "all users get" in text]


def test_auth_settings() -> None:
    assert not load().auth_required
    assert load(**SECRET, AUTH_REQUIRED="true").auth_required
    assert load(**JWKS_WITH_ISSUER, AUTH_JWT_AUDIENCE=" api, web ").auth_jwt_audiences == ("api", "web")
    assert load(CHATKIT_WORKFLOWS="pro=wf_a, free = wf_b=c").workflows == {"pro": "wf_a", "free": "wf_b=c"}
    shown = repr(load(**SECRET, CHATKIT_WORKFLOWS="pro=wf_a"))
    assert SECRET["AUTH_JWT_SECRET"] not in shown
    assert "wf_a" not in shown


@pytest.mark.parametrize("prefix", ["postgres://", "postgresql://", "postgresql+psycopg://"])
def test_database_url_prefixes(prefix: str) -> None:
    assert load(DATABASE_URL=f"{prefix}u:p@host/db").database_url == "postgresql+psycopg://u:p@host/db"


@pytest.mark.parametrize(
    ("entry", "matches", "does_not"),
    [
        ("https://app.example.com", ["https://app.example.com"], ["http://app.example.com", "https://app.example.com:8443"]),
        ("https://app.example.com/", ["https://app.example.com"], ["https://app.example.com/"]),
        ("https://app.example.com:443", ["https://app.example.com"], ["https://app.example.com:443"]),
        ("HTTPS://App.Example.com", ["https://app.example.com"], []),
        ("http://localhost:3000", ["http://localhost:3000"], ["http://localhost:3000.evil.test", "http://localhost:30001"]),
        ("http://[::1]:3000", ["http://[::1]:3000"], ["http://::1:3000"]),
        ("https://a.test,https://b.test", ["https://a.test", "https://b.test"], ["https://a.test,https://b.test"]),
        (
            "https://shop-*-team.vercel.app",
            ["https://shop-git-x1-team.vercel.app"],
            ["https://shop-a.b-team.vercel.app", "https://shop--team.vercel.app.evil.test", "https://shopx-team.vercel.app"],
        ),
        ("https://*.preview.example.com", ["https://pr-7.preview.example.com"], ["https://a.b.preview.example.com"]),
        ("https://app.example.com", [], ["https://appXexample.com", "null", "", "https://app.example.com\n"]),
    ],
)
def test_allowed_origins(entry: str, matches: list[str], does_not: list[str]) -> None:
    allowed = load(CHATKIT_ALLOWED_ORIGINS=entry).allowed_origins
    for origin in matches:
        assert any(pattern.match(origin) for pattern in allowed), origin
    for origin in does_not:
        assert not any(pattern.match(origin) for pattern in allowed), origin


@pytest.mark.parametrize(
    "entry",
    [
        "*",
        "https://a.test, *",
        "https://*",
        "https://*.com",
        "https://*.vercel.app:*",
        "https://x.*",
        "*://x.test",
        "app.example.com",
        "https://app.example.com/path",
        "https://user@app.example.com",
        "https://app.example.com?x",
        "null",
        "https://exämple.com",
        "https://a.test:99999",
        "ftp://a.test",
    ],
)
def test_invalid_allowed_origins(entry: str) -> None:
    assert "CHATKIT_ALLOWED_ORIGINS" in mistakes(CHATKIT_ALLOWED_ORIGINS=entry)


@pytest.mark.parametrize("entry", ["https://ada:hidden@app.example.com", "https://ada:hidden@app.example.com:99999"])
def test_password_in_an_origin_is_not_quoted(entry: str) -> None:
    found = mistakes(CHATKIT_ALLOWED_ORIGINS=entry)
    assert "an origin has no user name and no password" in found
    assert "hidden" not in found


@pytest.mark.parametrize(
    ("variables", "notice"),
    [
        ({"CHATKIT_WORKFLOW": "wf_1"}, "did you mean CHATKIT_WORKFLOWS or CHATKIT_WORKFLOW_ID?"),
        ({"CHATKIT_XYZZY": "1"}, "CHATKIT_XYZZY is not a setting"),
        ({}, "CHATKIT_ALLOWED_ORIGINS is not set"),
        ({}, "ends hosted workflows on 30 November 2026"),
        ({"CHATKIT_AGENT": "my.agents:one"}, "CHATKIT_AGENT is set and not used"),
        ({"CHATKIT_TOKENS_PER_DAY": "1000"}, "CHATKIT_TOKENS_PER_DAY is set and not used"),
        ({"CHATKIT_BACKEND": "selfhosted"}, "DATABASE_URL is not set"),
        ({"CHATKIT_BACKEND": "selfhosted"}, "Neither CHATKIT_AGENT nor OPENAI_API_KEY is set"),
        ({"AUTH_JWT_ISSUER": "https://login.example.com"}, "AUTH_JWT_ISSUER is set and not used"),
        ({"AUTH_KEEP_CONVERSATIONS": "true"}, "AUTH_KEEP_CONVERSATIONS is set and not used"),
        ({"OPENAI_BASE_URL": "https://eu.api.openai.com/v1"}, "calls OpenAI at CHATKIT_API_BASE, https://api.openai.com:"),
        ({"CHATKIT_AGENT_CLAIM": "plan"}, "Only one of CHATKIT_AGENT_CLAIM and CHATKIT_WORKFLOWS is set"),
        (
            {"CHATKIT_BACKEND": "selfhosted", "CHATKIT_AGENTS": "pro=a.b:c"},
            "Only one of CHATKIT_AGENT_CLAIM and CHATKIT_AGENTS is set",
        ),
    ],
)
def test_notices(variables: dict[str, str], notice: str) -> None:
    assert any(notice in text for text in load(**variables).notices)


@pytest.mark.parametrize("base", ["https://eu.api.openai.com/v1", "https://eu.api.openai.com/v1/"])
def test_no_notice_for_the_same_address_of_openai(base: str) -> None:
    notices = load(OPENAI_BASE_URL=base, CHATKIT_API_BASE="https://eu.api.openai.com").notices
    assert not any("OPENAI_BASE_URL" in text for text in notices)


def test_notice_for_an_api_key_that_overrides_the_file() -> None:
    def notices(environ: dict[str, str], dotenv: dict[str, str | None]) -> Any:
        return [text for text in Settings.load({**PRODUCTION, **environ}, dotenv).notices if "OPENAI_API_KEY" in text]

    assert notices({"OPENAI_API_KEY": "sk-machine"}, {"OPENAI_API_KEY": "sk-file"})
    assert not notices({"OPENAI_API_KEY": "sk-same"}, {"OPENAI_API_KEY": "sk-same"})
    assert not notices({}, {"OPENAI_API_KEY": "sk-file"})


def test_other_variables_of_the_file_are_put_into_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text(f"SECRET_KEY={KEY}\nWEATHER_KEY=sunny\nNEWS_KEY=of-the-file\nBLANK_KEY=\nNAME_ALONE\n")
    monkeypatch.setattr(module, "PROJECT", tmp_path)
    monkeypatch.setattr(os, "environ", {"NEWS_KEY": "of-the-machine"})
    assert module.load.__wrapped__().secret_key == KEY
    assert os.environ == {"NEWS_KEY": "of-the-machine", "WEATHER_KEY": "sunny"}


def test_example_file_names_every_setting_and_sets_none() -> None:
    text = (module.PROJECT / ".env.example").read_text()
    assert set(re.findall(r"^#? ?([A-Z_]+)=", text, re.MULTILINE)) == VARIABLES
    assert not re.search(r"^[A-Z_]+=.+", text, re.MULTILINE)
