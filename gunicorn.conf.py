"""How gunicorn serves the application. gunicorn reads this file by itself."""

import gc
import resource
from contextlib import suppress

from chatkit.settings import SettingsError, load
from chatkit.web import logs

try:
    settings = load()
except SettingsError as error:
    raise SystemExit(f"chatkit: cannot start. {error}") from None

MOST_FILES = 10_240  # that macOS lets a process open

bind = f"127.0.0.1:{settings.port}" if settings.development else f"0.0.0.0:{settings.port}"
workers = settings.workers
worker_class = "chatkit.web.worker.Worker"
worker_connections = 4096  # of one process
asgi_lifespan = "on"
asgi_loop = "asyncio"
timeout = 30  # a worker whose event loop is blocked for so long is replaced
forwarder_headers = ""  # no proxy sets SCRIPT_NAME or PATH_INFO by a header; gunicorn would believe this machine's
secure_scheme_headers: dict[str, str] = {}  # PROXY_HOPS alone says whose X-Forwarded-Proto is believed
preload_app = True  # imported, checked and migrated once; a mistake ends the start, not each worker after it
keepalive = 95  # longer than any platform's router keeps a connection, so that it is never us who close first
graceful_timeout = settings.drain_seconds + settings.stop_seconds
control_socket_disable = True  # nothing here uses it, and it would be a file in somebody's home directory
logconfig_dict = logs.configuration(settings.log_level, readable=settings.development)


def post_fork(_server: object, _worker: object) -> None:
    """In each worker: allow as many open files as the system does, because each connection is one."""
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most == resource.RLIM_INFINITY or most > MOST_FILES:
        most = MOST_FILES
    with suppress(ValueError, OSError):  # macOS refuses some numbers
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(files, most), resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def when_ready(_server: object) -> None:
    """Before the workers are forked: share what is loaded with them, and tell a developer what to try."""
    # What is there now stays for ever. Left in the collector's hands, each worker would look through it again and again, and
    # by that alone get a copy of its own.
    gc.collect()
    gc.freeze()
    if settings.development:
        address = f"http://localhost:{settings.port}"
        print(f"\n  Serving on {address}, backend: {settings.backend}. Stop with Ctrl-C. Try:\n", flush=True)
        if settings.host_page:
            print(f"  {address}  in a browser, to chat\n", flush=True)
        print(f"  curl -X POST {address}/api/chatkit/sessions\n", flush=True)
        if settings.backend == "selfhosted":
            print(f"  The chat is at {address}/api/chatkit; README.md has a call of it.\n", flush=True)
