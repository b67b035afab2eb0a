"""`python -m benchmarks.replicas`: what a token costs relays that share a server, wherever it is read.

100 streams of 25 tokens a second; needs Debian's redis-server. The full form writes the table into its README.
"""

import argparse
import statistics
import sys
from collections.abc import Awaitable, Callable, Iterable
from contextlib import closing
from functools import partial
from pathlib import Path
from uuid import uuid4

import uvloop

from benchmarks import install, report, shared
from benchmarks.bench import FULL, QUICK, Bench, Relay, Sizes, cores
from benchmarks.crowd import Crowd
from benchmarks.meter import Meter
from benchmarks.processes import Process, pin
from benchmarks.results import Results
from benchmarks.subjects import SERVICE, Subject, available
from benchmarks.upstream import Upstream

STREAMS, RATE = 100, 25
HEAD = ("readers", "the relay that makes it", "the relay that reads it", "the server", "added, median, ms", "p99, ms")
FIGURES = ("making", "reading", "server", "added", "p99")

Figures = dict[str, float]


class Followers(Crowd):
    """Streams that one relay makes and another one reads."""

    def __init__(self, bench: Bench, reading: Relay, making: Relay) -> None:
        super().__init__(bench, reading)
        self._bench, self._making = bench, making

    async def ask(self, requests: Iterable[tuple[int, bytes]]) -> None:
        """Have the one begin them, then open them at the other."""
        requests = list(requests)
        with closing(Crowd(self._bench, self._making)) as beginning:
            await beginning.ask(requests)
        await super().ask(requests)


async def here(bench: Bench, relay: Subject, server: Process) -> Figures:
    """One relay, which makes what it reads."""
    async with bench.running(relay) as making:
        return await _measured(bench, Crowd(bench, making), server, making.process)


async def elsewhere(bench: Bench, relay: Subject, server: Process) -> Figures:
    """Two relays: one makes what the other one reads."""
    async with bench.running(relay) as making, bench.running(relay) as reading:
        crowd = Followers(bench, reading, making)
        return await _measured(bench, crowd, server, making.process, reading.process)


async def _measured(bench: Bench, crowd: Crowd, server: Process, *relays: Process) -> Figures:
    with closing(crowd):
        await crowd.grow(STREAMS)
        await crowd.pace(RATE)
        meters = [Meter(process) for process in (server, *relays)]
        window = await crowd.window(bench.sizes.window)
        costs = [meter.read() for meter in meters]
        await crowd.end()
    times = crowd.figures("", window)
    tokens = times["speed_"] * window.seconds
    micros = [cost.cpu / tokens * 1e6 for cost in costs]
    names = ("server", "making", "reading")
    return {**dict(zip(names, micros, strict=False)), "added": times["added_"], "p99": times["p99_"]}


WAYS: dict[str, Callable[[Bench, Subject, Process], Awaitable[Figures]]] = {
    "at the relay that makes the reply": here,
    "at another relay": elsewhere,
}


def main() -> None:
    """Measure, print, and in the full form write."""
    parser = argparse.ArgumentParser("python -m benchmarks.replicas", description=__doc__)
    parser.add_argument("--full", action="store_true", help="longer windows, and the table into benchmarks/README.md")
    is_full = parser.parse_args().full
    table = uvloop.run(_run(FULL if is_full else QUICK))
    print(table)
    if is_full:
        report.put(table, install.HERE / "README.md", "replicas")


async def _run(sizes: Sizes) -> str:
    python = Path(sys.executable)
    [service], _ = available([SERVICE], python)
    relay_core, our_core = cores()
    pin(our_core)
    upstream = Upstream()
    bench = Bench(upstream, await upstream.listen(), sizes, relay_core)
    found: dict[str, list[Figures]] = {way: [] for way in WAYS}
    try:
        with shared.server(our_core) as server:
            for _ in range(sizes.rounds):
                for way, measure in WAYS.items():
                    url = f"{shared.URL}?prefix={uuid4()}"
                    relay = shared.keeping_in(service, "replica", partial(str, url))
                    found[way].append(await measure(bench, relay, server))
    finally:
        upstream.close()
    return "\n".join([*_table(found), "", _caption(python, sizes)])


def _table(found: dict[str, list[Figures]]) -> list[str]:
    lines = [f"| {' | '.join(HEAD)} |", "| --- |" + " --- |" * len(FIGURES)]
    for way, rounds in found.items():
        cells = [_cell([figures[name] for figures in rounds if name in figures], name) for name in FIGURES]
        lines.append(f"| {way} | {' | '.join(cells)} |")
    return lines


def _cell(values: list[float], name: str) -> str:
    if not values:
        return "–"
    return f"{statistics.median(values):.{1 if name in ('making', 'reading', 'server') else 2}f}"


def _caption(python: Path, sizes: Sizes) -> str:
    machine = report.measured_on(Results(install.version(python), {}))
    return f"CPU a token in µs; medians of {sizes.rounds} interleaved rounds on {machine}."


if __name__ == "__main__":
    main()
