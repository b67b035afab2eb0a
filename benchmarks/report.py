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
SIGNS = {
    "‡": f"upstream and readers kept their own core over {BUSY:.0%} busy: the subject may be faster",
    "~": f"over {WAITED:.0%} of the time it waited for its core, which others or its own threads had",
}
TITLES = {NAIVE: "naive", NGINX: "nginx", PORTKEY: "Portkey", SERVICE: "the relay"}
NAME = "benchmark"


def whole(results: Results, sizes: Sizes) -> str:
    """Every row with its targets, and beneath the table what a reader has to know of it."""
    rows = [_row(row, results) for row in ROWS if row.figure in results.samples]
    table = "\n".join(_table(["at", "figure", *TITLES.values(), "target"], rows))
    notes = [*_notes(results, sizes), *_legend(table)]
    return "\n".join([table, "", *(f"- {note}" for note in notes)])


def headlines(results: Results, sizes: Sizes) -> str:
    """The table of five lines, under a line that says when and on what it was measured."""
    row_of = {row.figure: row for row in ROWS}
    rows = [
        [title, *(" / ".join(_value(row_of[figure], results, name) for figure in figures) for name in TITLES)]
        for title, figures in HEADLINES
        if figures[0] in results.samples
    ]
    table = "\n".join(_table(["figure", *TITLES.values()], rows))
    caption = f"Medians of {sizes.rounds} interleaved rounds on {measured_on(results)}."
    return " ".join([caption, *_legend(table)]) + f"\n\n{table}"


def put(text: str, page: Path, name: str = NAME) -> bool:
    """Replace what stands between a page's markers of this name; False if it has none."""
    before, opening, rest = page.read_text().partition(f"<!-- {name} -->")
    _, closing, after = rest.partition(f"<!-- /{name} -->")
    if closing:
        page.write_text(f"{before}{opening}\n\n{text}\n\n{closing}{after}")
    return bool(closing)


def measured_on(results: Results) -> str:
    """The day, the machine, and the relays' Python."""
    return f"{_today()}; {_machine(results)}"


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
    signs = [sign for sign, applies in zip(SIGNS, (busy, waited), strict=True) if applies]
    return " ".join(["–" if value is None else row.shown.format(value), *signs])


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
    notes = [f"{measured_on(results)}. {medians}. The full store: {sizes.stored:,} conversations."]
    notes += [f"Left out: {subject}: {reason}." for subject, reason in results.missing.items()]
    notes += [f"Not measured: {what} of {subject}: {reason}" for (subject, what), reason in results.failures.items()]
    return notes


def _legend(table: str) -> list[str]:
    """The meaning of the signs in a table."""
    return [f"{sign}: {meaning}." for sign, meaning in SIGNS.items() if sign in table]


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
