"""The Next.js app of ``frontend/``, built and served as in production, with the pages of ``tests/support/pages`` added."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Self

import psutil

from tests.support import processes
from tests.support.service import PROJECT, free_port

FRONTEND = PROJECT / "frontend"
COPIES = FRONTEND / ".e2e"
"""Inside ``frontend/``, where the copies find the installed packages."""
NEXT = FRONTEND / "node_modules/.bin/next"
PARTS = ["app", "components", "instrumentation-client.ts", "lib", "next.config.ts", "package.json", "tsconfig.json"]
API_URL, DOMAIN_KEY = "http://api-url.invalid", "domain-key-of-the-build"


@functools.cache
def service_port() -> int:
    """Return the port of each test's service, whose address is part of the app. Each process of pytest-xdist has its own."""
    return free_port()


class NextApp:
    """A copy of the app, configured for a service at ``api_url``, on its own origin.

    A build takes many seconds, so all copies share one, in which their addresses are replaced.
    """

    def __init__(self, name: str, api_url: str, *, domain_key: str = "", dev: bool = False) -> None:
        self.folder = COPIES / name
        self.port = free_port()
        self.url = f"http://localhost:{self.port}"
        self._dev = dev
        self._api_url = api_url
        self._domain_key = domain_key

    def __enter__(self) -> Self:
        shutil.rmtree(self.folder, ignore_errors=True)
        if self._dev:
            self._copy_to(self.folder)
            environment = _environment(self._api_url, self._domain_key)
        else:
            shutil.copytree(self._build(), self.folder)
            self._configure()
            environment = dict(os.environ)
        self._output = tempfile.TemporaryFile("w+")  # a full pipe would block it
        self._server: subprocess.Popen[str] = processes.start(
            [str(NEXT), "dev" if self._dev else "start", "--port", str(self.port), "--hostname", "127.0.0.1"],
            cwd=self.folder,
            env=environment,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if processes.wait_until_serving(self._server, f"http://127.0.0.1:{self.port}/", 120):
            return self
        self.__exit__()
        self._output.seek(0)
        raise AssertionError(f"the app did not start:\n{self._output.read()}")

    def __exit__(self, *_: object) -> None:
        if self._server.poll() is None:
            started = psutil.Process(self._server.pid).children(recursive=True)  # they write into the folder
            os.killpg(self._server.pid, signal.SIGTERM)
            self._server.wait(timeout=20)
            psutil.wait_procs(started, timeout=20)
        shutil.rmtree(self.folder)

    def _copy_to(self, folder: Path) -> None:
        """Copy the source into a new ``folder``."""
        folder.mkdir(parents=True)
        for part in PARTS:
            copy = shutil.copytree if (FRONTEND / part).is_dir() else shutil.copy
            copy(FRONTEND / part, folder / part)
        shutil.copytree(Path(__file__).parent / "pages", folder / "app", dirs_exist_ok=True)

    def _build(self) -> Path:
        """Build the source, unless that has been done, and return the folder with the build."""
        COPIES.mkdir(exist_ok=True)
        with (COPIES / "lock").open("w") as lock, tempfile.TemporaryDirectory(dir=COPIES) as folder:
            fcntl.flock(lock, fcntl.LOCK_EX)  # of several test processes, one builds
            source = Path(folder) / "app"
            self._copy_to(source)
            digest = hashlib.sha256((FRONTEND / "package-lock.json").read_bytes())
            for path in sorted(path for path in source.rglob("*") if path.is_file()):
                digest.update(f"{path.relative_to(source)}\n".encode() + path.read_bytes())
            kind = type(self).__name__
            build = COPIES / f"{kind}-{digest.hexdigest()[:16]}"
            if not build.exists():
                built = subprocess.run(
                    [NEXT, "build"],
                    cwd=source,
                    env=_environment(API_URL, DOMAIN_KEY),
                    capture_output=True,
                    text=True,
                    check=False,
                )
                assert built.returncode == 0, built.stdout + built.stderr
                shutil.rmtree(source / ".next/cache", ignore_errors=True)
                for outdated in COPIES.glob(f"{kind}-*"):
                    shutil.rmtree(outdated)
                source.rename(build)
        return build

    def _configure(self) -> None:
        configured = 0
        for path in (self.folder / ".next").rglob("*.js"):
            text = path.read_text()
            if API_URL in text:
                path.write_text(text.replace(API_URL, self._api_url).replace(DOMAIN_KEY, self._domain_key))
                configured += 1
        assert configured


def _environment(api_url: str, domain_key: str) -> dict[str, str]:
    variables = {"NEXT_PUBLIC_API_URL": api_url, "NEXT_PUBLIC_CHATKIT_DOMAIN_KEY": domain_key}
    return {**os.environ, "NEXT_TELEMETRY_DISABLED": "1", **variables}
