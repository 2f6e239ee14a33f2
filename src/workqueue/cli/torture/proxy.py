"""A TCP proxy with faults, in this process: what a network does to a connection, on demand.

    with Proxy("127.0.0.1", 5672) as proxy:
        url = proxy.through("amqp://guest@127.0.0.1:5672/")
        proxy.stall("up")       # bytes wait here; both kernels think all is well
        proxy.drop()            # bytes vanish, both ways; so do closes: a half-open connection
        proxy.forget()          # bytes of the connections there are vanish, as behind a NAT
        proxy.cut_after(1000)   # both ends are reset after a thousand more bytes, either way
        proxy.reset_all()       # both ends of every connection are reset now
        proxy.refuse()          # nobody listens
        proxy.accept_only()     # somebody accepts, and says nothing
        proxy.heal()            # new connections pass; those that lost bytes are reset

"up" is from the client to the broker, "down" the other way; without a direction, both.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
import time
from typing import Literal, Self
from urllib.parse import urlsplit

Direction = Literal["up", "down"]
BOTH: tuple[Direction, Direction] = ("up", "down")
TICK = 0.01
"""Seconds. How soon a change is noticed by connections on which nothing moves."""

RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: closing sends a reset, and forgets what was not sent."""


class Proxy:
    """Listens on a free port of 127.0.0.1, which stays the same, and passes all on to a target."""

    def __init__(self, host: str, port: int) -> None:
        self.target = (host, port)
        self.stalled: set[Direction] = set()
        self.dropping: set[Direction] = set()
        self.cuts: dict[Direction, int] = {}
        self.delays: dict[Direction, float] = {}
        self.bytes: dict[Direction, int] = {"up": 0, "down": 0}
        self.accepted = 0
        self.mute = False
        self.links: set[Link] = set()
        self.lock = threading.Lock()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.listening = True
        threading.Thread(target=self._accept, args=(self.listener,), daemon=True).start()

    def through(self, url: str) -> str:
        """The URL, by way of this proxy."""
        parts = urlsplit(url)
        login, at, _ = parts.netloc.rpartition("@")
        return parts._replace(netloc=f"{login}{at}127.0.0.1:{self.port}").geturl()

    # -- faults

    def stall(self, *directions: Direction) -> None:
        """Hold all bytes from now on; `heal` lets them go on their way."""
        self.stalled.update(directions or BOTH)

    def drop(self, *directions: Direction) -> None:
        """Lose all bytes from now on, and closes too: neither end hears of the other."""
        self.dropping.update(directions or BOTH)

    def forget(self) -> None:
        """Lose all bytes of the connections there are, as a NAT does that dropped them from its
        table. New ones are not affected."""
        for link in list(self.links):
            link.forgotten = True

    def delay(self, seconds: float, *directions: Direction) -> None:
        """Hold each piece for so long before it goes on."""
        self.delays.update(dict.fromkeys(directions or BOTH, seconds))

    def cut_after(self, count: int, *directions: Direction) -> None:
        """Reset both ends of the connection over which, from now, the `count`-th byte passes."""
        with self.lock:
            self.cuts.update(dict.fromkeys(directions or BOTH, count))

    def reset_all(self) -> None:
        """Both ends of every connection are reset. New ones are not affected."""
        for link in list(self.links):
            link.reset = True
        for link in list(self.links):
            link.ended.wait()

    def refuse(self) -> None:
        """Nobody listens any more; the connections that are there go on."""
        if self.listening:
            self.listening = False
            self.listener.shutdown(socket.SHUT_RDWR)  # wakes accept
            self.listener.close()

    def accept_only(self) -> None:
        """New connections are accepted, and hear nothing."""
        self.mute = True

    def heal(self) -> None:
        """All passes again. Connections that lost bytes are reset: with holes they are not TCP."""
        every = self.dropping or self.mute
        holed = [link for link in self.links if every or link.forgotten]
        for link in holed:
            link.reset = True
        self.mute = False
        for fault in (self.stalled, self.dropping, self.delays, self.cuts):
            fault.clear()
        for link in holed:
            link.ended.wait()
        if not self.listening:
            self.listener = socket.create_server(("127.0.0.1", self.port))
            self.listening = True
            threading.Thread(target=self._accept, args=(self.listener,), daemon=True).start()

    def close(self) -> None:
        """Nobody listens, and no connection is left."""
        self.refuse()
        self.reset_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    # -- the work

    def _accept(self, listener: socket.socket) -> None:
        """Until the listener is closed, give each connection its two threads."""
        with contextlib.suppress(OSError):
            while True:
                client = listener.accept()[0]
                self.accepted += 1
                link = Link(client)
                self.links.add(link)
                threading.Thread(target=self._serve, args=(link,), daemon=True).start()

    def _serve(self, link: Link) -> None:
        """Carry bytes up in this thread and down in another, until both have ended."""
        try:
            while self.mute and not link.reset:
                time.sleep(TICK)
            if not link.reset:
                link.broker = socket.create_connection(self.target, timeout=10)
                for end in (link.client, link.broker):
                    end.setblocking(False)
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                down = threading.Thread(target=self._carry, args=(link, "down"), daemon=True)
                down.start()
                self._carry(link, "up")
                down.join()
        except OSError:
            link.reset = True  # the target refuses, and so do we
        finally:
            link.close()
            self.links.discard(link)
            link.ended.set()

    def _carry(self, link: Link, way: Direction) -> None:
        """Carry bytes one way until their source ends, or the link is reset."""
        assert link.broker
        source, sink = (link.client, link.broker)[:: 1 if way == "up" else -1]
        try:
            while not link.reset:
                if not select.select([source], [], [], TICK)[0]:
                    continue
                data = source.recv(65536)
                self._hold(link, way)
                if way in self.dropping or link.forgotten:
                    if not data:  # the other end is not to hear of it
                        self._wait_for_reset(link)
                    continue
                if not data:
                    sink.shutdown(socket.SHUT_WR)
                    return
                self._send(link, sink, self._allowed(link, way, data), way)
        except OSError:
            # One end was reset: the other hears of it, unless nothing is heard at all.
            if way in self.dropping or link.forgotten:
                self._wait_for_reset(link)
            link.reset = True

    def _hold(self, link: Link, way: Direction) -> None:
        """Wait while this direction is stalled or slow."""
        until = time.monotonic() + self.delays.get(way, 0)
        while (way in self.stalled or time.monotonic() < until) and not link.reset:
            time.sleep(TICK)

    def _wait_for_reset(self, link: Link) -> None:
        while not link.reset:
            time.sleep(TICK)

    def _allowed(self, link: Link, way: Direction, data: bytes) -> bytes:
        """As much of `data` as may pass before a cut."""
        with self.lock:
            if way not in self.cuts:
                return data
            allowed = data[: self.cuts[way]]
            self.cuts[way] -= len(allowed)
            if self.cuts[way] == 0:
                self.cuts.clear()
                link.reset_when_sent = True
            return allowed

    def _send(self, link: Link, sink: socket.socket, data: bytes, way: Direction) -> None:
        """All of `data`, however slowly it is taken."""
        with self.lock:
            self.bytes[way] += len(data)
        left = memoryview(data)
        while left and not link.reset:
            if select.select([], [sink], [], TICK)[1]:
                left = left[sink.send(left) :]
        if link.reset_when_sent:
            # A reset forgets what the receiver has not read: let it read what came before the cut.
            time.sleep(5 * TICK)
            link.reset = True


class Link:
    """A connection through the proxy: its two sockets, and how it is to end."""

    def __init__(self, client: socket.socket) -> None:
        self.client = client
        self.broker: socket.socket | None = None
        self.reset = False
        self.forgotten = False
        self.reset_when_sent = False
        self.ended = threading.Event()

    def close(self) -> None:
        """Close both sockets, in peace or with a reset."""
        for end in (self.client, self.broker):
            if end is not None:
                if self.reset:
                    with contextlib.suppress(OSError):
                        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                end.close()
