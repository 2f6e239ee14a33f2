"""The frame reader and what is not AMQP: a short run of what `./dev nox -s fuzz` does for long."""

from __future__ import annotations

import struct
from struct import pack

import pytest

from tests.fuzz.frames import fuzz
from workqueue.transports.rabbitmq import wire
from workqueue.transports.rabbitmq.wire import FrameReader, WireError


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_damaged_streams(seed: int) -> None:
    """Nothing is raised but WireError; all kinds of methods were read, and some refused."""
    report = fuzz(seed, executions=5_000)
    assert report.executions == 5_000
    assert {wire.DELIVER, wire.RETURN, wire.ACK, wire.NACK, wire.CHANNEL_CLOSE} <= set(
        report.methods
    )
    assert report.refused > 500
    assert report.unreadable > 50


def test_the_fuzzer_sees_what_is_not_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(arguments: bytes) -> tuple[int, bool]:
        tag, bits = struct.unpack_from(">QB", arguments, 4)
        return tag, bool(bits & 1)

    monkeypatch.setattr(wire, "decode_settled", careless)
    with pytest.raises(struct.error):
        fuzz(1, executions=5_000)


def test_a_body_without_end_is_refused() -> None:
    """Before anything of it has come."""
    method = b"\0\x3c\0\x3c\x01t" + bytes(9) + b"\0\0"
    head = pack(">HHQH", 60, 0, wire.LARGEST_BODY + 1, 0)
    reader = FrameReader()
    reader.feed(wire.encode_frame(wire.METHOD, 1, method), 4096)
    with pytest.raises(WireError, match="bytes"):
        reader.feed(wire.encode_frame(wire.HEADER, 1, head), 4096)
