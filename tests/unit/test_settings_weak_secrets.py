"""Weak secrets (too short, published, or a pattern) are refused in production."""

from __future__ import annotations

import re
import secrets

import pytest

from chatkit.settings import PROJECT, Settings, SettingsError

GOOD = {
    "SECRET_KEY": secrets.token_hex(32),
    "SECRET_KEY_FALLBACKS": secrets.token_hex(32),
    "AUTH_JWT_SECRET": secrets.token_urlsafe(33),
}

PUBLISHED = [
    "change-this-to-64-random-hex-characters",
    "change-this-to-32-random-characters-or-more",
    "CHANGE_ME_CHANGE_ME_CHANGE_ME_PLEASE",
    "changeme-0123456789abcdef0123456789",
    "please-change-it-before-going-to-production",
    "replace-with-a-long-random-secret-value",
    "your-secret-key-goes-here-at-least-32-chars",
    "YOUR_JWT_SECRET_AT_LEAST_32_CHARACTERS",
    "<your secret key of thirty-two characters>".replace(" ", "-"),
    "super-secret-jwt-token-with-at-least-32-characters-long",
    "django-insecure-abcdefghijklmnopqrstuvwxyz0123",
    "this-is-a-placeholder-for-the-real-secret",
    "k" * 32,
    "0" * 64,
    "abc" * 20,
    "12345678901234567890123456789012",
    "0123456789abcdef0123456789abcdef",
    "password" * 5,
]


def refusal(**variables: str) -> str:
    with pytest.raises(SettingsError) as caught:
        Settings.load({**GOOD, **variables})
    return str(caught.value)


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("value", PUBLISHED)
def test_published_secrets_and_patterns_are_refused(name: str, value: str) -> None:
    message = refusal(**{name: value})
    assert message.startswith(f"{name} is published, or a pattern")
    assert "secrets.token_hex(32)" in message
    assert value not in message
    assert re.findall(r"\b[A-Z_]{6,}\b", message) == [name]


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("length", [1, 16, 31])
def test_short_secrets_are_refused(name: str, length: int) -> None:
    message = refusal(**{name: secrets.token_hex(32)[:length]})
    assert message.startswith(f"{name} must be former values" if name.endswith("FALLBACKS") else f"{name} is too short")
    assert "at least 32" in message


def test_all_weak_secrets_are_named_at_once() -> None:
    message = refusal(**dict.fromkeys(GOOD, PUBLISHED[0]))
    assert message.count("is published, or a pattern") == len(GOOD)


def test_random_secrets_are_accepted() -> None:
    for _ in range(300):
        for secret in (secrets.token_hex(16), secrets.token_hex(32), secrets.token_urlsafe(24), secrets.token_urlsafe(64)):
            Settings.load(dict.fromkeys(GOOD, secret))


def test_weak_secrets_are_accepted_in_development() -> None:
    Settings.load({"CHATKIT_ENV": "development", **dict.fromkeys(GOOD, PUBLISHED[0])})


def test_secrets_of_the_documentation_are_refused() -> None:
    texts = [PROJECT / "README.md", PROJECT / ".env.example", *(PROJECT / "docs").glob("*.md")]
    shown = [
        (name, value)
        for path in texts
        for name, value in re.findall(r"^#? ?(SECRET_KEY|AUTH_JWT_SECRET)=(\S+)", path.read_text(), re.MULTILINE)
    ]
    assert len(shown) >= 3
    for name, value in shown:
        assert re.match(rf"{name} is (published|too short)|{name} must be printable", refusal(**{name: value}))
