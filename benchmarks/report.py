"""The results as the whole table, as the five lines of the first page, and as JSON."""

import json
import os
import platform
from collections.abc import Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.bench import Sizes
from benchmarks.results import Results
from benchmarks.subjects import NAIVE, NGINX, PORTKEY, SERVICE
from benchmarks.targets import HEADLINES, ROWS, Row

BUSY, WAITED = 0.9, 0.15
"""Shares of a window from which on upstream and readers may have been the bottleneck, or the machine wasn't quiet."""
BUSY_SIGN, WAITED_SIGN = "‡", "~"
TITLES = {NAIVE: "naive", NGINX: "nginx", PORTKEY: "Portkey", SERVICE: "the relay"}
OPENING, CLOSING = "<!-- benchmark -->", "<!-- /benchmark -->"


def whole(results: Results, sizes: Sizes) -> str:
    """Every row with its targets, and beneath the table what a reader has to know of it."""
    rows = [_row(row, results) for row in ROWS if row.figure in results.samples]
    table = _table(["at", "figure", *TITLES.values(), "target"], rows)
    return "\n".join([*table, "", *_notes(results, sizes)])


def headlines(results: Results, sizes: Sizes) -> str:
    """The table of five lines, under a line that says when and on what it was measured."""
    rows = [
        [title, *(" / ".join(_shown(results.median(f, name), shown) for f in figures) for name in TITLES)]
        for title, shown, figures in HEADLINES
    ]
    caption = f"Medians of {sizes.rounds} interleaved rounds on {_today()}; {_machine(results)}."
    return "\n".join([caption, "", *_table(["figure", *TITLES.values()], rows)])


def put(text: str, page: Path) -> bool:
    """Replace what stands between a page's markers; False if it has none."""
    before, opening, rest = page.read_text().partition(OPENING)
    _, closing, after = rest.partition(CLOSING)
    if closing:
        page.write_text(f"{before}{opening}\n\n{text}\n\n{closing}{after}")
    return bool(closing)


def as_json(results: Results, sizes: Sizes) -> str:
    """Everything that was measured, each row's verdicts among it."""
    verdicts = [
        {"at": row.at, "figure": row.figure, "target": str(target), "value": value, "met": target.met(value)}
        for row in ROWS
        for target in row.targets
        if (value := target.value(results, row.figure)) is not None
    ]
    about = {"date": _today(), "machine": _machine(results), "sizes": asdict(sizes), "rows": verdicts}
    return json.dumps({**about, **results.as_json()}, indent=1) + "\n"


def _row(row: Row, results: Results) -> list[str]:
    return [row.at, row.name, *(_value(row, results, name) for name in TITLES), _verdict(row, results)]


def _value(row: Row, results: Results, subject: str) -> str:
    value, window = results.median(row.figure, subject), row.figure.partition("_")[2]
    busy = (results.median(f"ours_{window}", subject) or 0) > BUSY
    waited = (results.median(f"waited_{window}", subject) or 0) > WAITED
    return _shown(value, row.shown) + (f" {BUSY_SIGN}" if busy else "") + (f" {WAITED_SIGN}" if waited else "")


def _shown(value: float | None, shown: str) -> str:
    return "–" if value is None else shown.format(value)


def _verdict(row: Row, results: Results) -> str:
    """Each target with what was reached and whether it was met."""
    verdicts = []
    for target in row.targets:
        value = target.value(results, row.figure)
        if value is None:
            verdicts.append(f"{target}: not measured")
        else:
            reached = f"{value:.3g}, " if target.of else ""
            verdicts.append(f"{reached}{target}: {'met' if target.met(value) else '**not met**'}")
    return "; ".join(verdicts)


def _notes(results: Results, sizes: Sizes) -> list[str]:
    fewer = f", {sizes.slow_rounds} of the slow rows" if sizes.slow_rounds < sizes.rounds else ""
    medians = f"Medians of {sizes.rounds} interleaved rounds{fewer}"
    notes = [f"{_today()}; {_machine(results)}. {medians}. The full store: {sizes.stored:,} conversations."]
    notes += [f"Left out: {subject}: {reason}." for subject, reason in results.missing.items()]
    notes += [f"Not measured: {what} of {subject}: {reason}" for (subject, what), reason in results.failures.items()]
    notes += [
        f"{BUSY_SIGN}: upstream and readers kept their own core over {BUSY:.0%} busy: the subject may be faster.",
        f"{WAITED_SIGN}: over {WAITED:.0%} of the time it waited for its core, which others or its own threads had.",
    ]
    return [f"- {note}" for note in notes]


def _table(head: list[str], rows: Iterable[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def _machine(results: Results) -> str:
    """The processor, its cores, the system and the relays' Python."""
    return f"{_processor()}, {os.cpu_count()} cores, Linux {platform.release()}, Python {results.python}"


def _today() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d")


def _processor() -> str:
    with open("/proc/cpuinfo") as lines:
        names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        return next(names, platform.machine())
