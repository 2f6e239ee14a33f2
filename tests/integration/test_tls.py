"""TLS on a real RabbitMQ: always verified, and what does not hold is said at once."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.broker import Broker, Vhost
from tests.integration.programs import Desk, Result

if shutil.which("openssl") is None:
    pytest.skip("making certificates takes the command openssl", allow_module_level=True)

LISTEN = """
rabbit_networking:ensure_ssl(),
Key = {{'PrivateKeyInfo', base64:decode("{key}")}},
Options = fun(Certificate) -> [{{cert, base64:decode(Certificate)}}, {{key, Key}}] end,
Mutual = Options("{mutual}") ++ [{{cacerts, [base64:decode("{ca}")]}}, {{verify, verify_peer}},
  {{fail_if_no_peer_cert, true}}],
application:set_env(rabbit, auth_mechanisms, ['PLAIN', 'AMQPLAIN', 'EXTERNAL']),
application:set_env(rabbit, ssl_cert_login_from, common_name),
application:set_env(rabbit, ssl_options, [{{verify, verify_peer}}, {{fail_if_no_peer_cert, true}}]),
rabbit_networking:start_ssl_listener(5671, Options("{good}") ++
  [{{sni_hosts, [{{"expired.test", Options("{expired}")}}, {{"mutual.test", Mutual}}]}}], 5).
"""
"""Erlang, for the broker: listen with the good certificate, and with the expired one for whoever
asks for that name; whoever asks for mutual.test must show a certificate of his own."""


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

    def client(self, user: str) -> dict[str, Path]:
        """The options of a URL with a certificate for a user."""
        made = {"certfile": self.folder / f"{user}.pem", "keyfile": self.folder / f"{user}.key"}
        request = ("-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={user}", "-out", "user.csr")
        self.openssl("req", *request, "-keyout", made["keyfile"].name)
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "9")
        self.openssl("x509", "-req", *signed, "-in", "user.csr", "-out", made["certfile"].name)
        return made

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
        mutual, ca = authority.certify("mutual.test", 60), pem_body(authority.certificate)
        code = LISTEN.format(key=authority.key, good=good, expired=expired, mutual=mutual, ca=ca)
        broker.enable("rabbitmq_auth_mechanism_ssl")
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


def test_a_certificate_of_ones_own(
    desk: Desk, broker: Broker, vhost: Vhost, authority: Authority, tmp_path: Path
) -> None:
    """It is the login where the URL names no user, and is shown in any case."""
    ours = {"cacertfile": authority.certificate, "server_name_indication": "mutual.test"}
    place = f"localhost:{broker.tls_port}/{vhost.name}"

    def send(login: str, **options: object) -> Result:
        query = "&".join(f"{name}={value}" for name, value in {**ours, **options}.items())
        return desk.run("send", "q", "x", WORKQUEUE_URL=f"amqps://{login}{place}?{query}")

    guest, nobody = authority.client("guest"), authority.client("nobody")
    assert send("", **guest).code == 0
    assert send("guest:guest@", **nobody).code == 0

    unknown = send("", **nobody)
    assert unknown.code == 77, unknown
    assert "EXTERNAL" in unknown.err
    assert "must exist in RabbitMQ" in unknown.err

    without = send("guest:guest@")
    assert without.code in (69, 77), without  # the broker may hang up before it says why
    stranger = Authority(tmp_path).client("guest")
    strange = send("", **stranger)
    assert strange.code in (69, 77), strange
    for result in (without, strange):
        if result.code == 77:
            assert "certificate" in result.err.splitlines()[1], result

    rows = desk.run("doctor", "--json", WORKQUEUE_URL=desk.url).json
    assert not [row for row in rows if row["state"] == "fail"]
