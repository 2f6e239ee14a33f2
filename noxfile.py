"""What CI runs, and what a contributor runs before: `./dev nox`, or nox itself.

`./dev nox` is lint, types and unit; `./dev nox -l` lists the rest. What follows `--` goes to the
tool: `./dev nox -s unit-3.12 -- -k codec`.
"""

import os
import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2025.2"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.error_on_external_run = True
nox.options.error_on_missing_interpreters = False  # the Pythons that are here
nox.options.sessions = ["lint", "types", "unit"]

PROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PROJECT)
PLUGINS = sorted(str(path.parent) for path in Path().glob("plugins/*/pyproject.toml"))
TOOLS = PROJECT["project"]["optional-dependencies"]


@nox.session
def lint(session: nox.Session) -> None:
    """Style, likely mistakes, formatting, and which module may import which."""
    session.install(*TOOLS["lint"])
    session.run("ruff", "check", *session.posargs)
    session.run("ruff", "format", "--check", *session.posargs)
    session.run("lint-imports", "--no-logo", env={"PYTHONPATH": "src"})


@nox.session
def types(session: nox.Session) -> None:
    """mypy, strictly; and, with pyright as well, that what must be refused in tests/typing is."""
    session.install("-e", ".[types]", *(word for path in PLUGINS for word in ("-e", f"./{path}")))
    session.run("mypy", *(session.posargs or ["src", "tests/typing", "dev"]))
    for path in PLUGINS:
        session.run("mypy", f"{path}/src")
    session.run("pyright", "--pythonpath", f"{session.bin}/python")


@nox.session(python=PYTHONS)
def unit(session: nox.Session) -> None:
    """The tests that need neither a server nor Docker, on every Python that is here."""
    session.install("-e", ".[test]")
    session.run("pytest", *(session.posargs or ["tests/unit"]))


@nox.session
def integration(session: nox.Session) -> None:
    """The tests on a real RabbitMQ; `./dev test` without the set-up."""
    session.install("-e", ".[integration]")
    session.run("pytest", *(session.posargs or ["tests/integration"]))


@nox.session
def chaos(session: nox.Session) -> None:
    """Ten seeds of everything at once, a minute each; they and the time are set as
    tests/integration/test_chaos.py says."""
    session.install("-e", ".[integration]")
    ten = " ".join(map(str, range(1, 11)))
    env = {"WORKQUEUE_CHAOS_SEEDS": ten, "WORKQUEUE_CHAOS_SECONDS": "60"}
    env = {name: os.environ.get(name, value) for name, value in env.items()}
    session.run("pytest", "-s", *(session.posargs or ["tests/integration/test_chaos.py"]), env=env)


@nox.session
def bench(session: nox.Session) -> None:
    """How fast, beside a C client and six rivals; `-- --quick`, `-- --rows S1,S3 --pairs 5`."""
    session.install(".[integration]")  # as users have it: compiled, not read anew at each start
    session.run("python", "-m", "bench", *session.posargs)


@nox.session
def cluster(session: nox.Session) -> None:
    """Three nodes that are killed, cut off and restarted, on RabbitMQ 4.0 and 4.3."""
    session.install("-e", ".[integration]")
    versions = {"WORKQUEUE_TEST_CLUSTER_VERSIONS": "4.0,4.3"}
    session.run("pytest", "tests/integration/test_cluster.py", *session.posargs, env=versions)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Damaged frames and damaged openings, ten minutes each; `-- --minutes 1` for less."""
    session.install("-e", ".[test]")
    session.run("python", "-m", "tests.fuzz.frames", *session.posargs)
    session.run("python", "-m", "tests.fuzz.openings", *session.posargs)


@nox.session
def mutants(session: nox.Session) -> None:
    """Every broken driver through the whole suite: which tests notice; `-- NAME` for some."""
    session.install("-e", ".[test]")
    session.run("python", "-m", "tests.mutants", *session.posargs)


@nox.session
def build(session: nox.Session) -> None:
    """Wheel and sdist, and the unit tests on what the wheel installs."""
    session.install("build")
    shutil.rmtree("dist", ignore_errors=True)
    session.run("python", "-m", "build", "--quiet")
    (wheel,) = Path("dist").glob("*.whl")
    session.install(f"workqueue[test] @ {wheel.resolve().as_uri()}")
    installed = "import sys, workqueue; sys.exit('/src/' in workqueue.__file__)"
    session.run("python", "-c", installed)
    session.run("pytest", *(session.posargs or ["tests/unit"]))
