"""At the end of a run, the ``recorder`` fixture searches everything that was logged for secrets. This tests the search."""

from __future__ import annotations

import pytest

from tests.support.fake_openai import API_KEY, SECRET_PREFIX, WORKFLOW_ID
from tests.support.identity_provider import SECRET, shared
from tests.support.leaks import leaks


@pytest.mark.parametrize(
    "secret",
    [API_KEY, WORKFLOW_ID, f"{SECRET_PREFIX}1", "cs_" + "a" * 43, "chatkit_visitor=ey", SECRET, shared()],
    ids=range(7),
)
def test_search_finds_secrets(secret: str) -> None:
    assert leaks(f"before {secret} after")
