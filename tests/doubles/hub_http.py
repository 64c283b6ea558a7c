"""HTTP for the fake Hub: reads requests, finds their route, sends or breaks the response."""

import contextlib
import json
import re
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

from .hub_repo import HubError


@dataclass
class Reply:
    """A response other than status 200 with a JSON body."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of_json(cls, data, status: int = 200, headers: dict | None = None) -> "Reply":
        """Return a response with a JSON body."""
        headers = {"Content-Type": "application/json", **(headers or {})}
        return cls(json.dumps(data).encode(), status, headers)


def route(method: str, path: str):
    """Route these requests to the decorated method; named groups of `path` are its arguments.

    The method returns a Reply or the content of a JSON body, and may raise HubError.
    """

    def mark(work: Callable) -> Callable:
        work.routes = [*getattr(work, "routes", []), (method, re.compile(path))]
        return work

    return mark


class Listener(ThreadingHTTPServer):
    """Tracks open connections: a client's idle connections would outlive `HubServer.stop`."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type["Request"], hub):
        self.hub = hub
        self.connections: set[socket.socket] = set()
        super().__init__(address, handler)

    def process_request(self, request, client_address):
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request):
        self.connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request, client_address):
        """Ignore clients that disconnect: tests kill them on purpose."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    def cut_connections(self):
        for connection in list(self.connections):
            cut(connection)


class Request(BaseHTTPRequestHandler):
    """One request. Subclasses handle it with methods marked with `route`."""

    protocol_version = "HTTP/1.1"
    # Headers and body are two packets: without this each response waits 40 ms for an ACK.
    disable_nagle_algorithm = True
    server: Listener

    def log_message(self, *_) -> None:
        """Keep standard error clean: `HubServer.requests` is the log."""

    def handle_request(self) -> None:
        """Respond, unless there is a planned fault."""
        url = urlsplit(self.path)
        self.url_path = url.path
        self.query = {name: values[0] for name, values in parse_qs(url.query).items()}
        self.body = self.read_body()
        self.hub = self.server.hub
        self.hub.requests.append(f"{self.command} {url.path}")
        fault = self.hub.take_fault(self.command, url.path)
        if fault:
            fault.strike(self)
        else:
            self.send(self.answer())

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_request

    def read_body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def json(self) -> dict:
        return json.loads(self.body)

    def answer(self) -> Reply:
        """Handle this request; one request at a time."""
        try:
            work, arguments = self.find_route()
            with self.hub.lock:
                self.check_token()
                result = work(**arguments)
            return result if isinstance(result, Reply) else Reply.of_json(result)
        except HubError as error:
            return Reply.of_json({"error": str(error)}, error.status, error.headers)

    def find_route(self) -> tuple[Callable, dict[str, str]]:
        wanted = "GET" if self.command == "HEAD" else self.command
        for name in dir(type(self)):
            for method, pattern in getattr(getattr(type(self), name), "routes", []):
                if method == wanted and (match := pattern.fullmatch(self.url_path)):
                    groups = match.groupdict(default="").items()
                    # Unquoted after matching: a quoted slash is part of a name.
                    return getattr(self, name), {key: unquote(text) for key, text in groups}
        self.hub.unknown.append(f"{self.command} {self.url_path}")
        raise HubError(404, f"No route for {self.command} {self.url_path}")

    def check_token(self) -> None:
        """Raise HubError if the client's token is invalid."""

    def send(self, reply: Reply, cut_short: bool = False) -> None:
        """Send a response; with `cut_short`, only half of its body."""
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        if cut_short:
            self.wfile.write(reply.body[: len(reply.body) // 2])
            self.hang_up()
        elif self.command != "HEAD":
            self.wfile.write(reply.body)

    def hang_up(self) -> None:
        """Close the connection, before or in the middle of the response."""
        self.close_connection = True
        cut(self.connection)


@dataclass
class Fault:
    """What happens to the next `times` matching requests instead of a normal response."""

    method: str
    path: str
    times: int
    strike: Callable[[Request], None]


def cut(connection: socket.socket) -> None:
    """Close a connection at once; the client may have closed it already."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
