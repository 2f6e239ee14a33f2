"""A RabbitMQ image of each series under test, from wherever it can be had.

One of ours that is here already; else the official one; else, where no image registry answers,
one made from Debian's packages, for which this machine must be Debian or Ubuntu and we be root.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from typing import IO, Any

from tests.integration.engine import (
    OR_ELSE,
    SYSTEM_PATH,
    Say,
    Unavailable,
    apt_install,
    on_debian,
)

OURS = "workqueue-test-rabbitmq"


@dataclass(frozen=True, slots=True)
class Series:
    """A RabbitMQ series: the release of it that is pulled, and the Debian that has one."""

    name: str
    release: str
    debian: str


SERIES = {
    series.name: series
    for series in (
        Series("3.10", "3.10.8", "bookworm"),
        Series("4.0", "4.0.5", "trixie"),
        Series("4.3", "4.3.6", "forky"),
    )
}


def find_or_make(series: Series, say: Say) -> str:
    """The name of an image of `series` that the engine has now. Raises Unavailable."""
    from testcontainers.core.config import testcontainers_config
    from testcontainers.core.docker_client import DockerClient

    client = DockerClient(timeout=30).client
    official = f"{testcontainers_config.hub_image_name_prefix}rabbitmq:{series.release}-management"
    try:
        for name in (f"{OURS}:{series.name}", official):
            if client.images.list(name=name):
                return name
        refused = pull(client, official)
        if not refused:
            return official
        say(f"making RabbitMQ {series.name} from Debian {series.debian}: {official} {refused}")
        return make(client, series)
    finally:
        client.close()


def pull(client: Any, name: str, within: float = 300) -> str:
    """Pull the image; returns why that failed, or nothing."""
    import requests
    from docker.errors import DockerException

    deadline = time.monotonic() + within
    repository, _, tag = name.rpartition(":")
    try:
        for event in client.api.pull(repository, tag, stream=True, decode=True):
            if "error" in event:
                return f"cannot be pulled ({event['error']})"
            if time.monotonic() > deadline:
                return f"was not pulled within {within:g} s"
    except (DockerException, requests.RequestException) as error:
        return f"cannot be pulled ({getattr(error, 'explanation', None) or error})"
    return ""


def make(client: Any, series: Series) -> str:
    """An image of ours, of Debian's rabbitmq-server and no more than that needs; about 30 s."""
    if os.geteuid() != 0 or not on_debian():
        raise Unavailable(
            f"no image of RabbitMQ {series.release} can be pulled, and making one takes root on"
            f" Debian or Ubuntu: let the engine reach an image registry, {OR_ELSE}"
        )
    client.api.timeout = 600  # seconds, for all that is silent while it works
    if not shutil.which("mmdebstrap", path=SYSTEM_PATH):
        apt_install("mmdebstrap", "debian-archive-keyring")
    command = [
        "mmdebstrap",
        "--quiet",
        "--variant=minbase",
        "--include=rabbitmq-server",
        "--dpkgopt=force-unsafe-io",
        # A suite's list of packages may be older than it says it is good for.
        '--aptopt=Acquire::Check-Valid-Until "false"',
        # As `rabbitmq-plugins enable --offline` writes it.
        """--customize-hook=echo '[rabbitmq_management].' > "$1/etc/rabbitmq/enabled_plugins\"""",
        # Into the log, for us to read.
        """--customize-hook=chroot "$1" dpkg-query --show rabbitmq-server >&2""",
        series.debian,
        "-",
    ]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            env={**os.environ, "PATH": SYSTEM_PATH},
            start_new_session=True,
        )
        assert process.stdout
        try:
            with process.stdout:
                image = load(client, process.stdout)
            process.wait()
        except BaseException:
            os.killpg(process.pid, signal.SIGTERM)  # its apt-get too
            process.wait()
            raise
        log.seek(0)
        said = log.read().decode(errors="replace")
    found = re.search(r"^rabbitmq-server\t(\S+)", said, re.MULTILINE)
    if process.returncode or not image or not found:
        reason = (
            f"no image of RabbitMQ {series.name} can be pulled, nor made from Debian's packages"
        )
        raise Unavailable(f"{reason}: mend that, {OR_ELSE}", said.splitlines()[-10:])
    if not found[1].startswith(f"{series.name}."):
        client.images.remove(image)
        raise Unavailable(
            f"Debian {series.debian} has RabbitMQ {found[1]} now, not {series.name}: change"
            " tests/integration/images.py"
        )
    client.images.get(image).tag(OURS, series.name)
    return f"{OURS}:{series.name}"


def load(client: Any, tar: IO[bytes]) -> str:
    """The id of a new image with these files, without a name; nothing if that fails."""
    import requests
    from docker.errors import DockerException

    changes = ['CMD ["rabbitmq-server"]']
    try:
        said = client.api.import_image_from_stream(tar, changes=changes)
    except (DockerException, requests.RequestException):
        return ""
    return str(json.loads(said.splitlines()[-1]).get("status", ""))
