"""`python -m benchmarks.storage`: what it costs to keep conversations, dicts beside a SQLite file and a server.

Writes the table into benchmarks/README.md in the full form. `--beside PATH` measures another copy of the relay, too.
"""

import argparse
import shutil
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp
from uuid import uuid4

import uvloop

from benchmarks import install, report, rounds, shared
from benchmarks.bench import FULL, QUICK, Bench, Sizes, cores
from benchmarks.processes import Command, pin
from benchmarks.results import Results
from benchmarks.rounds import Measurement
from benchmarks.shared import keeping_in
from benchmarks.subjects import SERVICE, Subject, available
from benchmarks.upstream import Upstream

DICTS, SQLITE, SHARED, BESIDE = "dicts", "SQLite", "Redis", "beside"
ROWS = (
    ("crowds", "cpu_100", "CPU a token, 100 streams × 25 tokens/s, µs", "{:.1f}"),
    ("crowds", "added_100", "added to each token, median, ms", "{:.2f}"),
    ("crowds", "p99_100", "added to each token, p99, ms", "{:.2f}"),
    ("large-crowds", "cpu_300", "CPU a token, 300 streams × 10 tokens/s, µs", "{:.1f}"),
    ("light-load", "first_light", "added to the first token, light load, ms", "{:.2f}"),
    ("long-history", "first_history", "1,000 messages: more to the first token, ms", "{:.2f}"),
)


def main() -> None:
    """Measure, print, and in the full form write."""
    parser = argparse.ArgumentParser("python -m benchmarks.storage", description=__doc__)
    parser.add_argument("--full", action="store_true", help="longer windows, and the table into benchmarks/README.md")
    parser.add_argument("--beside", type=Path, metavar="PATH", help="a copy of the relay, measured with dicts")
    options = parser.parse_args()
    sizes = FULL if options.full else replace(QUICK, window=3.0, probes=20, slow_rounds=3)
    results = uvloop.run(_run(sizes, options.beside))
    on_server = [SHARED] if shared.is_installed() else []
    table = _table(results, [DICTS, SQLITE, *on_server, *([BESIDE] if options.beside else [])])
    print(table)
    if options.full and not options.beside:
        report.put(table, install.HERE / "README.md", "storage")


async def _run(sizes: Sizes, beside: Path | None) -> Results:
    python = Path(sys.executable)
    [service], _ = available([SERVICE], python)
    subjects = [replace(service, name=DICTS), keeping_in(service, SQLITE, _new_file)]
    if beside:
        subjects.append(_elsewhere(service, beside))
    relay_core, our_core = cores()
    pin(our_core)
    upstream, results = Upstream(), Results(install.version(python), {})
    if shared.is_installed():
        subjects.append(keeping_in(service, SHARED, lambda: f"{shared.URL}?prefix={uuid4()}"))
    bench = Bench(upstream, await upstream.listen(), sizes, relay_core)
    names = {row[0] for row in ROWS}
    measured = [Measurement(m.name, m.run) for m in rounds.MEASUREMENTS if m.name in names]
    try:
        with shared.server(our_core) if shared.is_installed() else nullcontext():
            await rounds.run(bench, subjects, measured, results)
    finally:
        upstream.close()
        shutil.rmtree(install.CACHE / "stores", ignore_errors=True)
    return results


def _new_file() -> str:
    (install.CACHE / "stores").mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{mkdtemp(dir=install.CACHE / 'stores')}/chat.db"


def _elsewhere(service: Subject, root: Path) -> Subject:
    def command(port: int, url: str) -> Command:
        here = service.command(port, url)
        return replace(here, arguments=(here.arguments[0], str(root / "server.py")))

    return replace(service, name=BESIDE, command=command)


def _table(results: Results, subjects: list[str]) -> str:
    others = [name for name in subjects if name in (SQLITE, SHARED)]
    ratios = " | ".join(f"{name} of {DICTS}" for name in others)
    lines = [f"| figure | {' | '.join(subjects)} | {ratios} |", "| --- |" + " --- |" * (len(subjects) + len(others))]
    for _, figure, title, shown in ROWS:
        values = [value for name in subjects if (value := results.median(figure, name)) is not None]
        found = [ratio for name in others if (ratio := results.ratio(figure, name, DICTS)) is not None]
        if len(values) == len(subjects) and len(found) == len(others):
            shown_ratios = " | ".join(map("{:.2f}".format, found))
            lines.append(f"| {title} | {' | '.join(map(shown.format, values))} | {shown_ratios} |")
    return "\n".join([*lines, "", f"Medians of 3 interleaved rounds on {report.measured_on(results)}."])


if __name__ == "__main__":
    main()
