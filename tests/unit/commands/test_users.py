"""``users``: it asks first, and knows only users with data. What it exports and deletes is in test_user_data.py."""

from __future__ import annotations

import pytest

from chatkit.limits.concurrency import SharedLeases
from chatkit.limits.rate import hashed
from chatkit.web.asgi import AsgiFlask
from tests.support.applications import MakeApp
from tests.support.chat_users import ChatUser
from tests.support.commands import run
from tests.support.redis_server import Redis
from tests.support.stored_data import WORDS, everything, fill, question, with_data


def test_redis_knows_nothing_about_a_deleted_user(make_app: MakeApp, database: str) -> None:
    with Redis() as server:
        app = make_app(CHATKIT_BACKEND="selfhosted", DATABASE_URL=database, OPENAI_API_KEY="", REDIS_URL=server.url)
        ada, eve = (with_data(app, database, name) for name in ("ada", "eve"))
        import redis

        with redis.Redis.from_url(server.url) as client:

            def keys_of(someone: ChatUser) -> set[bytes]:
                return {key for key in client.keys("*") if hashed(someone.user).encode() in key}

            with SharedLeases(client, "turns", each=5, seconds=180).held(ada.user):
                assert len(keys_of(ada)) == len(keys_of(eve)) + 1 > 1
                assert all(0 < client.ttl(key) <= 180 for key in keys_of(ada))
                assert not any(word.encode() in key for key in client.keys("*") for word in (WORDS, ada.user))
                kept = keys_of(eve)
                assert run(app, "users", "delete", ada.user, "--yes").exit_code == 0
                assert keys_of(ada) == set()
                assert not [word for word in (*ada.ids(), "of ada") if word in everything(database)]
                assert keys_of(eve) == kept
        server.kill()
        result = run(app, "users", "delete", eve.user, "--yes")
        assert result.exit_code == 1
        assert result.stderr.splitlines()[-1].startswith("Error: REDIS_URL: Redis can't be used")
        assert eve.user not in everything(database)


@pytest.mark.parametrize("reply", ["n\n", "\n", ""])
def test_deleting_asks_first(app: AsgiFlask, database: str, reply: str) -> None:
    fill(database, "user:a", "thr_1", question("a"))
    result = run(app, "users", "delete", "user:a", answer=reply)
    assert result.exit_code == 1
    assert (
        "Delete 0 sessions, 1 thread, 1 item, 0 ratings, 0 attachments, 0 usage records of user:a? This can't be undone."
        in result.stderr
    )
    assert "thr_1" in everything(database)
    assert run(app, "users", "delete", "user:a", answer="y\n").exit_code == 0
    assert "thr_1" not in everything(database)


@pytest.mark.parametrize("command", [["users", "export"], ["users", "delete", "--yes"], ["threads", "list"]])
@pytest.mark.parametrize("user", ["a", "user:%", "user:A", "anonymous:a", ""])
def test_user_of_whom_nothing_is_stored(app: AsgiFlask, database: str, command: list[str], user: str) -> None:
    fill(database, "user:a", "thr_1", question("a"))
    result = run(app, *command, user)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"Error: Nothing is stored about {user!r}. Users begin with anonymous: or user:.\n"
    assert "thr_1" in everything(database)
