"""A small web server for the tests: it knows ranges, or not, and cuts connections when asked to."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from unittest import mock


@contextmanager
def serve(files: dict[str, bytes | str], *, ranges: bool = True, cut: int = 0) -> Iterator[SimpleNamespace]:
    """Serve `files` by name; the first `cut` answers end half-way. `requests` lists the Range asked for, or None.

    A file that is a string is the name of another, to which the client is sent on.
    """
    requests: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers["Range"]
            requests.append(asked)
            content = files.get(self.path.lstrip("/"))
            if isinstance(content, str):
                self.send_response(302)
                self.send_header("Location", f"/{content}")
                return self.end_headers()
            start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and ranges else 0
            if content is None or 0 < start >= len(content):
                return self.send_error(404 if content is None else 416)
            body = content[start:]
            self.send_response(206 if asked and ranges else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if len(requests) <= cut else body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server, mock.patch.dict(os.environ, no_proxy="127.0.0.1"):
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield SimpleNamespace(url=f"http://127.0.0.1:{server.server_port}", requests=requests)
        finally:
            server.shutdown()
            thread.join()


def nowhere() -> str:
    """An address where no server is."""
    with serve({}) as server:
        return server.url
