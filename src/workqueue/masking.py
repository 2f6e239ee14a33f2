"""The one place that knows where a URL keeps secrets: to hide them, and to warn of them.

It works on what is not quite a URL as well: the password may be the reason why it is not.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

HIDDEN = "***"

SECRET = re.compile(r"(?i)pass|pwd|secret|token|credential|signature|(?:api|access)[-_.]?key")
"""In the name of a query's parameter."""

PARAMETER = re.compile(r"([?&;])([^=&;?]*)=([^&;]+)")

HOST = r"(?:\[[0-9a-f:.]*\]|[^:,\[\]@]*)(?::\d*)?"
HOSTS = re.compile(rf"(?i){HOST}(?:,{HOST})*")
"""What may come after the // if there is no login."""

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,30}://\S*")
"""Schemes have a bound, as else the search in a long word would begin again at each letter."""


def mask(url: str) -> str:
    """`url` without its password, and without what its query calls a secret.

    Hidden is all from the first colon of the login to the last @; without an @, from the first
    colon on if what follows is no port. What names no scheme, and has no @, is left as it is.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        scheme, rest = "", url
        if "@" not in url:
            return url
    login, at, place = rest.rpartition("@")
    if not at:
        host = re.split(r"[/?#]", rest, maxsplit=1)[0]
        if not HOSTS.fullmatch(host):
            login, place = rest, ""
    user, colon, password = login.partition(":")
    if password:
        login = f"{user}{colon}{HIDDEN}"
    return f"{scheme}{separator}{login}{at}{PARAMETER.sub(mask_parameter, place)}"


def mask_parameter(found: re.Match[str]) -> str:
    mark, name, value = found.groups()
    return f"{mark}{name}={HIDDEN if SECRET.search(unquote(name)) else value}"


def has_secret(url: str) -> bool:
    """Whether `mask` would hide something."""
    return mask(url) != url


def mask_all(text: str) -> str:
    """`text` with all URLs in it masked."""
    return URL.sub(lambda found: mask(found[0]), text) if "://" in text else text
