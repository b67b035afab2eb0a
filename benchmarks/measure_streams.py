"""What is measured on streams. Each function starts its subject anew and returns figures by name.

Units: `cpu_*` microseconds a token, `first_*` milliseconds added, `memory_*` KiB a stream, `speed_*` tokens a second;
`ours_*` and `waited_*` are the shares that `meter.Cost` explains.
"""

import asyncio
import statistics
import time
from contextlib import closing

from benchmarks import text
from benchmarks.bench import Bench, Relay
from benchmarks.crowd import Crowd, Window
from benchmarks.dialects import Conversations
from benchmarks.exchange import request
from benchmarks.readers import open_reader
from benchmarks.subjects import Subject

Figures = dict[str, float]
PROBE_TOKENS, PROBE_SECONDS = 5, 10
KEEPS_UP = 0.6
"""Of the tokens that were sent in a window; a relay that gets through fewer has a growing queue, and no latency."""
HISTORY = 1_000
"""Messages in the long conversation."""


async def crowds(bench: Bench, subject: Subject) -> Figures:
    """100 streams of 25 tokens a second, and the first token of others meanwhile, if it keeps up at all."""
    async with bench.running(subject) as relay:
        await probe(bench, relay, 2)
        with closing(Crowd(bench, relay)) as crowd:
            await crowd.grow(100)
            await crowd.pace(25)
            figures = (await crowd.window(bench.sizes.window)).figures("100")
            if figures["speed_100"] > KEEPS_UP * 100 * 25:
                figures["first_100"] = statistics.median(await probe(bench, relay, bench.sizes.probes))
            await crowd.end()
    return figures


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
    return {**window.figures("300"), "memory_500": held / 500}


async def full_speed(bench: Bench, subject: Subject) -> Figures:
    """16 streams as fast as they are taken, with 16 tokens in an HTTP chunk."""
    return (await _flooded(bench, subject, merged=True)).figures("16")


async def full_speed_single(bench: Bench, subject: Subject) -> Figures:
    """The same with an HTTP chunk for each token, which only a server without any proxy in front sends."""
    return (await _flooded(bench, subject, merged=False)).figures("16_single")


async def _flooded(bench: Bench, subject: Subject, merged: bool) -> Window:
    async with bench.running(subject) as relay:
        await probe(bench, relay, 2)
        with closing(Crowd(bench, relay)) as crowd:
            await crowd.grow(16)
            return await crowd.flood(bench.sizes.flood, merged)


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
    figures: Figures = {}
    async with bench.running(subject) as relay:
        with closing(Crowd(bench, relay)) as crowd:
            for size in sizes:
                await crowd.grow(size)
                await crowd.pace(500 / size)
                figures |= (await crowd.window(2 * bench.sizes.window)).figures(f"flat_{size}")
            await crowd.end()
    costs = [figures[f"cpu_flat_{size}"] for size in sizes]
    return {**figures, "flat": max(costs) / min(costs)}


async def long_history(bench: Bench, subject: Subject) -> Figures:
    """What 1,000 messages add to the first token, over an empty conversation."""
    async with bench.running(subject) as relay:
        await probe(bench, relay, 5)
        short = await probe(bench, relay, bench.sizes.probes)
        conversation = await _conversation(relay, HISTORY)
        long = await probe(bench, relay, bench.sizes.probes, conversation)
    return {
        "first_short": statistics.median(short),
        "first_long": statistics.median(long),
        "first_history": statistics.median(long) - statistics.median(short),
    }


async def probe(bench: Bench, relay: Relay, count: int, conversation: str | None = None) -> list[float]:
    """Short streams one after the other: the milliseconds that the relay added to the first token of each.

    At least one, and no more begin after `PROBE_SECONDS`. Added is what the reader waited, less what upstream took;
    both on this process's clock.
    """
    async with relay.exchange() as exchange:
        added: list[float] = []
        until = time.monotonic() + PROBE_SECONDS
        while len(added) < count and (not added or time.monotonic() < until):
            key = next(bench.keys)
            mark = f"{key}:{PROBE_TOKENS}"
            if conversation and isinstance(relay.dialect, Conversations):
                payload = await relay.dialect.follow(exchange, conversation, mark)
            else:
                payload = await relay.dialect.prepare(exchange, mark)
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
    return ((reader.first_at - reader.asked_at) - (generation.first_sent_at - generation.asked_at)) * 1e3


async def _conversation(relay: Relay, messages: int) -> str:
    """A conversation with so many messages."""
    async with relay.exchange() as exchange:
        created = await exchange.expect(201, request("POST", "/conversations", {}))
        conversation = str(created.json()["id"])
        path = f"/conversations/{conversation}/messages"
        for number in range(messages):
            await exchange.expect(201, request("POST", path, {"content": f"Message {number}: " + "and so on, " * 18}))
    return conversation
