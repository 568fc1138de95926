"""An agent's MCP server begins and ends with the process that serves."""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import pytest

from tests.support.chat import Caller, texts
from tests.support.fake_openai import API_KEY, FakeOpenAI
from tests.support.responses_api import calls, says, streaming
from tests.support.service import Service


@pytest.mark.slow
def test_stop_ends_the_mcp_servers(tmp_path: Path, fake_openai: FakeOpenAI) -> None:
    fake_openai.behaviour = streaming(calls("find_customer", who="Ada"), says("It is 7"))
    variables = {
        "CHATKIT_BACKEND": "selfhosted",
        "DATABASE_URL": f"sqlite:///{tmp_path}/chatkit.db",
        "CHATKIT_AGENT": "tests.support.agents_with_mcp:local",
        "OPENAI_API_KEY": API_KEY,
        "CHATKIT_API_BASE": fake_openai.url,
        "WEB_CONCURRENCY": "2",
    }
    with Service(**variables) as service:
        deadline = time.monotonic() + 60
        while service.log_so_far().count("is connected") < 2:
            assert time.monotonic() < deadline, service.log_so_far()
            time.sleep(0.1)
        children = psutil.Process(service.process.pid).children(recursive=True)
        servers = [child for child in children if "tests.support.mcp_server" in child.cmdline()]
        assert len(servers) == 2, "one for each process"
        assert texts(Caller(service.url).create("Who is Ada?")[1]) == ["It is 7"]
        service.stop()
        assert service.process.returncode == 0
        _, alive = psutil.wait_procs(servers, timeout=5)
        assert not alive, service.log
    assert "Traceback" not in service.log
