"""``users``: it asks first, and knows only users with data. What it exports and deletes is in test_user_data.py."""

from __future__ import annotations

import pytest

from chatkit.web.asgi import AsgiFlask
from tests.support.applications import MakeApp
from tests.support.commands import run
from tests.support.redis_server import Redis
from tests.support.stored_data import WORDS, everything, fill, question, with_data


def test_keys_of_a_user_in_redis_expire(make_app: MakeApp, database: str) -> None:
    with Redis() as server:
        app = make_app(CHATKIT_BACKEND="selfhosted", DATABASE_URL=database, OPENAI_API_KEY="", REDIS_URL=server.url)
        ada = with_data(app, database, "ada")
        assert run(app, "users", "delete", ada.user, "--yes").exit_code == 0
        import redis

        with redis.Redis.from_url(server.url) as client:
            keys = [key for key in client.keys("*") if ada.user.encode() in key]
            assert keys
            assert all(0 < client.ttl(key) <= 180 for key in keys), "a turn of 120 s, and a minute"
            assert not any(WORDS.encode() in key for key in client.keys("*"))


@pytest.mark.parametrize("reply", ["n\n", "\n", ""])
def test_deleting_asks_first(app: AsgiFlask, database: str, reply: str) -> None:
    fill(database, "user:a", "thr_1", question("a"))
    result = run(app, "users", "delete", "user:a", answer=reply)
    assert result.exit_code == 1
    assert (
        "Delete 0 sessions, 1 threads, 1 items, 0 feedback, 0 attachments, 0 records of usage of user:a? This can't be undone."
        in result.stderr
    )
    assert "thr_1" in everything(database)
    assert run(app, "users", "delete", "user:a", answer="y\n").exit_code == 0
    assert "thr_1" not in everything(database)


@pytest.mark.parametrize("command", [["users", "export"], ["users", "delete", "--yes"]])
@pytest.mark.parametrize("user", ["a", "user:%", "user:A", "anonymous:a", ""])
def test_user_of_whom_nothing_is_stored(app: AsgiFlask, database: str, command: list[str], user: str) -> None:
    fill(database, "user:a", "thr_1", question("a"))
    result = run(app, *command, user)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"Error: Nothing is stored about {user!r}. Users begin with anonymous: or user:.\n"
    assert "thr_1" in everything(database)
