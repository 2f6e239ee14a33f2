"""TLS on a real RabbitMQ: always verified, and what does not hold is said at once."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.broker import Broker, Vhost
from tests.integration.programs import Desk

if shutil.which("openssl") is None:
    pytest.skip("making certificates takes the command openssl", allow_module_level=True)

LISTEN = """
rabbit_networking:ensure_ssl(),
Key = {{'PrivateKeyInfo', base64:decode("{key}")}},
Options = fun(Certificate) -> [{{cert, base64:decode(Certificate)}}, {{key, Key}}] end,
rabbit_networking:start_ssl_listener(5671, Options("{good}") ++
  [{{sni_hosts, [{{"expired.test", Options("{expired}")}}]}}], 5).
"""
"""Erlang, for the broker: listen with the good certificate, and with the expired one for whoever
asks for that name."""


class Authority:
    """A certificate authority of our own, and a key that it certifies under several names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.certificate = folder / "ca.pem"
        request = ("req", "-newkey", "rsa:2048", "-nodes", "-subj")
        own = ("-x509", "-days", "99", "-keyout", "ca.key", "-out", "ca.pem")
        self.openssl(*request, "/CN=workqueue test authority", *own)
        self.openssl(*request, "/CN=broker", "-keyout", "key.pem", "-out", "broker.csr")
        self.key = pem_body(folder / "key.pem")

    def certify(self, name: str, days: int) -> str:
        """A certificate for `name`, good for so many days from now, as base64."""
        (self.folder / "ext").write_text(f"subjectAltName=DNS:{name}")
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "ext")
        made = ("-in", "broker.csr", "-out", "made.pem", "-days", str(days))
        self.openssl("x509", "-req", *signed, *made)
        return pem_body(self.folder / "made.pem")

    def openssl(self, *arguments: str) -> None:
        done = subprocess.run(
            ["openssl", *arguments], cwd=self.folder, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr


def pem_body(file: Path) -> str:
    return "".join(line for line in file.read_text().splitlines() if "-----" not in line)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def listening() -> set[int]:
    """The ports on which brokers have been told to listen, with the module's certificates."""
    return set()


@pytest.fixture
def desk(
    tmp_path: Path, broker: Broker, vhost: Vhost, authority: Authority, listening: set[int]
) -> Iterator[Desk]:
    """Its URL leads to a listener with TLS, under the name in its certificate."""
    if not broker.tls_port:
        pytest.skip("WORKQUEUE_TEST_AMQP_URL gives no power over how the broker listens")
    if broker.tls_port not in listening:
        good, expired = authority.certify("localhost", 60), authority.certify("expired.test", -1)
        code = LISTEN.format(key=authority.key, good=good, expired=expired)
        broker.rabbitmqctl("eval", code.replace("\n", " "))
        listening.add(broker.tls_port)
    desk = Desk(tmp_path, secured(broker, vhost, cacertfile=authority.certificate))
    yield desk
    desk.close()


def secured(broker: Broker, vhost: Vhost, host: str = "localhost", **options: object) -> str:
    query = "&".join(f"{name}={value}" for name, value in options.items())
    return f"amqps://guest:guest@{host}:{broker.tls_port}/{vhost.name}?{query}"


def test_a_certificate_that_holds(desk: Desk) -> None:
    """Messages of all sizes go both ways, as they do without TLS."""
    desk.send("q", *(f"sleep 0 {'x' * size}" for size in (1, 20_000, 300_000)))
    desk.send("q", *(f"sleep 0 {n}" for n in range(500)))
    assert desk.drain("q", "-c", "2").code == 0
    assert len(desk.bodies("done")) == 503
    assert max(map(len, desk.bodies("done"))) == 300_008
    rows = {row["check"]: row for row in desk.run("doctor", "q", "--json").json}
    assert rows["tls"]["state"] == "ok"
    assert "verified" in rows["tls"]["found"]


@pytest.mark.parametrize("case", ["unknown authority", "wrong name", "expired"])
def test_a_certificate_that_does_not_hold(
    desk: Desk, broker: Broker, vhost: Vhost, authority: Authority, case: str
) -> None:
    """Exit 77 at once, with a clear line, from a worker too; doctor says how to look at it."""
    ca = authority.certificate
    url, told = {
        "unknown authority": (secured(broker, vhost), "local issuer certificate"),
        "wrong name": (secured(broker, vhost, "127.0.0.1", cacertfile=ca), "IP address mismatch"),
        "expired": (
            secured(broker, vhost, cacertfile=ca, server_name_indication="expired.test"),
            "certificate has expired",
        ),
    }[case]
    for command in (("send", "q", "x"), ("work", "q", "tasks:handle"), ("status", "q")):
        result = desk.run(*command, WORKQUEUE_URL=url)
        assert result.code == 77, result.err
        assert told in result.err
        assert result.err.splitlines()[-3].startswith("workqueue: ")  # a hint comes after it
        assert "trying again" not in result.err
        assert "guest:guest" not in result.err
    result = desk.run("doctor", "--json", WORKQUEUE_URL=url)
    assert result.code == 1
    [row] = [row for row in result.json if row["state"] == "fail"]
    assert row["check"] == "tls"
    assert row["command"].startswith("openssl s_client -connect")


def test_tls_where_there_is_none_and_none_where_there_is(
    desk: Desk, broker: Broker, vhost: Vhost, authority: Authority
) -> None:
    host, port = broker.address
    url = f"amqps://{host}:{port}/{vhost.name}?cacertfile={authority.certificate}"
    result = desk.run("status", "q", WORKQUEUE_URL=url)
    assert result.code == 77
    assert "TLS failed" in result.err
    result = desk.run(
        "status", "q", WORKQUEUE_URL=f"amqp://localhost:{broker.tls_port}/{vhost.name}"
    )
    assert result.code == 69
    assert "Traceback" not in result.err


def test_files_that_cannot_be_read(desk: Desk, broker: Broker, vhost: Vhost) -> None:
    """Are a mistake in the URL, and not tried again."""
    (desk.folder / "garbage").write_text("no certificate")
    for file, code in (("/no/such/ca.pem", 78), (desk.folder / "garbage", 77)):
        url = secured(broker, vhost, cacertfile=file)
        result = desk.run("work", "q", "tasks:handle", WORKQUEUE_URL=url)
        assert result.code == code, result.err
        assert "trying again" not in result.err
