"""A Docker engine for the tests: the one that answers, or one of our own for as long as they run.

Our own has its socket, its state and its images in places of its own, so that it meets nothing
else on the machine, and is started only where WORKQUEUE_TEST_START_DOCKER=1 allows it (`./dev test`
says so): as root on Debian or Ubuntu, where `apt-get` can bring what is missing.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

Say = Callable[[str], None]

OR_ELSE = "or set WORKQUEUE_TEST_AMQP_URL to a RabbitMQ of yours"

IMAGES = Path("/var/cache/workqueue-test/docker")
"""What our own engine keeps: the images, which make the next run quick."""

SYSTEM_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
"""Where dockerd, iptables and the like are, also for a root whose PATH leaves sbin out."""


class Unavailable(Exception):
    """Something that these tests need cannot be had here: why, what to do, and what was said."""

    def __init__(self, reason: str, said: Sequence[str] = ()) -> None:
        super().__init__(reason)
        self.reason = reason
        self.said = said


def answers(timeout: float = 5) -> bool:
    """Whether a Docker engine answers where testcontainers will look for it."""
    import docker.errors
    import requests
    from testcontainers.core.docker_client import DockerClient

    try:
        client = DockerClient(timeout=timeout).client
        try:
            return bool(client.ping())
        finally:
            client.close()
    except (docker.errors.DockerException, requests.RequestException, OSError):
        return False


def ensure(say: Say) -> Engine | None:
    """An engine answers. If it is one that we started, it is returned, to be stopped."""
    if importlib.util.find_spec("testcontainers") is None:
        raise Unavailable("testcontainers is not installed: use ./dev test, or install the extra")
    if answers():
        return None
    if os.environ.get("WORKQUEUE_TEST_START_DOCKER") != "1":
        raise Unavailable(
            "no Docker engine answers: start Docker, run ./dev test as root on Debian or Ubuntu,"
            f" {OR_ELSE}"
        )
    if os.geteuid() != 0 or not on_debian():
        raise Unavailable(
            "no Docker engine answers, and starting one takes root on Debian or Ubuntu: start"
            f" Docker, {OR_ELSE}"
        )
    if not shutil.which("dockerd", path=SYSTEM_PATH):
        say("no Docker engine answers: installing docker.io with apt-get ...")
        apt_install("docker.io")
        if answers():  # where systemd rules, the package has started it as a service
            return None
    say("no Docker engine answers: starting dockerd until these tests end ...")
    return Engine()


class Engine:
    """A dockerd that dies with us, and leaves nothing behind but its images."""

    def __init__(self) -> None:
        for left in Path("/run").glob("workqueue-docker-*"):  # by a run that was killed
            if not processes_naming(str(left)):
                shutil.rmtree(left, ignore_errors=True)
        # The folder's name is also how `stop` finds every process of ours.
        self.folder = Path(tempfile.mkdtemp(prefix="workqueue-docker-", dir="/run"))
        self.before = os.environ.get("DOCKER_HOST")
        self.process = self.start()
        try:
            self.wait_until_it_answers(within=60)
        except BaseException:
            self.stop()
            raise

    def start(self) -> subprocess.Popen[bytes]:
        """A dockerd on a socket of its own, to which DOCKER_HOST leads everybody."""
        # Not the machine's own /etc/docker/daemon.json, which may contradict the flags.
        config = self.folder / "daemon.json"
        config.write_text("{}")
        IMAGES.mkdir(parents=True, exist_ok=True)
        os.environ["DOCKER_HOST"] = f"unix://{self.folder}/docker.sock"
        flags = {
            "config-file": config,
            "host": os.environ["DOCKER_HOST"],
            "pidfile": self.folder / "docker.pid",
            "exec-root": self.folder / "exec",
            "data-root": IMAGES,
        }
        with_us = ["setpriv", "--pdeathsig", "TERM"]  # told to stop when we die, however we die
        with (self.folder / "log").open("wb") as log:
            return subprocess.Popen(
                [*with_us, "dockerd", *(f"--{flag}={value}" for flag, value in flags.items())],
                stdin=subprocess.DEVNULL,
                stdout=log,  # never the caller's pipe, which would not end before dockerd does
                stderr=subprocess.STDOUT,
                env={**os.environ, "PATH": SYSTEM_PATH},
                start_new_session=True,  # a Ctrl-C is for pytest, which stops us in order
            )

    def wait_until_it_answers(self, within: float) -> None:
        """Or raise Unavailable with the end of its log."""
        deadline = time.monotonic() + within
        while not answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                said = (self.folder / "log").read_text(errors="replace").splitlines()[-5:]
                raise Unavailable(f"dockerd does not start: mend it, {OR_ELSE}", said)
            time.sleep(0.1)

    def stop(self) -> None:
        """No process of ours is left, nor its sockets. Its containers should be gone before."""
        if self.before is None:
            os.environ.pop("DOCKER_HOST", None)
        else:
            os.environ["DOCKER_HOST"] = self.before
        self.process.terminate()  # it stops its containerd too
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for pid in processes_naming(str(self.folder)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        # dockerd may leave the folder mounted on itself, its way to keep its mounts private.
        subprocess.run(["umount", IMAGES], check=False, stderr=subprocess.DEVNULL)
        shutil.rmtree(self.folder, ignore_errors=True)


def processes_naming(text: str) -> list[int]:
    """The processes whose command line holds `text`, without ourselves."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes()
        except OSError:
            continue  # gone by now
        if text.encode() in words and folder.name != str(os.getpid()):
            found.append(int(folder.name))
    return found


# -- Debian ----------------------------------------------------------------------------------------


def on_debian() -> bool:
    """Whether this is Debian, Ubuntu or a child of theirs."""
    try:
        lines = Path("/etc/os-release").read_text().splitlines()
    except OSError:
        return False
    known = dict(line.split("=", 1) for line in lines if "=" in line)
    words = f"{known.get('ID', '')} {known.get('ID_LIKE', '')}".replace('"', " ").split()
    return "debian" in words and shutil.which("apt-get", path=SYSTEM_PATH) is not None


def apt_install(*packages: str) -> None:
    """Install Debian packages, or raise Unavailable with what apt-get said."""
    options = ["-q", "-o", "DPkg::Lock::Timeout=120"]
    # One of the machine's other sources may be down: what counts is whether it can then install.
    uninterrupted(["apt-get", *options, "update"])
    install = ["apt-get", *options, "install", "-y", "--no-install-recommends", *packages]
    code, output = uninterrupted(install)
    if code:
        reason = f"`{' '.join(install)}` failed: mend that, {OR_ELSE}"
        raise Unavailable(reason, output.splitlines()[-10:])


def uninterrupted(command: Sequence[str]) -> tuple[int, str]:
    """Run apt-get to its end, come what may: stopped half-way, it leaves a machine half made."""
    environment = {
        **os.environ,
        "PATH": SYSTEM_PATH,
        "DEBIAN_FRONTEND": "noninteractive",
        "RUNLEVEL": "1",  # init scripts do not start the services they come with
    }
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        try:
            process.wait()
        except BaseException:
            process.wait()
            raise
        output.seek(0)
        return process.returncode, output.read().decode(errors="replace")
