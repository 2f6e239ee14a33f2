"""What a supervisor asks a worker over HTTP: are you alive, ready, drained?

    GET /alive      200 while the worker's loop goes round and all its slots live, else 503
    GET /ready      200 while it is connected and takes tasks, else 503: it drains, or what is
                    settled cannot be written down (the log says why)
    GET /drained    200 once it was told to stop and has nothing left, else 503

The body is JSON with all three, and with how many tasks run.
"""

from __future__ import annotations

import os
import time
from ipaddress import ip_address
from typing import TYPE_CHECKING

import msgspec

from workqueue.errors import ConfigError
from workqueue.loggers import logger
from workqueue.middleware import Middleware
from workqueue.serving import BoundedHandler, BoundedServer
from workqueue.transport import Hindered

if TYPE_CHECKING:
    from workqueue.worker import Worker

STUCK = 30.0
"""Seconds without a turn of the loop, which takes one at most, until it counts as stuck."""


LOCAL = "127.0.0.1"

log = logger("health")


class Health(Middleware):
    """Answers on `port` of `address` for as long as the worker runs; port 0 is any free one.

    The address is this machine's own unless it is named: "0.0.0.0" is all of them, and what a
    probe needs that comes from outside of a container. Who may connect may ask, but not keep the
    worker from its work, nor others from an answer (see `serving`).
    """

    def __init__(self, port: int, address: str = LOCAL) -> None:
        self.port = port
        self.address = address
        self.server: BoundedServer | None = None

    def started(self, worker: Worker) -> None:
        def report() -> dict[str, bool | int]:
            return state_of(worker)

        class Handler(Answer):
            state = staticmethod(report)

        try:
            self.server = BoundedServer(self.address, self.port, Handler)
        except (OSError, OverflowError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(f"health port {self.port} of {self.address}: {reason}") from error
        self.port = self.server.port
        self.server.serve("workqueue-health")
        log.info("answering /alive, /ready and /drained at %s", self.url)
        if is_loopback(self.address) and "KUBERNETES_SERVICE_HOST" in os.environ:
            log.warning(
                "the health port %d listens on %s alone, where no kubelet asks: "
                "for its probes, --health-address 0.0.0.0",
                self.port,
                self.address,
            )

    @property
    def url(self) -> str:
        """Where it answers, once it was started."""
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"http://{host}:{self.port}"

    def stopped(self) -> None:
        server, self.server = self.server, None
        if server is not None:
            server.stop()


def is_loopback(address: str) -> bool:
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


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


class Answer(BoundedHandler):
    """One request."""

    def do_GET(self) -> None:  # noqa: N802 - the name is http.server's
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
