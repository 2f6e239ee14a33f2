"""A small HTTP server for what is asked of a worker, safe from those who ask.

Anybody who reaches the port may connect, say nothing, say it slowly or say too much. So there are
few connections at a time, each for a short time and with a short request; where more come, the
oldest makes room. Who asks and listens is answered, however many there are who do not.
"""

from __future__ import annotations

import io
import socket
import sys
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any

from workqueue.loggers import logger

log = logger("serving")

MOST_CONNECTIONS = 32

PATIENCE = 5.0
"""Seconds from the connection to the end of the request, and again to the end of the answer."""

LONGEST_REQUEST = 16 * 1024
"""Bytes of a request, with all its headers."""

OUT_OF_FILES = 0.1
"""Seconds to wait when no connection can be accepted: the next try would fail as soon."""


class BoundedServer(ThreadingHTTPServer):
    """Serves requests with `handler`, a subclass of `BoundedHandler`, at an IP address or a host
    name; port 0 is any free one, and `port` says which.

    Each connection has a thread of its own. Raises OSError for an address that is none, or taken.
    """

    daemon_threads = True
    request_queue_size = 128
    allow_reuse_address = True

    def __init__(self, address: str, port: int, handler: type[BaseHTTPRequestHandler]) -> None:
        found = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        self.address_family, _, _, _, (host, number, *_) = found[0]
        self.connections: dict[socket.socket, None] = {}
        self.guard = threading.Lock()
        super().__init__((str(host), int(number)), handler)

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def serve(self, name: str) -> None:
        """In a thread called `name`, until `stop`."""
        threading.Thread(target=self.serve_forever, name=name, daemon=True).start()

    def stop(self) -> None:
        self.shutdown()
        self.server_close()

    def server_bind(self) -> None:
        """Not as HTTPServer does, which asks the name service who we are."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.port

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            return super().get_request()
        except OSError:
            time.sleep(OUT_OF_FILES)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        with self.guard:
            self.connections[request] = None
            waiting = list(self.connections)
        if len(waiting) > MOST_CONNECTIONS:
            with self.guard:
                self.connections.pop(waiting[0], None)
            with suppress(OSError):  # it may just have ended
                waiting[0].shutdown(socket.SHUT_RDWR)  # its thread reads that, and ends
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self.guard:
            self.connections.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up in the middle of it is no news, and no traceback. Called while the
        exception is handled."""
        if not isinstance(sys.exception(), OSError):
            log.exception("a request to port %d was not answered", self.port)  # noqa: LOG004


class BoundedHandler(BaseHTTPRequestHandler):
    """One request of a BoundedServer, which `do_GET` answers."""

    def handle(self) -> None:
        head = self.read_head()
        if head is None:
            return
        self.rfile = io.BytesIO(head)
        self.connection.settimeout(PATIENCE)
        self.handle_one_request()

    def read_head(self) -> bytes | None:
        """The request and its headers; None if they do not come, in time or at all."""
        head = b""
        deadline = time.monotonic() + PATIENCE
        while b"\r\n\r\n" not in head and b"\n\n" not in head:
            left = deadline - time.monotonic()
            if left <= 0 or len(head) > LONGEST_REQUEST:
                return None
            self.connection.settimeout(left)
            part = self.connection.recv(LONGEST_REQUEST)
            if not part:
                return None
            head += part
        return head

    def log_message(self, format: str, *arguments: object) -> None:
        """A probe every second is no news."""
