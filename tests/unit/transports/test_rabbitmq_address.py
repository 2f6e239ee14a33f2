"""A broker's URL, taken strictly, and never repeated: it may hold the password."""

from __future__ import annotations

import traceback
from contextlib import suppress
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workqueue import connect
from workqueue.errors import ConfigError
from workqueue.transports.rabbitmq.address import Address, Source, parse


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("amqp://localhost", Address((("localhost", 5672),))),
        ("AMQP://LocalHost", Address((("localhost", 5672),))),
        ("amqp://localhost/", Address((("localhost", 5672),))),
        ("amqps://localhost", Address((("localhost", 5671),), tls=True)),
        ("amqp://guest@localhost", Address((("localhost", 5672),))),
        ("amqp://u:p@h:1", Address((("h", 1),), user="u", password="p")),
        ("amqp://u@h", Address((("h", 5672),), user="u", password="")),
        ("amqp://u:@h", Address((("h", 5672),), user="u", password="")),
        ("amqp://guest:@h", Address((("h", 5672),), user="guest", password="")),
        (
            "amqp://u%40x:p%40%3A%2F%23%25@h/v%2Fhost",
            Address((("h", 5672),), user="u@x", password="p@:/#%", vhost="v/host"),
        ),
        ("amqp://h/%2F", Address((("h", 5672),))),
        ("amqp://guest:guest@h:5672//", Address((("h", 5672),))),
        ("amqp://h//?heartbeat=9", Address((("h", 5672),), heartbeat=9.0)),
        ("amqp://h//x", Address((("h", 5672),), vhost="/x")),
        ("amqp://h/%2Fx", Address((("h", 5672),), vhost="/x")),
        ("amqp://h/jobs", Address((("h", 5672),), vhost="jobs")),
        ("amqp://h/caf%C3%A9", Address((("h", 5672),), vhost="café")),
        ("amqp://[::1]:5673/x", Address((("[::1]", 5673),), vhost="x")),
        ("amqp://127.0.0.1", Address((("127.0.0.1", 5672),))),
        ("amqp://my_host.local", Address((("my_host.local", 5672),))),
        (
            "amqp://u:p@a:1,b,[::1]:2/v",
            Address((("a", 1), ("b", 5672), ("[::1]", 2)), user="u", password="p", vhost="v"),
        ),
        ("amqp://h?heartbeat=60", Address((("h", 5672),), heartbeat=60.0)),
        (
            (
                "amqps://h/v?cacertfile=/ca.pem&certfile=/c.pem&keyfile=/k.pem"
                "&server_name_indication=broker"
            ),
            Address(
                (("h", 5671),),
                vhost="v",
                tls=True,
                cacertfile="/ca.pem",
                certfile="/c.pem",
                keyfile="/k.pem",
                server_name="broker",
            ),
        ),
    ],
)
def test_urls_that_make_sense(url: str, expected: Address) -> None:
    """Each part is where the URI specification has it, percent-encoded or left out."""
    assert parse(url) == expected


BAD = [
    "amqp:/127.0.0.1",
    "amqp:127.0.0.1",
    "127.0.0.1:5672",
    "amqp://",
    "amqp://u:SECRET@",
    "amqp:///jobs",
    "http://u:SECRET@h",
    "amqpx://u:SECRET@h",
    "amqp://u:SE#CRET@h",
    "amqp://u:SE/CRET@h",
    "amqp://u:SE?CRET@h",
    "amqp://u:SE@CRET@h",
    "amqp://u:SE:CRET@h",
    "amqp://u:SE%CRET@h",
    "amqp://u:SE%ffCRET@h",
    "amqp://u:SE CRET@h",
    "amqp://:SECRET@h",
    "amqp://u:SECRET@h:port",
    "amqp://u:SECRET@h:0",
    "amqp://u:SECRET@h:65536",
    "amqp://u:SECRET@h:",
    "amqp://u:SECRET@h:1:2",
    "amqp://u:SECRET@a,,b",
    "amqp://u:SECRET@h/a/b",
    "amqp://u:SECRET@h///",
    "amqp://u:SECRET@h//a/b",
    "amqp://u:SECRET@h/v#fragment",
    "amqp://u:SECRET@-h",
    "amqp://u:SECRET@h h",
    "amqp://u:SECRET@::1",
    "amqp://u:SECRET@h?heartbeat=0",
    "amqp://u:SECRET@h?heartbeat=nan",
    "amqp://u:SECRET@h?heartbeat=SECRET",
    "amqp://u:SECRET@h?heartbeat=86400",
    "amqp://u:SECRET@h?password=SECRET",
    "amqp://u:SECRET@h?cacertfile=/ca.pem",
    "amqps://u:SECRET@h?keyfile=/k.pem",
    "amqps://u:SECRET@h?verify=verify_none",
    "amqp://u:SECRET@h\n",
    " amqp://u:SECRET@h",
]


