"""`./dev`: sets up when it must, and only then, and speaks to a Python that is too old."""

from __future__ import annotations

import ast
import importlib.machinery
import importlib.util
import subprocess
import sys
import venv
from pathlib import Path
from types import ModuleType

import pytest

DEV = Path(__file__).parents[2] / "dev"


@pytest.fixture
def dev(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module, for a checkout in a folder of its own that installs nothing."""
    (tmp_path / "dev").write_text(DEV.read_text())
    (tmp_path / "pyproject.toml").write_text("")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    loader = importlib.machinery.SourceFileLoader("dev", str(tmp_path / "dev"))
    spec = importlib.util.spec_from_loader("dev", loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    module.installed = []  # type: ignore[attr-defined]
    module.install = module.installed.append  # type: ignore[attr-defined]
    return module


def test_the_first_run_sets_up_and_the_second_does_not(dev: ModuleType) -> None:
    dev.set_up("runtime")
    dev.set_up("runtime")
    assert dev.installed == ["runtime"]
    assert dev.PYTHON.exists()


def test_what_the_tests_need_includes_the_runtime(dev: ModuleType) -> None:
    dev.set_up("tests")
    dev.set_up("runtime")
    dev.set_up("nox")
    dev.set_up("tests")
    assert dev.installed == ["tests", "nox"]


def test_a_changed_pyproject_is_installed_again(dev: ModuleType) -> None:
    dev.set_up("runtime")
    plugin = dev.ROOT / "plugins" / "workqueue-x"
    plugin.mkdir(parents=True)
    (plugin / "pyproject.toml").write_text("")
    mark = dev.VENV / "mark"
    mark.touch()
    dev.set_up("runtime")
    assert dev.installed == ["runtime", "runtime"]
    assert mark.exists()


def test_a_half_made_venv_is_made_anew(dev: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(need: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(dev, "install", interrupted)
        dev.set_up("runtime")
    mark = dev.VENV / "mark"
    mark.touch()
    dev.set_up("runtime")
    assert dev.installed == ["runtime"]
    assert not mark.exists()


def test_a_broken_venv_is_made_anew(dev: ModuleType) -> None:
    dev.set_up("runtime")
    dev.PYTHON.unlink()
    dev.set_up("runtime")
    assert dev.installed == ["runtime", "runtime"]
    assert dev.PYTHON.exists()


def test_somebodys_own_venv_is_used_as_it_is(dev: ModuleType) -> None:
    venv.create(dev.VENV)
    mark = dev.VENV / "mark"
    mark.touch()
    dev.set_up("runtime")
    assert mark.exists()


def test_paths_are_seen_from_the_checkout(
    dev: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "unit").mkdir()
    monkeypatch.chdir(tmp_path)
    given = ("-x", "-k", "unit", "unit::test_one", "--maxfail", "2")
    there = f"{tmp_path}/unit::test_one"
    assert dev.seen_from_root(given) == ["-x", "-k", "unit", there, "--maxfail", "2"]


def test_an_old_python_can_read_what_is_said_to_it() -> None:
    """The oldest that a supported system still has; the grammar is all that it must take."""
    ast.parse(DEV.read_text(), feature_version=(3, 6))


@pytest.mark.parametrize(("words", "code"), [([], 0), (["--help"], 0), (["nonsense"], 2)])
def test_help(words: list[str], code: int) -> None:
    done = subprocess.run([sys.executable, DEV, *words], capture_output=True, text=True)
    assert done.returncode == code
    assert "usage: ./dev COMMAND" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "parallel"),
    [((), True), (("--durations=5",), True), (("--pdb",), False), (("tests/unit",), False)],
)
def test_all_tests_run_in_several_processes(
    dev: ModuleType, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], parallel: bool
) -> None:
    """But not those that are named, nor where a debugger wants the terminal."""
    monkeypatch.chdir(DEV.parent)
    become: list[tuple[object, ...]] = []
    monkeypatch.setattr(dev, "become", lambda *words: become.append(words))
    dev.main("test", *arguments)
    assert ("--numprocesses=3" in become[0]) is parallel
    assert not [word for word in become[0] if str(word).startswith("--reruns")]
