"""How gunicorn serves the application. gunicorn reads this file by itself."""

import gc

from chatkit import logs
from chatkit.settings import SettingsError, load

try:
    settings = load()
except SettingsError as error:
    raise SystemExit(f"chatkit: cannot start. {error}") from None

bind = f"127.0.0.1:{settings.port}" if settings.development else f"0.0.0.0:{settings.port}"
workers = settings.workers
threads = settings.threads  # one waits for OpenAI in each call, so they decide how many callers are served at once
worker_class = "chatkit.gunicorn_worker.Worker"
preload_app = True  # imported, checked and migrated once; a mistake ends the start, not each worker after it
keepalive = 95  # longer than any platform's router keeps a connection, so that it is never us who close first
graceful_timeout = 25  # platforms kill 30 s after SIGTERM; a call takes 10 s at most
control_socket_disable = True  # nothing here uses it, and it would be a file in somebody's home directory
logconfig_dict = logs.configuration(settings.log_level, readable=settings.development)


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