@pytest.mark.parametrize("url", BAD)
def test_urls_that_do_not(url: str) -> None:
    """They are refused with what is wrong and how to write it, and without a word of the URL."""
    with pytest.raises(ConfigError) as caught:
        parse(url)
    told = "".join(traceback.format_exception(caught.value, limit=0)) + caught.value.hint
    assert caught.value.hint
    assert "SE" not in told
    assert "CRET" not in told


visible = st.characters(min_codepoint=33, max_codepoint=126)


@given(url=st.builds("{}{}".format, st.sampled_from(["amqp://", "amqps://", ""]), st.text(visible)))
def test_any_text_is_an_address_or_a_config_error(url: str) -> None:
    """No other error."""
    with suppress(ConfigError):
        address = parse(url)
        assert address.hosts
        assert all(0 < port < 65536 for _, port in address.hosts)


@given(
    user=st.text(min_size=1, max_size=20).filter(lambda text: "\0" not in text),
    password=st.text(max_size=20),
    vhost=st.text(min_size=1, max_size=20),
)
def test_anything_can_be_percent_encoded(user: str, password: str, vhost: str) -> None:
    """Any user, password and virtual host can be written."""
    url = f"amqp://{quote(user, safe='')}:{quote(password, safe='')}@h/{quote(vhost, safe='')}"
    address = parse(url)
    assert (address.user, address.password, address.vhost) == (user, password, vhost)


def test_the_password_is_in_no_repr() -> None:
    """Neither in that of the address, nor in what an f-string makes of it."""
    address = parse("amqp://u:SECRET@h")
    assert "SECRET" not in repr(address) + str(address) + f"{address}"
    assert address.password == "SECRET"


def test_the_password_is_in_no_error_of_a_transport() -> None:
    """A broker that cannot be reached is named by host and port alone."""
    from workqueue import ConnectionLost

    with (
        connect("amqp://user:SECRET@127.0.0.1:1") as broker,
        pytest.raises(ConnectionLost) as caught,
    ):
        broker.queue("q").stats()
    whole = "".join(traceback.format_exception(caught.value))
    assert "127.0.0.1:1" in str(caught.value)
    assert "SECRET" not in whole


def test_tls_checks_the_host_name() -> None:
    """The certificate is for the host that was asked for, or for the name that was given."""
    assert parse("amqps://h").certified_name("h") == "h"
    named = parse("amqps://[::1]?server_name_indication=broker")
    assert named.certified_name("[::1]") == "broker"
    assert parse("amqps://[::1]").certified_name("[::1]") == "::1"


# -- a URL that changes ------------------------------------------------------------------------


class Text:
    """What a file with a URL in it holds; an exception is what reading it raises."""

    def __init__(self, content: str | Exception) -> None:
        self.content = content
        self.moves = 0

    def read(self) -> str:
        if isinstance(self.content, Exception):
            raise self.content
        return self.content

    def moved(self) -> None:
        self.moves += 1


def test_a_new_password_is_seen_at_the_next_connect() -> None:
    """It is the same broker, of which all that is known stays known."""
    text = Text("amqp://ada:old@h/v")
    source = Source(text.read, text.moved)
    assert source.now().password == "old"
    text.content = "amqps://ada:new@h/v?heartbeat=5"
    assert (source.now().password, source.now().heartbeat) == ("new", 5.0)
    assert text.moves == 1  # another port, by its scheme
    text.content = "amqps://bob:new@h/v"
    assert source.now().user == "bob"
    assert text.moves == 1


@pytest.mark.parametrize("url", ["amqp://ada:new@other/v", "amqp://ada:new@h/w"])
def test_another_broker_is_not_known_yet(url: str) -> None:
    """What was seen on the first is not there on the second."""
    text = Text("amqp://ada:new@h/v")
    source = Source(text.read, text.moved)
    text.content = url
    source.now()
    source.now()
    assert text.moves == 1


@pytest.mark.parametrize(
    "between",
    ["", "amqp://ada:SECR", "nonsense SECR", "sqlite:///x", ConfigError("gone"), OSError("SECR")],
)
def test_what_makes_no_sense_for_a_moment(
    between: str | Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that is just being written: the last URL stays, which is said once, without it."""
    text = Text("amqp://ada:old@h/v")
    source = Source(text.read, text.moved)
    text.content = between
    for _ in range(3):
        assert source.now().password == "old"
    assert len(caplog.records) == 1
    assert "SECR" not in caplog.text
    text.content = "amqp://ada:new@h/v"
    assert source.now().password == "new"
    text.content = between
    source.now()
    assert len(caplog.records) == 2


def test_a_first_url_must_make_sense() -> None:
    """It was never any better."""
    with pytest.raises(ConfigError):
        Source(lambda: "amqp://", lambda: None)


def test_connect_takes_a_function() -> None:
    """RabbitMQ's transport calls it each time, the others once."""
    urls = iter(["amqp://h/a", "amqp://h/b", "amqp://h/c"])
    transport = connect(lambda: next(urls)).transport
    assert transport.address.vhost == "c"  # type: ignore[attr-defined]
    once = iter(["memory://once"])
    connect(lambda: next(once)).queue("q").declare()
