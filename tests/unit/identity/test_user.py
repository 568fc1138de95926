"""The identifiers of users."""

from __future__ import annotations

from flask.testing import FlaskClient

from tests.support.endpoint import ENDPOINT
from tests.support.fake_openai import FakeOpenAI, user_of
from tests.support.identity_provider import shared
from tests.support.sign_in import issue


def test_subject_that_looks_like_a_visitor_is_a_user(with_secret: FlaskClient, fake_openai: FakeOpenAI) -> None:
    with_secret.post(ENDPOINT)
    visitor = user_of(fake_openai)
    issue(with_secret, shared(sub=visitor))
    issue(with_secret, shared(sub=visitor.partition(":")[2]))
    assert len({received.body["user"] for received in fake_openai.received}) == 3
