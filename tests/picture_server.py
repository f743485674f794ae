"""A small picture server on loopback, with all the ways in which servers misbehave.

    with PictureServer() as server:
        server.answers["/a.png"] = Answer(b"...")
        ...
        assert server.requests[0].headers["User-Agent"].startswith("vlmtune/")

An answer's body may be a generator, which is sent piece by piece without a length.
"""

import ssl
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self


@dataclass(frozen=True)
class Answer:
    """What is sent; the length of a bytes body is announced unless `headers` announce another."""

    body: bytes | Callable[[], Iterable[bytes]] = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    """What was asked for."""

    path: str
    headers: Message


class PictureServer:
    """Answers by path; a list of answers is given one after the other, the last one for ever.

    Args:
        context: to serve https instead of http.
        address: loopback address to listen on, with a port of its own.
    """

    def __init__(self, context: ssl.SSLContext | None = None, address: str = "127.0.0.1") -> None:
        self.answers: dict[str, Answer | list[Answer]] = {}
        self.requests: list[Request] = []
        self.stopped = threading.Event()
        self._secure = context is not None
        self._server = _Server((address, 0), _handler(self))
        if context is not None:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        """The address of a path, under any name of the server."""
        return f"http{'s' if self._secure else ''}://{host}:{self.port}{path}"

    def drip(self, piece: bytes, seconds: float) -> Callable[[], Iterable[bytes]]:
        """An endless body: a piece, a pause, a piece ..., until the server stops."""

        def pieces() -> Iterable[bytes]:
            while not self.stopped.wait(seconds):
                yield piece

        return pieces

    def next_answer(self, path: str) -> Answer:
        answer = self.answers.get(path, Answer(status=404))
        if isinstance(answer, list):
            return answer.pop(0) if len(answer) > 1 else answer[0]
        return answer


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up on a hostile answer are what the tests are about."""


def _handler(server: PictureServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            server.requests.append(Request(self.path, self.headers))
            answer = server.next_answer(self.path)
            with suppress(ConnectionError):
                self._send(answer)

        def _send(self, answer: Answer) -> None:
            self.send_response(answer.status)
            headers = dict(answer.headers)
            if isinstance(answer.body, bytes):
                headers.setdefault("Content-Length", str(len(answer.body)))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.flush()
            if isinstance(answer.body, bytes):
                self.wfile.write(answer.body)
                self.close_connection = headers["Content-Length"] != str(len(answer.body))
                return
            self.close_connection = True
            for piece in answer.body():
                self.wfile.write(piece)
                self.wfile.flush()

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: the tests' output is for failures."""

    return Handler
