"""The measurements of plain requests. Each function starts its subject anew and returns figures by name.

Units: `cpu_*` microseconds a request; `rate_*` requests a second; `start` seconds; the others are ratios.
"""

import asyncio
import time
from contextlib import closing
from dataclasses import dataclass

from benchmarks import text
from benchmarks.bench import Bench, Relay
from benchmarks.dialects import question
from benchmarks.exchange import Exchange, request
from benchmarks.measure_streams import Figures
from benchmarks.meter import Meter
from benchmarks.readers import open_reader
from benchmarks.subjects import Subject

CONNECTIONS = 8
ANSWER = 5  # tokens of a chat's answer
PAGE = request("GET", "/conversations?limit=50")
HEALTH = request("GET", "/health")
ROOT = request("GET", "/")
MODELS = request("GET", "/models", headers={"Accept-Encoding": "gzip"})


@dataclass(frozen=True)
class Pace:
    """Requests a second, and microseconds of the relay's CPU a request."""

    rate: float
    cpu: float


async def store(bench: Bench, subject: Subject) -> Figures:
    """A store is filled with conversations of two messages; then what requests cost on it, some over the empty one.

    A chat is four requests: the conversation, its question, the answer's stream, and reading both. The plain ones are
    those that fill the store: the conversation, two messages, and reading them.
    """
    async with bench.running(subject) as relay:
        await hammer(relay, HEALTH, 0.2)
        empty_page, empty_health = (
            await hammer(relay, PAGE, bench.sizes.hammer),
            await hammer(relay, HEALTH, bench.sizes.hammer),
        )
        meter = Meter(relay.process)
        more = bench.sizes.stored - bench.sizes.chats
        await _fill(relay, more)
        plain = meter.read()
        meter = Meter(relay.process)
        for _ in range(bench.sizes.chats):
            await _chat(bench, relay)
        chat = meter.read()
        full_page, full_health = (
            await hammer(relay, PAGE, bench.sizes.hammer),
            await hammer(relay, HEALTH, bench.sizes.hammer),
        )
    return {
        "cpu_request": chat.cpu / bench.sizes.chats / 4 * 1e6,
        "ours_request": chat.ours,
        "waited_request": chat.waited,
        "cpu_plain": plain.cpu / more / 4 * 1e6,
        "ours_plain": plain.ours,
        "waited_plain": plain.waited,
        "page_over_empty": full_page.cpu / empty_page.cpu,
        "health_over_empty": full_health.cpu / empty_health.cpu,
    }


async def models(bench: Bench, subject: Subject) -> Figures:
    """`GET /models`, gzipped and cached, beside `GET /`: requests a second."""
    async with bench.running(subject) as relay:
        await hammer(relay, ROOT, 0.2)
        await hammer(relay, MODELS, 0.2)
        root, listed = await hammer(relay, ROOT, bench.sizes.hammer), await hammer(relay, MODELS, bench.sizes.hammer)
    return {"rate_root": root.rate, "rate_models": listed.rate, "models_over_root": listed.rate / root.rate}


async def start(bench: Bench, subject: Subject) -> Figures:
    """Seconds from the process's start to its first 200; the second of two starts, so that files are in memory."""
    async with bench.running(subject):
        pass
    async with bench.running(subject) as relay:
        return {"start": relay.started_in}


async def hammer(relay: Relay, payload: bytes, seconds: float) -> Pace:
    """One request again and again over a few connections; every answer must be a 200."""
    meter, until = Meter(relay.process), time.monotonic() + seconds
    counts = await asyncio.gather(*(_repeat(relay, payload, until) for _ in range(CONNECTIONS)))
    cost = meter.read()
    return Pace(sum(counts) / cost.seconds, cost.cpu / sum(counts) * 1e6)


async def _repeat(relay: Relay, payload: bytes, until: float) -> int:
    count = 0
    async with relay.exchange() as exchange:
        while time.monotonic() < until:
            await exchange.expect(200, payload)
            count += 1
    return count


async def _fill(relay: Relay, conversations: int) -> None:
    shares = [len(range(i, conversations, CONNECTIONS)) for i in range(CONNECTIONS)]
    await asyncio.gather(*(_fill_share(relay, share) for share in shares))


async def _fill_share(relay: Relay, conversations: int) -> None:
    async with relay.exchange() as exchange:
        for _ in range(conversations):
            await _converse(exchange)


async def _chat(bench: Bench, relay: Relay) -> None:
    async with relay.exchange() as exchange:
        key = next(bench.keys)
        created = await exchange.expect(201, request("POST", "/conversations", {}))
        path = f"/conversations/{created.json()['id']}"
        await exchange.expect(201, request("POST", f"{path}/messages", {"content": question(f"{key}:{ANSWER}")}))
        with closing(await open_reader(relay.port, key, request("GET", f"{path}/stream"))) as reader:
            reader.ask()
            await reader.done
        text.check(key, reader.pieces, ANSWER)
        await exchange.expect(200, request("GET", f"{path}/messages"))


async def _converse(exchange: Exchange) -> None:
    created = await exchange.expect(201, request("POST", "/conversations", {}))
    path = f"/conversations/{created.json()['id']}/messages"
    for _ in range(2):
        await exchange.expect(201, request("POST", path, {"content": question("0:5")}))
    await exchange.expect(200, request("GET", path))
