"""The steps of docs/moving-from-agent-builder.md, from a hosted deployment to a self-hosted one."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from tests.support.chat import Caller, deltas, texts
from tests.support.fake_openai import API_KEY, WORKFLOW_ID, FakeOpenAI
from tests.support.responses_api import calls, says, streaming
from tests.support.service import PROJECT, Service, environment
from tests.support.threads_api import Project, answers, asks

GUIDE = (PROJECT / "docs" / "moving-from-agent-builder.md").read_text()


@pytest.mark.slow
def test_visitor_and_endpoint_stay_the_same(fake_openai: FakeOpenAI, tmp_path: Path) -> None:
    before = {"OPENAI_API_KEY": API_KEY, "CHATKIT_WORKFLOW_ID": WORKFLOW_ID, "CHATKIT_API_BASE": fake_openai.url}
    with Service(**before) as hosted:
        page = Caller(hosted.url)
    assert page.secret.startswith("ek_test_")
    visitor = fake_openai.received[0].body["user"]

    address = f"sqlite:///{tmp_path}/chatkit.db"
    after = {"CHATKIT_BACKEND": "selfhosted", "CHATKIT_AGENT": "examples.travel_desk:run_workflow", "DATABASE_URL": address}
    fake_openai.behaviour = project = Project()
    project.add(visitor, asks("Where to?"), answers("Paris"), title="Before the move")
    imported = subprocess.run(
        [sys.executable, "-m", "flask", "--app", "app", "import-hosted"],
        cwd=PROJECT,
        env=environment(**before, DATABASE_URL=address),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "Stored: 1 new threads" in imported.stdout
    with Service(**before, **after) as selfhosted:
        assert page.http.get(f"{selfhosted.url}/readyz", timeout=5).status_code == 200
        page.url = selfhosted.url
        page.refresh()
        assert page.secret.startswith("cs_")
        (thread,) = page.post("threads.list").json()["data"]
        assert thread["title"] == "Before the move"
        assert [item.content[0].text for item in page.items(thread["id"], order="asc").data] == ["Where to?", "Paris"]
        fake_openai.behaviour = streaming(
            says('{"category":"booking"}'), calls("seats_left", flight="LH1"), says("There are 4 seats"), says("{}")
        )
        _, events = page.create("A seat to Paris, please")
        assert texts(events) == ["There are 4 seats"]
        assert deltas(events) == ["There", " are", " 4", " seats"]
    assert "The chat is answered by the exported workflow examples.travel_desk:run_workflow" in selfhosted.log
    with create_engine(address).connect() as connection:
        users = connection.execute(text("SELECT DISTINCT user_id FROM chat_threads")).scalars().all()
    assert users == [visitor]


def test_settings_of_the_guide_exist() -> None:
    from chatkit.settings import VARIABLES

    named = set(re.findall(r"^(?!NEXT_PUBLIC)([A-Z_]+)=", GUIDE, re.MULTILINE)) | set(re.findall(r"`(CHATKIT_[A-Z_]+)", GUIDE))
    assert named <= VARIABLES
    assert {"CHATKIT_BACKEND", "CHATKIT_AGENT", "DATABASE_URL"} <= named
