"""What a supervisor asks a worker over HTTP: are you alive, ready, drained?

    GET /alive      200 while the worker's loop goes round and all its slots live, else 503
    GET /ready      200 while it is connected and takes tasks, else 503: it drains, or what is
                    settled cannot be written down (the log says why)
    GET /drained    200 once it was told to stop and has nothing left, else 503

The body is JSON with all three, and with how many tasks run.
"""

from __future__ import annotations

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import msgspec

from workqueue.errors import ConfigError
from workqueue.middleware import Middleware
from workqueue.transport import Hindered

if TYPE_CHECKING:
    from workqueue.worker import Worker

STUCK = 30.0
"""Seconds without a turn of the loop, which takes one at most, until it counts as stuck."""


class Health(Middleware):
    """Answers on `port` of all addresses, for as long as the worker runs."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.server: ThreadingHTTPServer | None = None

    def started(self, worker: Worker) -> None:
        def report() -> dict[str, bool | int]:
            return state_of(worker)

        class Handler(Answer):
            state = staticmethod(report)

        try:
            self.server = ThreadingHTTPServer(("", self.port), Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(f"health port {self.port}: {reason}") from error
        self.server.daemon_threads = True
        self.port = self.server.server_port
        threading.Thread(
            target=self.server.serve_forever, name="workqueue-health", daemon=True
        ).start()

    def stopped(self) -> None:
        server, self.server = self.server, None
        if server is not None:
            server.shutdown()
            server.server_close()


def state_of(worker: Worker) -> dict[str, bool | int]:
    """What the answers say, from the worker's present shift."""
    shift = worker.shift
    if shift is None:
        return {"alive": True, "ready": False, "drained": False, "running": 0}
    draining = shift.stops > 0
    consumer = shift.consumer
    return {
        "alive": shift.failure is None and time.monotonic() - shift.turned_at < STUCK,
        "ready": takes_tasks(consumer) and not draining,
        "drained": draining and not shift.running,
        "running": len(shift.running),
    }


def takes_tasks(consumer: object) -> bool:
    """Whether a consumer, or None, can take any at the moment, as far as it tells."""
    if isinstance(consumer, Hindered):
        return consumer.hindered is None
    return consumer is not None


class Answer(BaseHTTPRequestHandler):
    """One request."""

    def do_GET(self) -> None:
        state = self.state()
        question = self.path.partition("?")[0].strip("/")
        if question not in ("alive", "ready", "drained"):
            self.send_error(404, "Ask for /alive, /ready or /drained")
            return
        body = msgspec.json.encode(state)
        self.send_response(200 if state[question] else 503)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    @staticmethod
    def state() -> dict[str, bool | int]:
        raise NotImplementedError

    def log_message(self, format: str, *arguments: object) -> None:
        """A probe every second is no news."""
