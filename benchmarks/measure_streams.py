"""The measurements of streams. Each function starts its subject anew and returns figures by name.

Units: `cpu_*` microseconds a token; `added_*` and `p99_*` milliseconds added to a token, `first_*` to a stream's first;
`memory_*` KiB a stream; `speed_*` tokens a second; `ours_*` and `waited_*` are the shares that `meter.Cost` explains.
"""

import asyncio
import statistics
import time
from contextlib import closing

from benchmarks import text
from benchmarks.bench import Bench, Relay
from benchmarks.crowd import Crowd
from benchmarks.dialects import Dialect
from benchmarks.readers import open_reader
from benchmarks.subjects import Subject

Figures = dict[str, float]
PROBE_TOKENS, PROBE_SECONDS = 5, 10
HISTORY = [f"Message {number}: " + "and so on, " * 18 for number in range(1_000)]
"""The messages of the long conversation."""


async def crowds(bench: Bench, subject: Subject) -> Figures:
    """100 streams of 25 tokens a second, and the first token of others meanwhile."""
    async with bench.running(subject) as relay:
        await probe(bench, relay, 2)
        with closing(Crowd(bench, relay)) as crowd:
            await crowd.grow(100)
            await crowd.pace(25)
            window = await crowd.window(bench.sizes.window)
            first = await probe(bench, relay, bench.sizes.probes)
            await crowd.end()
    return {**crowd.figures("100", window), "first_100": statistics.median(first)}


async def large_crowds(bench: Bench, subject: Subject) -> Figures:
    """300 streams of 10 tokens a second; then 500, and what they hold in memory."""
    async with bench.running(subject) as relay:
        await probe(bench, relay, 5)
        with closing(Crowd(bench, relay)) as crowd:
            prepared = await crowd.prepare(500)
            empty = relay.process.memory()
            await crowd.ask(prepared[:300])
            await crowd.pace(10)
            window = await crowd.window(bench.sizes.window)
            await crowd.ask(prepared[300:])
            await crowd.pace(1)
            await asyncio.sleep(1)
            held = relay.process.memory() - empty
            await crowd.end()
    return {**crowd.figures("300", window), "memory_500": held / 500}


async def full_speed(bench: Bench, subject: Subject) -> Figures:
    """16 streams as fast as they are taken."""
    async with bench.running(subject) as relay:
        await probe(bench, relay, 2)
        with closing(Crowd(bench, relay)) as crowd:
            await crowd.grow(16)
            cost = await crowd.flood(bench.sizes.flood)
    return cost.figures("16", 16 * bench.sizes.flood)


async def light_load(bench: Bench, subject: Subject) -> Figures:
    """One stream at a time."""
    async with bench.running(subject) as relay:
        await probe(bench, relay, 5)
        return {"first_light": statistics.median(await probe(bench, relay, 2 * bench.sizes.probes))}


async def flatness(bench: Bench, subject: Subject) -> Figures:
    """CPU a token of 10, 100, 500 and 1,000 streams that share 500 tokens a second, highest over lowest.

    Not more than 500: ten streams of 50 are just below the 60 events a second past which deltas may be merged.
    """
    sizes = (10, 100, 500, 1000)
    windows, figures = {}, Figures()
    async with bench.running(subject) as relay:
        with closing(Crowd(bench, relay)) as crowd:
            for size in sizes:
                await crowd.grow(size)
                await crowd.pace(500 / size)
                windows[size] = await crowd.window(2 * bench.sizes.window)
            await crowd.end()
    for size, window in windows.items():
        figures |= crowd.figures(f"flat_{size}", window)
    costs = [figures[f"cpu_flat_{size}"] for size in sizes]
    return {**figures, "flat": max(costs) / min(costs)}


async def long_history(bench: Bench, subject: Subject) -> Figures:
    """The time that 1,000 messages add to the first token, over an empty conversation."""
    async with bench.running(subject) as relay:
        await probe(bench, relay, 5)
        short = await probe(bench, relay, bench.sizes.probes)
        async with relay.exchange() as exchange:
            dialect = await relay.dialect.after(exchange, HISTORY)
        long = await probe(bench, relay, bench.sizes.probes, dialect)
    return {
        "first_short": statistics.median(short),
        "first_long": statistics.median(long),
        "first_history": statistics.median(long) - statistics.median(short),
    }


async def probe(bench: Bench, relay: Relay, count: int, dialect: Dialect | None = None) -> list[float]:
    """Short streams one after the other: the milliseconds that the relay added to the first token of each.

    At least one, and no more begin after `PROBE_SECONDS`. Added is what the reader waited, less what upstream took;
    both on this process's clock.
    """
    async with relay.exchange() as exchange:
        added: list[float] = []
        until = time.monotonic() + PROBE_SECONDS
        while len(added) < count and (not added or time.monotonic() < until):
            key = next(bench.keys)
            payload = await (dialect or relay.dialect).prepare(exchange, f"{key}:{PROBE_TOKENS}")
            added.append(await _added(bench, relay, key, payload))
            await asyncio.sleep(0.02)
    return added


async def _added(bench: Bench, relay: Relay, key: int, payload: bytes) -> float:
    reader = await open_reader(relay.port, key, payload)
    with closing(reader):
        await asyncio.sleep(0.005)
        reader.ask()
        await reader.first
        await reader.done
    text.check(key, reader.pieces, PROBE_TOKENS)
    generation = bench.upstream.generations[key]
    return ((reader.first_at - reader.asked_at) - (generation.sent_at[0] - generation.asked_at)) * 1e3
