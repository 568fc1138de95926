"""The Next.js app of ``frontend/``, built and served as in production, with the pages of ``tests/support/pages`` added."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Self

from tests.support import processes
from tests.support.service import PROJECT, free_port

FRONTEND = PROJECT / "frontend"
NEXT = FRONTEND / "node_modules/.bin/next"
PARTS = ["app", "components", "instrumentation-client.ts", "lib", "next.config.ts", "package.json", "tsconfig.json"]


class NextApp:
    """A copy of the app, configured for a service at ``api_url``, on its own origin.

    The copy is inside ``frontend/``, where it finds the installed packages, and leaves a developer's build alone.
    """

    def __init__(self, name: str, api_url: str, *, domain_key: str = "", dev: bool = False) -> None:
        self.folder = FRONTEND / ".e2e" / name
        self.port = free_port()
        self.url = f"http://localhost:{self.port}"
        self._dev = dev
        self._environment = {
            **os.environ,
            "NEXT_TELEMETRY_DISABLED": "1",
            "NEXT_PUBLIC_API_URL": api_url,
            "NEXT_PUBLIC_CHATKIT_DOMAIN_KEY": domain_key,
        }

    def __enter__(self) -> Self:
        self._copy()
        if not self._dev:
            built = self._run("build").wait(timeout=300)
            assert built == 0, self.written()
        self._server = self._run("dev" if self._dev else "start", "--port", str(self.port), "--hostname", "127.0.0.1")
        if processes.wait_until_serving(self._server, f"http://127.0.0.1:{self.port}/", 120):
            return self
        self.__exit__()
        raise AssertionError(f"the app did not start:\n{self.written()}")

    def __exit__(self, *_: object) -> None:
        if self._server.poll() is None:
            os.killpg(self._server.pid, signal.SIGTERM)  # the group, because Next.js has child processes
            self._server.wait(timeout=20)
        shutil.rmtree(self.folder)

    def written(self) -> str:
        self._output.seek(0)
        return self._output.read()

    def _copy(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        for part in PARTS:
            copy = shutil.copytree if (FRONTEND / part).is_dir() else shutil.copy
            copy(FRONTEND / part, self.folder / part)
        shutil.copytree(Path(__file__).parent / "pages", self.folder / "app", dirs_exist_ok=True)

    def _run(self, *arguments: str) -> subprocess.Popen[str]:
        self._output = tempfile.TemporaryFile("w+")  # noqa: SIM115  a full pipe would block it
        return processes.start(
            [str(NEXT), *arguments],
            cwd=self.folder,
            env=self._environment,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            text=True,
        )
