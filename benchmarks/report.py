"""The results as one Markdown table and as JSON."""

import json
import os
import platform
from dataclasses import asdict
from datetime import UTC, datetime

from benchmarks.bench import Sizes
from benchmarks.results import Results
from benchmarks.subjects import FAST, NAMES, SERVICE
from benchmarks.targets import ROWS, Row

BUSY, WAITED = 0.9, 0.15
"""Shares of a window from which on upstream and readers may have been the bottleneck, or the machine wasn't quiet."""
BUSY_SIGN, WAITED_SIGN = "‡", "~"


def markdown(results: Results, sizes: Sizes) -> str:
    """The table, and beneath it what a reader has to know of it."""
    head = ["at", "figure", *NAMES[2:], SERVICE, "target", FAST, "target"]
    rows = [_row(row, results) for row in ROWS if row.figure in results.samples]
    lines = [_line(head), _line(["---"] * len(head)), *map(_line, rows), "", *_notes(results, sizes)]
    return "\n".join(lines) + "\n"


def as_json(results: Results, sizes: Sizes) -> str:
    """Everything that was measured, each row's verdicts among it."""
    verdicts = [
        {"at": row.at, "figure": row.figure, "subject": subject, "target": str(target), "value": value, "met": met}
        for row in ROWS
        for subject in (SERVICE, FAST)
        for target in row.targets(subject)
        if (value := target.value(results, row.figure, subject)) is not None
        for met in [target.met(value)]
    ]
    about = {"date": _today(), "machine": machine(), "sizes": asdict(sizes), "rows": verdicts}
    return json.dumps({**about, **results.as_json()}, indent=1) + "\n"


def machine() -> str:
    """The processor, its cores, the system and Python."""
    return f"{_processor()}, {os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}"


def _row(row: Row, results: Results) -> list[str]:
    others = [_value(row, results, subject) for subject in NAMES[2:]]
    ours = [cell for s in (SERVICE, FAST) for cell in (_value(row, results, s), _verdict(row, results, s))]
    return [row.at, row.name, *others, *ours]


def _value(row: Row, results: Results, subject: str) -> str:
    value = results.median(row.figure, subject)
    if value is None:
        return "–"
    window = row.figure.partition("_")[2]
    busy = (results.median(f"ours_{window}", subject) or 0) > BUSY
    waited = (results.median(f"waited_{window}", subject) or 0) > WAITED
    return row.shown.format(value) + (f" {BUSY_SIGN}" if busy else "") + (f" {WAITED_SIGN}" if waited else "")


def _verdict(row: Row, results: Results, subject: str) -> str:
    """Each target with what was reached and whether it was met."""
    verdicts = []
    for target in row.targets(subject):
        value = target.value(results, row.figure, subject)
        if value is None:
            verdicts.append(f"{target}: not measured")
        else:
            reached = f"{value:.3g}, " if target.of else ""
            verdicts.append(f"{reached}{target}: {'met' if target.met(value) else '**not met**'}")
    return "; ".join(verdicts)


def _notes(results: Results, sizes: Sizes) -> list[str]:
    fewer = f", {sizes.slow_rounds} of the slow rows and of the gateways"
    medians = f"Medians of {sizes.rounds} interleaved rounds{fewer}"
    notes = [f"{_today()}; {machine()}. {medians}. The full store: {sizes.stored:,} conversations."]
    notes += [f"Left out: {subject}: {reason}." for subject, reason in results.missing.items()]
    notes += [f"Not measured: {what} of {subject}: {reason}" for (subject, what), reason in results.failures.items()]
    notes += [
        f"{BUSY_SIGN}: upstream and readers kept their own core over {BUSY:.0%} busy: the subject may be faster.",
        f"{WAITED_SIGN}: over {WAITED:.0%} of the time it waited for its core, which others or its own threads had.",
    ]
    return [f"- {note}" for note in notes]


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _today() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d")


def _processor() -> str:
    with open("/proc/cpuinfo") as lines:
        names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        return next(names, platform.machine())
