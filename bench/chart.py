"""The chart: bars of messages a second, as SVG written by hand, with the fonts of whoever looks."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from bench.contest import Result

PANELS = {
    "S1": "sent, many at once: confirmed, quorum queue",
    "S2": "consumed: settled in batches, quorum queue",
    "S3": "handled: no-op task, acknowledged after the work",
    "S4": "sent, one at a time: confirmed, quorum queue",
    "S7": "on SQLite",
}
"""Which rows are drawn, and what they are called."""

WIDTH, NAMES, BARS = 860, 240, 480
BAR, GAP, TITLE, SPACE = 15, 6, 26, 18

STYLE = """
text { font: 12px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #24292f }
.title { font-weight: 600 } .number, .where { fill: #57606a } .bar { fill: #afb8c1 }
.ours { fill: #1a7f64 } .spread { stroke: #57606a; stroke-width: 1 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .number, .where { fill: #8d96a0 } .bar { fill: #484f58 }
  .ours { fill: #2ea889 } .spread { stroke: #8d96a0 }
}
"""


def draw(results: list[Result]) -> str:
    """One panel below the other, each with its own scale."""
    parts: list[str] = []
    top = 8
    for result in chosen(results):
        parts += panel(result, top)
        top += TITLE + len(bars(result)) * (BAR + GAP) + SPACE
    size = f'width="{WIDTH}" height="{top}" viewBox="0 0 {WIDTH} {top}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">'
    title = "<title>Messages a second, workqueue beside others</title>"
    return "\n".join([head, title, f"<style>{STYLE}</style>", *parts, "</svg>", ""])


def chosen(results: list[Result]) -> Iterator[Result]:
    """Those that are drawn, on the newest server that there is of each."""
    newest: dict[tuple[str, str], Result] = {}
    for result in results:  # sorted by row and server
        if result.row in PANELS and others(result) and "prefetch 100," not in result.title:
            newest[result.row, result.title] = result
    yield from newest.values()


def others(result: Result) -> list[str]:
    """Whom we are compared with, as far as they were measured."""
    return [name for name, _ in bars(result) if not name.startswith(("workqueue", "send"))]


def bars(result: Result) -> list[tuple[str, list[float]]]:
    """The contestants that were measured, the quickest first."""
    measured = [(name, sorted(result.values(name, "rate"))) for name in result.samples]
    there = [(name, values) for name, values in measured if values]
    return sorted(there, key=lambda bar: -(result.median(bar[0], "rate") or 0.0))


def panel(result: Result, top: int) -> Iterator[str]:
    scale = BARS / max(values[-1] for _, values in bars(result))
    yield f'<text class="title" x="8" y="{top + 12}">{escape(headline(result))}</text>'
    where = f"{result.server}, messages a second"
    yield f'<text class="where" x="{WIDTH - 8}" y="{top + 12}" text-anchor="end">{where}</text>'
    for number, (name, values) in enumerate(bars(result)):
        y = top + TITLE + number * (BAR + GAP)
        median = result.median(name, "rate") or 0.0
        kind = "bar ours" if name.startswith("workqueue") else "bar"
        middle = y + BAR / 2
        yield f'<text x="{NAMES - 8}" y="{y + 12}" text-anchor="end">{escape(name)}</text>'
        yield (
            f'<rect class="{kind}" x="{NAMES}" y="{y}" width="{max(median * scale, 1):.1f}"'
            f' height="{BAR}" rx="2"/>'
        )
        yield (
            f'<line class="spread" x1="{NAMES + values[0] * scale:.1f}" y1="{middle}"'
            f' x2="{NAMES + values[-1] * scale:.1f}" y2="{middle}"/>'
        )
        x = NAMES + max(median, values[-1]) * scale + 8
        yield f'<text class="number" x="{x:.1f}" y="{y + 12}">{median:,.0f}</text>'


def headline(result: Result) -> str:
    """The row's name, and what sets this contest apart in it."""
    title = PANELS[result.row]
    for apart in ("prefetch 1000", "classic queue", "quorum queue"):
        if apart in result.title and apart not in title:
            return f"{result.row} {title}, {apart}"
    return f"{result.row} {result.title}" if result.row == "S7" else f"{result.row} {title}"
