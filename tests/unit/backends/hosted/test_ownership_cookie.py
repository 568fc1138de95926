"""The cookie that proves which sessions a browser may end."""

from __future__ import annotations

import pytest
from flask.testing import FlaskClient

from tests.support.applications import MakeApp
from tests.support.endpoint import ENDPOINT, create_session, error_of, restarted
from tests.support.fake_openai import FakeOpenAI, cancelled
from tests.support.service import SECRET_KEY

NOT_FOUND = (404, "not_found", "Not found")


@pytest.mark.parametrize("part", range(3))
def test_edited_cookie_is_no_proof_of_ownership(
    client: FlaskClient, make_app: MakeApp, fake_openai: FakeOpenAI, part: int
) -> None:
    """Each part of one visitor's cookie in place of that of another's."""
    mine, theirs = make_app().test_client(), make_app().test_client()
    session_id = create_session(theirs)
    create_session(mine)

    def value(client: FlaskClient) -> list[str]:
        cookie = client.get_cookie("chatkit_visitor")
        assert cookie
        return cookie.value.split(".")

    swapped = value(mine)
    swapped[part] = value(theirs)[part]
    mine.set_cookie("chatkit_visitor", ".".join(swapped))
    if swapped != value(theirs):
        assert error_of(mine.delete(f"{ENDPOINT}/{session_id}")) == NOT_FOUND
    assert cancelled(fake_openai) == []


NEW = f"{SECRET_KEY}-2"


def test_fallback_key_keeps_the_sessions_of_a_browser(make_app: MakeApp) -> None:
    client = make_app().test_client()
    url = f"{ENDPOINT}/{create_session(client)}"
    assert restarted(client, make_app, SECRET_KEY=NEW).delete(url).status_code == 404
    assert restarted(client, make_app, SECRET_KEY=NEW, SECRET_KEY_FALLBACKS=SECRET_KEY).delete(url).status_code == 200
