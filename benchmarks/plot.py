"""The results as an SVG of bars, a panel for each of five figures; legible on a light and on a dark page."""

from html import escape

from benchmarks.results import Results
from benchmarks.subjects import NAIVE, NAMES, SERVICE

PANELS = (
    ("cpu_100", "CPU a token, µs (100 × 25 tokens/s; less is better)", "{:.0f}"),
    ("added_100", "Added to each token, median, ms (100 × 25 tokens/s; less is better)", "{:.2f}"),
    ("speed_16", "Tokens a second (16 streams at full speed; more is better)", "{:,.0f}"),
    ("first_light", "Added to the first token, ms (light load; less is better)", "{:.1f}"),
    ("memory_500", "Resident memory a stream, KiB (500 open; less is better)", "{:.0f}"),
)
_WIDTH, _BAR, _GAP, _LEFT, _RIGHT = 720, 18, 6, 96, 70
_STYLE = """
text { font: 12px system-ui, sans-serif; fill: #24292f; }
.title { font-weight: 600; }
.other { fill: #8c959f; } .naive { fill: #bf8700; } .ours { fill: #1a7f37; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; }
  .other { fill: #6e7681; } .naive { fill: #d29922; } .ours { fill: #3fb950; }
}
"""


def svg(results: Results) -> str:
    """The picture, of the panels and subjects that were measured."""
    parts, y = [], 0
    for figure, title, shown in PANELS:
        bars = [(name, value) for name in NAMES if (value := results.median(figure, name)) is not None]
        if bars:
            parts.append(_panel(y, title, shown, bars))
            y += 40 + len(bars) * (_BAR + _GAP)
    size = f'width="{_WIDTH}" height="{y}" viewBox="0 0 {_WIDTH} {y}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img"><style>{_STYLE}</style>\n{"".join(parts)}</svg>\n'
    )


def _panel(y: int, title: str, shown: str, bars: list[tuple[str, float]]) -> str:
    most = max(value for _, value in bars) or 1
    lines = [f'<text class="title" x="0" y="{y + 16}">{escape(title)}</text>\n']
    for number, (name, value) in enumerate(bars):
        lines.append(_bar(y + 28 + number * (_BAR + _GAP), name, value / most, shown.format(value)))
    return "".join(lines)


def _bar(y: int, name: str, part: float, label: str) -> str:
    width, kind = max(1, round(part * (_WIDTH - _LEFT - _RIGHT))), _kind(name)
    return (
        f'<text x="{_LEFT - 8}" y="{y + 13}" text-anchor="end">{escape(name)}</text>'
        f'<rect class="{kind}" x="{_LEFT}" y="{y}" width="{width}" height="{_BAR}" rx="2"/>'
        f'<text x="{_LEFT + width + 6}" y="{y + 13}">{escape(label)}</text>\n'
    )


def _kind(name: str) -> str:
    return "ours" if name == SERVICE else "naive" if name == NAIVE else "other"
