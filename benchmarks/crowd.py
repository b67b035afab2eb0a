"""Many streams open at once: opened, paced together, watched through a window, ended, and every text checked."""

import asyncio
import statistics
from collections.abc import Iterable

from benchmarks import text
from benchmarks.bench import Bench, Relay
from benchmarks.errors import UnexpectedAnswer
from benchmarks.meter import Cost, Meter
from benchmarks.readers import Reader, open_reader
from benchmarks.upstream import Generation

OPENERS = 8
"""Connections that prepare streams side by side."""


class Crowd:
    """Streams of one relay. `grow`, `pace`, open a `window`, `end` always, and ask for the `figures` of the window."""

    def __init__(self, bench: Bench, relay: Relay) -> None:
        self._bench, self._relay = bench, relay
        self.readers: list[Reader] = []

    async def grow(self, size: int) -> None:
        """Open streams until there are `size`; all of them have reached upstream, which holds the new ones."""
        requests = await self.prepare(size - len(self.readers))
        await self.ask(requests)

    async def prepare(self, count: int) -> list[tuple[int, bytes]]:
        """Make what `count` streams need, and return their keys and requests."""
        keys = [next(self._bench.keys) for _ in range(count)]
        return [
            pair
            for pairs in await asyncio.gather(*(self._prepare(keys[i::OPENERS]) for i in range(OPENERS)))
            for pair in pairs
        ]

    async def ask(self, requests: Iterable[tuple[int, bytes]]) -> None:
        """Open these streams, all others on hold, and wait until upstream has each one's request."""
        for generation in self._generations():
            generation.hold()
        new = [await open_reader(self._relay.port, key, payload) for key, payload in requests]
        self.readers += new
        for reader in new:
            reader.ask()
        while missing := [reader for reader in new if reader.key not in self._bench.upstream.generations]:
            if missing[0].done.done():
                text.read(missing[0].pieces)
                raise UnexpectedAnswer(f"Stream {missing[0].key} ended without a request to upstream")
            await asyncio.sleep(0.005)

    async def pace(self, rate: float) -> None:
        """Every stream from now on at `rate` tokens a second, evenly apart; wait until each has its first token."""
        generations = self._generations()
        for number, generation in enumerate(generations):
            generation.pace(rate, number / len(generations) / rate)
        await asyncio.gather(*(reader.first for reader in self.readers))
        await asyncio.sleep(0.2)

    async def window(self, seconds: float) -> Cost:
        """The cost of so many seconds."""
        meter = Meter(self._relay.process)
        await asyncio.sleep(seconds)
        return meter.read()

    async def flood(self, tokens: int) -> Cost:
        """All streams as fast as they are taken, `tokens` each, from the first to the end of the last; then checked."""
        meter = Meter(self._relay.process)
        for generation in self._generations():
            generation.flood(tokens)
        await asyncio.gather(*(reader.done for reader in self.readers))
        cost = meter.read()
        self._check()
        return cost

    async def end(self) -> None:
        """End every stream and check every text. WrongText if one isn't what upstream sent."""
        for generation in self._generations():
            generation.finish()
        await asyncio.gather(*(reader.done for reader in self.readers))
        self._check()

    def figures(self, name: str, window: Cost) -> dict[str, float]:
        """The cost of a token in a window, and the milliseconds added to each that came in it. Only after the end."""
        added = [
            (came - sent) * 1e3
            for reader, generation in zip(self.readers, self._generations(), strict=True)
            for sent, came in zip(generation.sent_at, text.arrivals(reader.pieces, reader.came_at), strict=False)
            if window.began <= came < window.began + window.seconds
        ]
        if len(added) < 2:
            raise UnexpectedAnswer("No tokens came")
        median, p99 = statistics.median(added), statistics.quantiles(added, n=100)[98]
        return {**window.figures(name, len(added)), f"added_{name}": median, f"p99_{name}": p99}

    def close(self) -> None:
        """Leave all streams as they are."""
        for reader in self.readers:
            reader.close()

    async def _prepare(self, keys: list[int]) -> list[tuple[int, bytes]]:
        if not keys:
            return []
        async with self._relay.exchange() as exchange:
            return [(key, await self._relay.dialect.prepare(exchange, str(key))) for key in keys]

    def _check(self) -> None:
        if twice := self._bench.upstream.asked_twice:
            raise UnexpectedAnswer(f"Streams that were asked of upstream more than once: {sorted(twice)[:5]}")
        for reader in self.readers:
            text.check(reader.key, reader.pieces, self._bench.upstream.generations[reader.key].sent)

    def _generations(self) -> list[Generation]:
        return [self._bench.upstream.generations[reader.key] for reader in self.readers]
