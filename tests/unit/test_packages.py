"""The package structure: names, imports, and a self-hosted service without ``backends/hosted``."""

from __future__ import annotations

import ast
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import chatkit
from tests.support.service import PROJECT, environment

PACKAGE = PROJECT / "chatkit"
OUR_FOLDER, THEIR_FOLDER = (Path(folder) for folder in chatkit.__path__)
HOSTED, SELFHOSTED = "chatkit.backends.hosted", "chatkit.backends.selfhosted"


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in PACKAGE.rglob("*.py") if "migrations" not in path.parts}


def imports(name: str) -> Iterator[str]:
    """Yield our modules that ``name`` imports, also within functions and for types only."""
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            yield from {alias.name for alias in node.names} & MODULES.keys()
        elif isinstance(node, ast.ImportFrom) and node.module:
            members = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from {member if member in MODULES else node.module for member in members} & MODULES.keys()


def test_names_differ_from_openais_modules() -> None:
    """Both packages share the name ``chatkit``: an equal name would hide one of the two."""
    ours, theirs = ({path.stem for path in folder.glob("[!_]*")} for folder in (OUR_FOLDER, THEIR_FOLDER))
    assert {"server", "types", "errors"} <= theirs
    statements = ast.parse((PACKAGE / "__init__.py").read_text()).body
    imported = {alias.asname or alias.name for node in statements if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert (ours | imported) & theirs == set()


def test_no_import_cycle() -> None:
    graph = {name: set(imports(name)) - {name} for name in MODULES}
    assert "chatkit.backends.selfhosted.backend" in graph["chatkit.backends"], "in a function"
    assert "chatkit.backends.interface" in graph["chatkit.backends"], "for types only"
    TopologicalSorter(graph).prepare()  # raises CycleError


def test_backends_do_not_import_each_other() -> None:
    for name in MODULES:
        for imported in imports(name):
            assert not (name.startswith(HOSTED) and imported.startswith(SELFHOSTED)), name
            assert not (name.startswith(SELFHOSTED) and imported.startswith(HOSTED)), name
            outside = not name.startswith((HOSTED, SELFHOSTED, "chatkit.commands.")) and name != "chatkit.backends"
            assert not (outside and imported.startswith((HOSTED, SELFHOSTED))), f"{name} imports {imported}"


REGISTRATION = """\
    if settings.backend is BackendName.HOSTED:
        from chatkit.backends.hosted.backend import HostedBackend

        return HostedBackend(settings)
"""
TRY = """
import app
client = app.app.test_client()
session = client.post("/api/chatkit/sessions").get_json()["data"]
message = {"content": [{"type": "input_text", "text": "Hello"}], "attachments": [], "inference_options": {}}
chat = {"type": "threads.create", "params": {"input": message}}
print(client.post("/api/chatkit", json=chat, headers={"Authorization": "Bearer " + session["client_secret"]}).get_data(True))
print("commands:", *app.app.cli.commands)
"""


@pytest.mark.slow
def test_selfhosted_works_without_hosted(tmp_path: Path) -> None:
    for folder in ("chatkit", "templates", "static"):
        shutil.copytree(PROJECT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PROJECT / "app.py", tmp_path)
    shutil.rmtree(tmp_path / "chatkit/backends/hosted")
    registry = tmp_path / "chatkit/backends/__init__.py"
    assert REGISTRATION in registry.read_text()
    registry.write_text(registry.read_text().replace(REGISTRATION, ""))
    variables = environment(CHATKIT_BACKEND="selfhosted", DATABASE_URL=f"sqlite:///{tmp_path}/chatkit.db")
    outcome = subprocess.run(
        [sys.executable, "-c", TRY], cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=60, check=False
    )
    assert "thread.item.done" in outcome.stdout, outcome.stderr
    assert "commands: users threads feedback\n" in outcome.stdout
    assert importlib.util.find_spec("chatkit.backends.hosted"), "only the copy lacks it"


def test_nothing_imports_from_a_test_module() -> None:
    for path in [*PROJECT.glob("tests/**/*.py"), *PROJECT.glob("bench/*.py")]:
        imported = [node.module or "" for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        assert not [name for name in imported if ".test_" in name or name == "tests.conftest"], path


TESTED_ELSEWHERE = {
    "__init__": "tests/unit/endpoints/test_sessions.py",
    "__main__": "tests/service/test_start.py",
    "backends/__init__": "tests/service/test_gunicorn.py",
    "backends/interface": "tests/unit/endpoints/test_sessions.py",
    "backends/hosted/backend": "tests/unit/endpoints/test_sessions.py",
    "backends/hosted/errors": "tests/unit/backends/hosted/test_sessions_api_faults.py",
    "backends/selfhosted/backend": "tests/service/test_kept_conversations.py",
    "backends/selfhosted/chat/attachment_store": "tests/unit/backends/selfhosted/chat/test_attachments.py",
    "backends/selfhosted/chat/data_urls": "tests/unit/backends/selfhosted/chat/test_images.py",
    "backends/selfhosted/chat/demo": "tests/service/test_chat.py",
    "backends/selfhosted/chat/discovery": "tests/unit/backends/selfhosted/chat/test_mcp_connections.py",
    "backends/selfhosted/chat/pages": "tests/unit/backends/selfhosted/chat/test_store.py",
    "backends/selfhosted/chat/paused_run_store": "tests/unit/backends/selfhosted/chat/test_approvals.py",
    "backends/selfhosted/chat/rows": "tests/unit/backends/selfhosted/chat/test_store.py",
    "backends/selfhosted/chat/signed_urls": "tests/unit/backends/selfhosted/chat/test_images_blueprint.py",
    "backends/selfhosted/database/tables": "tests/unit/backends/selfhosted/database/test_migrations.py",
    "commands/__init__": "tests/docs/test_commands_page.py",
    "commands/output": "tests/service/test_commands.py",
    "web/watchdog": "tests/service/test_shutdown.py",
}
"""The modules without a test module of their name."""

OF_MANY_MODULES = {
    "test_packages": "the package",
    "backends/selfhosted/test_planted_conversations": "the chat, with conversations that an attacker has begun",
    "backends/selfhosted/chat/test_abilities": "the table of docs/agents.md",
    "backends/selfhosted/chat/test_guardrails": "the chat, with guardrails",
    "backends/selfhosted/chat/test_openai_suite": "OpenAI's own tests",
    "backends/selfhosted/chat/test_threads": "the chat, with several requests for one thread",
    "backends/selfhosted/database/test_migrations": "the folder migrations",
    "endpoints/test_isolation": "every endpoint",
}
"""The test modules that are not about one module."""


def has_code(path: Path) -> bool:
    nodes = ast.walk(ast.parse(path.read_text()))
    return any(isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) for node in nodes)


def test_unit_tests_mirror_the_package() -> None:
    """The tests of ``a/b.py`` are in ``a/test_b.py``. Those of one aspect of it may be in ``a/test_b_aspect.py``."""
    unit = PROJECT / "tests/unit"
    tests = {path.relative_to(unit).with_suffix("") for path in unit.rglob("test_*.py")}
    modules = [path.relative_to(PACKAGE).with_suffix("") for path in MODULES.values() if has_code(path)]
    own = {module.with_name(f"test_{module.name}"): str(module) for module in modules}
    own |= {Path("support", f"test_{path.stem}"): "" for path in PROJECT.glob("tests/support/*.py")}
    assert {module for test, module in own.items() if test not in tests} - {""} == TESTED_ELSEWHERE.keys()
    assert [file for file in TESTED_ELSEWHERE.values() if not (PROJECT / file).is_file()] == []
    of_no_module = {str(test) for test in tests if not any(f"{test}_".startswith(f"{name}_") for name in own)}
    assert of_no_module == OF_MANY_MODULES.keys()
