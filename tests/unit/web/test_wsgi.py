"""The WSGI environ of an ASGI request."""

from __future__ import annotations

from typing import Any

from chatkit.web.wsgi import make_environ


def environ(*headers: tuple[bytes, bytes], path: str = "/") -> dict[str, Any]:
    return make_environ({"method": "GET", "path": path, "query_string": b"", "http_version": "1.1", "headers": headers})


def test_repeated_headers_are_joined() -> None:
    """Cookies with a semicolon (RFC 9113, 8.2.3): a proxy may have received them one by one over HTTP/2."""
    made = environ((b"cookie", b"a=1"), (b"x-name", b"1"), (b"cookie", b"b=2"), (b"x-name", b"2"))
    assert (made["HTTP_COOKIE"], made["HTTP_X_NAME"]) == ("a=1; b=2", "1,2")


def test_headers_of_the_body() -> None:
    made = environ((b"content-type", b"text/plain"), (b"content-length", b"3"), (b"transfer-encoding", b"chunked"))
    assert (made["CONTENT_TYPE"], made["CONTENT_LENGTH"]) == ("text/plain", "3")
    assert not [name for name in made if name.startswith("HTTP_")], "the application gets the whole body at once"


def test_path_is_bytes_as_latin_1() -> None:
    """PEP 3333."""
    assert environ(path="/ü")["PATH_INFO"].encode("latin-1").decode() == "/ü"
