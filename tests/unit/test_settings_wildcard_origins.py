"""Wildcards below a public suffix allow names that anyone can register, so there is a notice."""

from __future__ import annotations

import pytest

from chatkit.settings import Settings
from tests.support.service import SECRET_KEY


def notices_for(origins: str) -> list[str]:
    notices = Settings.load({"SECRET_KEY": SECRET_KEY, "CHATKIT_ALLOWED_ORIGINS": origins}).notices
    return [text for text in notices if "anyone" in text]


@pytest.mark.parametrize(
    ("origin", "suffix"),
    [
        ("https://*.co.uk", "co.uk"),
        ("https://shop-*.co.uk", "co.uk"),
        ("https://*.shop.*.co.uk", "co.uk"),
        ("https://*.com.br:8443", "com.br"),
        (" HTTPS://*.CO.UK/ ", "co.uk"),
        ("https://*.vercel.app", "vercel.app"),
        ("https://shop-*-myteam.vercel.app", "vercel.app"),
        ("https://*.up.railway.app", "up.railway.app"),
    ],
)
def test_wildcard_below_a_public_suffix(origin: str, suffix: str) -> None:
    (notice,) = notices_for(f"https://app.example.com,{origin},https://*.preview.example.com")
    assert notice.startswith("CHATKIT_ALLOWED_ORIGINS: ")
    assert f"names below {suffix}" in notice
    assert origin.strip().rstrip("/").lower() in notice


@pytest.mark.parametrize(
    "origins",
    [
        "https://*.example.co.uk",
        "https://*.preview.example.com",
        "https://pr-*.example.com:8443",
        "https://*.corp.internal",
        "https://co.uk",
        "https://shop.vercel.app",
        "http://localhost:3000",
    ],
)
def test_no_notice_for_names_of_one_owner(origins: str) -> None:
    assert notices_for(origins) == []


def test_one_notice_per_origin() -> None:
    assert len(notices_for("https://*.co.uk,https://*.vercel.app,https://*.example.com")) == 2
