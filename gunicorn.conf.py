"""The configuration of gunicorn, which reads this file by default."""

import gc
import resource
from contextlib import suppress

from chatkit.settings import SettingsError, load
from chatkit.web import logs

try:
    settings = load()
except SettingsError as error:
    raise SystemExit(f"chatkit: cannot start. {error}") from None

MAX_FILES = 10_240  # the maximum of macOS

bind = f"127.0.0.1:{settings.port}" if settings.development else f"0.0.0.0:{settings.port}"
workers = settings.workers
worker_class = "chatkit.web.worker.Worker"
worker_connections = 4096  # per process
asgi_lifespan = "on"
asgi_loop = "asyncio"
timeout = 30  # replace a worker whose event loop has been blocked for this long
forwarder_headers = ""  # trust no SCRIPT_NAME or PATH_INFO header, which gunicorn accepts from localhost by default
secure_scheme_headers: dict[str, str] = {}  # only PROXY_HOPS decides which X-Forwarded-Proto is trusted
preload_app = True  # import, check and migrate once; an error ends the start instead of one worker after another
keepalive = 95  # longer than the routers of platforms, so that they close connections first
graceful_timeout = settings.drain_seconds + settings.stop_seconds
control_socket_disable = True  # not used, and it would be a file in the home directory
logconfig_dict = logs.configuration(settings.log_level, readable=settings.development)


def post_fork(_server: object, _worker: object) -> None:
    """Raise each worker's limit of open files, because each connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    with suppress(ValueError, OSError):  # macOS rejects some numbers
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))


def when_ready(_server: object) -> None:
    """Before the workers are forked: freeze what is loaded, and tell a developer what to try."""
    # Garbage collection writes to the objects that it visits, so each worker would get its own copy of the shared memory.
    gc.collect()
    gc.freeze()
    if settings.development:
        address = f"http://localhost:{settings.port}"
        print(f"\n  Serving on {address}, backend: {settings.backend}. Stop with Ctrl-C. Try:\n", flush=True)
        if settings.host_page:
            print(f"  {address}  in a browser, to chat (the page loads the chat component from OpenAI's CDN)\n", flush=True)
        print(f"  curl -X POST {address}/api/chatkit/sessions\n", flush=True)
        if settings.backend == "selfhosted":
            print(f"  The chat is at {address}/api/chatkit; README.md has a call of it.\n", flush=True)
