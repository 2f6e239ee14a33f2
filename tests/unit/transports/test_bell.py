"""The bell that wakes whoever sleeps on a descriptor."""

from __future__ import annotations

import os

import pytest

from workqueue.transports.bell import Bell


def test_a_signal_may_ring_while_its_thread_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a worker is told to stop: its handler of signals runs in the midst of anything."""
    bell = Bell()
    read = os.read

    def interrupted(descriptor: int, size: int) -> bytes:
        found = read(descriptor, size)
        if descriptor == bell.fileno():
            bell.ring()
        return found

    bell.ring()
    with monkeypatch.context() as patch:
        patch.setattr(os, "read", interrupted)
        assert bell.answer()
    assert bell.answer()
    assert not bell.answer()
    bell.close()
    bell.ring()
    assert not bell.answer()
