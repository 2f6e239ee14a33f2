"""From a host's name to a connected socket, with or without TLS, before the deadline.

py-amqp gives each address, and each read of a TLS handshake, the whole of its connect timeout, and
a name look-up any time at all. Here all of it together takes what the deadline leaves.
"""

from __future__ import annotations

import os
import queue
import select
import shlex
import socket
import ssl
import stat
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from amqp.transport import SSLTransport, TCPTransport

from workqueue.deadline import left
from workqueue.errors import AccessRefused, ConfigError
from workqueue.loggers import logger
from workqueue.transports.rabbitmq.address import Address

log = logger("rabbitmq")

Found = list[tuple[Any, Any, int, str, Any]]
"""What `socket.getaddrinfo` gives."""

SHORTEST = 0.001
"""Seconds. A socket's timeout of zero would mean not to wait at all, and another error."""


class Dialled:
    """What both of py-amqp's transports do otherwise here."""

    sock: Any

    def _connect(self, host: str, port: int, _timeout: float) -> None:
        """To the first address that answers; each has its share of the time."""
        found = addresses(host, port)
        for number, (family, kind, protocol, _, place) in enumerate(found, 1):
            self.sock = socket.socket(family, kind, protocol)
            try:
                self.sock.settimeout(max(left() / (len(found) - number + 1), SHORTEST))
                self.sock.connect(place)
            except OSError:
                self.sock.close()
                self.sock = None
                if number == len(found):
                    raise
            else:
                return


class DialledTCP(Dialled, TCPTransport):  # type: ignore[misc]  # py-amqp has no types
    """Without TLS."""


class DialledTLS(Dialled, SSLTransport):  # type: ignore[misc]  # py-amqp has no types
    """With TLS; the certificate and its name are always checked."""

    def _setup_transport(self) -> None:
        self.sock.setblocking(False)
        self.sock = self.sslopts["context"].wrap_socket(
            self.sock,
            server_hostname=self.sslopts["server_hostname"],
            do_handshake_on_connect=False,
        )
        shake_hands(self.sock)
        self._quick_recv = self.sock.read


def addresses(host: str, port: int) -> Found:
    """The addresses of `host`. Raises OSError, TimeoutError if they are not found in time.

    The system's look-up knows no timeout, so it runs in a thread of its own, which may outlast
    the wait for it.
    """
    with suppress(socket.gaierror):
        return resolve(host, port, socket.AI_NUMERICHOST)
    answers: queue.SimpleQueue[Found | OSError] = queue.SimpleQueue()

    def look_up() -> None:
        try:
            answers.put(resolve(host, port))
        except OSError as error:
            answers.put(error)

    try:
        threading.Thread(target=look_up, name="workqueue-dns", daemon=True).start()
    except RuntimeError:  # this user may have no more threads
        look_up()
    try:
        answer = answers.get(timeout=left(threading.TIMEOUT_MAX))
    except queue.Empty:
        raise TimeoutError("the look-up of its name takes too long") from None
    if isinstance(answer, OSError):
        raise answer
    return answer


def resolve(host: str, port: int, flags: int = 0) -> Found:
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    except UnicodeError as error:  # a label that is empty or too long
        told = "this cannot be the name of a host"
        raise socket.gaierror(socket.EAI_NONAME, told) from error


def shake_hands(sock: ssl.SSLSocket) -> None:
    """On a socket that does not block. Raises TimeoutError at the deadline."""
    poller = select.poll()
    while True:
        try:
            sock.do_handshake()
        except ssl.SSLWantReadError:
            poller.register(sock, select.POLLIN)
        except ssl.SSLWantWriteError:
            poller.register(sock, select.POLLOUT)
        else:
            return
        if not poller.poll(left() * 1000):
            raise TimeoutError("the TLS handshake takes too long")


# -- certificates and keys ---------------------------------------------------------------------


class UnusableFile(AccessRefused):
    """A file that the URL names does not hold what it should; `command` shows what it holds."""

    def __init__(self, message: str, command: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.command = command


class Encrypted(Exception):
    """A key wants a pass phrase."""


loaded: dict[tuple[str | None, ...], ssl.SSLContext] = {}
"""By the names of their files. Certificates are replaced while a worker runs, and not always in
one go: a connection that is made in between goes on with what was there before."""


def tls_context(address: Address) -> ssl.SSLContext:
    """What the files that the URL names are good for, at the moment or when they were last good.

    Raises ConfigError for one that cannot be read, UnusableFile for one with something else in it.
    """
    files = (address.cacertfile, address.certfile, address.keyfile)
    try:
        loaded[files] = load(*files)
    except (ConfigError, UnusableFile) as error:
        if files not in loaded:
            raise
        log.warning("%s: going on with the one before", error)
    return loaded[files]


def load(cacertfile: str | None, certfile: str | None, keyfile: str | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if cacertfile is None:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    else:
        check_file("cacertfile", cacertfile)
        try:
            context.load_verify_locations(cacertfile)
        except ssl.SSLError as error:
            raise no_certificate("cacertfile", cacertfile) from error
    if certfile is not None:
        load_own(context, certfile, keyfile)
    return context


def load_own(context: ssl.SSLContext, certfile: str, keyfile: str | None) -> None:
    """The certificate to show to the broker, and its key."""
    option, key = ("certfile", certfile) if keyfile is None else ("keyfile", keyfile)
    check_file("certfile", certfile)
    check_file(option, key)

    def refuse() -> NoReturn:
        # Without this, OpenSSL would ask for the pass phrase on the terminal, and wait.
        raise Encrypted

    show_key = f"openssl pkey -in {shlex.quote(key)}"
    try:
        context.load_cert_chain(certfile, keyfile, password=refuse)
    except Encrypted:
        raise UnusableFile(
            f"the key in {option}={key} is encrypted, and nobody is asked for its pass phrase",
            f"{show_key} -out {shlex.quote(key)}.plain",
            hint="Name a file with the plain key, which only this user may read (mode 0600).",
        ) from None
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            told = f"the key in {option}={key} does not belong to the certificate in {certfile}"
            raise UnusableFile(told, f"{show_key} -pubout") from error
        if b"PRIVATE KEY-----" in Path(key).read_bytes():
            raise no_certificate("certfile", certfile) from error
        raise UnusableFile(
            f"{option}={key} holds no private key in PEM",
            f"{show_key} -noout",
            hint="Name the file of the certificate's key: &keyfile=FILE",
        ) from error


def check_file(option: str, file: str) -> None:
    """Raise ConfigError for one that nobody could read, or that one could read for ever."""
    try:
        if not stat.S_ISREG(os.stat(file).st_mode):  # noqa: PTH116 - a str, which is not resolved
            reason = "is not a regular file"
        elif not os.access(file, os.R_OK):
            reason = "cannot be read: Permission denied"
        else:
            return
    except (OSError, ValueError) as error:
        reason = f"cannot be read: {getattr(error, 'strerror', None) or error}"
    raise ConfigError(f"the RabbitMQ URL names {option}={file}, which {reason}")


def no_certificate(option: str, file: str) -> UnusableFile:
    return UnusableFile(
        f"{option}={file} holds no certificate in PEM",
        f"openssl x509 -in {shlex.quote(file)} -noout -subject",
        hint="Such a file has a line -----BEGIN CERTIFICATE-----.",
    )
