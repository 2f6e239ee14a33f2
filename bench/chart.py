"""The chart: bars, drawn by hand as SVG."""

from __future__ import annotations

from bench.contest import Result


def draw(results: list[Result]) -> str:
    return "<svg xmlns='http://www.w3.org/2000/svg'/>"
