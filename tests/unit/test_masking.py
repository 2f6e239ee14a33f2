"""No secret of a URL is shown, whatever the URL looks like."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from workqueue.cli.options import Session
from workqueue.masking import has_secret, mask, mask_all

SECRETS = st.text(min_size=1).map(lambda text: f"S3{text}CR3T")
"""With marks that occur nowhere else."""

LOGINS = st.sampled_from(["", "ada", "a%20b", "ada.b-c"])
HOSTS = st.sampled_from(["h", "h:5672", "[::1]:1", "a,b:2", "", "127.0.0.1"])
ENDS = st.sampled_from(["", "/", "/v", "//", "/%2F", "?heartbeat=5", "/v?a=b&c=d", "#x"])
SCHEMES = st.sampled_from(["amqp://", "amqps://", "http://", "redis://", "x+y://", "AMQP://"])


def hidden(shown: str, secret: str) -> bool:
    return "S3" not in shown and "CR3T" not in shown and secret not in shown


@given(scheme=SCHEMES, user=LOGINS, host=HOSTS, end=ENDS, secret=SECRETS, quoted=st.booleans())
@example(scheme="amqp://", user="u", host="h", end="", secret="S3@/?#:CR3T", quoted=False)
@example(scheme="amqp://", user="u", host="", end="", secret="S3/CR3T", quoted=False)
def test_passwords(scheme: str, user: str, host: str, end: str, secret: str, quoted: bool) -> None:
    """Written as they should be, or with characters that end a URL's part."""
    url = f"{scheme}{user}:{quote(secret, safe='') if quoted else secret}@{host}{end}"
    assert hidden(mask(url), secret)
    assert has_secret(url)
    assert mask(mask(url)) == mask(url)


@given(
    host=HOSTS,
    name=st.sampled_from(["password", "PASSWD", "p%61ss", "api_key", "x-token", "client_secret"]),
    secret=SECRETS,
    before=st.sampled_from(["?", "?a=b&", "/v?x=y&"]),
)
def test_secrets_in_the_query(host: str, name: str, secret: str, before: str) -> None:
    """By the name of the parameter, however it is written."""
    url = f"amqps://{host}{before}{name}={quote(secret, safe='')}&z=1"
    assert hidden(mask(url), secret)
    assert has_secret(url)
    assert mask(url).endswith("&z=1")


@given(secret=SECRETS.map(lambda text: quote(text, safe="")))
def test_what_is_not_quite_a_url(secret: str) -> None:
    """Without a host, without a scheme, with the port where the password should be."""
    for url in (f"amqp://ada:{secret}", f"ada:{secret}@h", f"amqp://ada:{secret}/v"):
        assert hidden(mask(url), secret)
        assert has_secret(url)


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:///jobs.db",
        "amqp://h",
        "amqp://h:5672/v?heartbeat=5",
        "amqp://ada@h/v",
        "amqp://[::1]:5672",
        "amqp://a:1,b:2/v",
        "amqps://h?certfile=/c.pem&keyfile=/k.pem&server_name_indication=x",
        "memory://",
        "no url at all",
        "",
    ],
)
def test_what_has_no_secret_stays_as_it_is(url: str) -> None:
    """And nobody is warned of it."""
    assert mask(url) == url
    assert not has_secret(url)


def test_what_is_shown_of_one_that_has() -> None:
    """Who it is and where it leads."""
    assert mask("amqp://ada:pw@h:1/v") == "amqp://ada:***@h:1/v"
    assert mask("amqp://ada:p@w@h/v?password=x&a=b") == "amqp://ada:***@h/v?password=***&a=b"
    assert mask("amqp://ada:pw") == "amqp://ada:***"


@given(secret=SECRETS.map(lambda text: quote(text, safe="")))
def test_in_the_midst_of_text(secret: str) -> None:
    """As an error may quote it."""
    text = f"Got unexpected extra arguments (amqp://ada:{secret}@h https://b:{secret}@i/x) today"
    assert hidden(mask_all(text), secret)
    assert mask_all(text).startswith("Got unexpected extra arguments (amqp://ada:***@h ")


@given(secret=SECRETS)
def test_what_is_hidden_is_also_warned_of(secret: str) -> None:
    """On the command line, where `ps` shows it: one rule for both."""
    session = Session(
        url=f"amqp://ada:{secret}@h",
        url_file=None,
        management_url=f"http://h?token={quote(secret, safe='')}",
        json=False,
        quiet=False,
        verbose=False,
        in_argv=frozenset({"url", "management_url"}),
    )
    assert session.secrets_in_argv() == ["--url", "--management-url"]
