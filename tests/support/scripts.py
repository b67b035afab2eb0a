"""What an upstream does, step by step: `steps(says("Hello"), finishes, Wire.done)` is a script."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from tests.support.upstream_wire import USAGE, UpstreamRequest, Wire
from tests.support.waiting import Gate

Script = Callable[[UpstreamRequest, Wire], Awaitable[None]]
Step = Callable[[Wire], Awaitable[None] | None]

ANSWER = "Hello from upstream."
"""What an upstream says that nobody told what to say."""


def steps(*steps: Step) -> Script:
    """Do this, then close the connection unless the response is complete."""

    async def script(_: UpstreamRequest, wire: Wire) -> None:
        for step in steps:
            await _taken(step, wire)

    return script


async def _taken(step: Step, wire: Wire) -> None:
    if (taking := step(wire)) is not None:
        await taking


# Steps


def says(*texts: str) -> Step:
    """A delta of content for each text."""
    return _each(Wire.delta, texts)


def thinks(*texts: str) -> Step:
    """A delta of reasoning for each text."""
    return _each(Wire.reasoning, texts)


def _each(send: Callable[[Wire, str], Awaitable[None]], texts: tuple[str, ...]) -> Step:
    async def send_all(wire: Wire) -> None:
        for text in texts:
            await send(wire, text)

    return send_all


def event(data: object) -> Step:
    """An event: a string as it is, anything else as JSON."""
    return lambda wire: wire.event(data if isinstance(data, str) else json.dumps(data))


def chunk(delta: Mapping[str, Any], finish_reason: str | None = None, **more: object) -> Step:
    """A recorded chunk with this delta, and more beside its choices."""
    return lambda wire: wire.event(wire.chunk(dict(delta), finish_reason) | more)


def fails(code: int | str | None = 502, message: str = "Provider disconnected") -> Step:
    """An error inside the stream."""
    return lambda wire: wire.error(code, message)


def finishes(wire: Wire) -> Awaitable[None]:
    """The finish reason, and the usage."""
    return wire.finish()


def body(octets: bytes) -> Step:
    """Bytes of the body."""
    return lambda wire: wire.send(octets)


def raw(octets: bytes) -> Step:
    """Bytes of the connection, of the head too."""
    return lambda wire: wire.raw(octets)


def head(code: int = 200, *, chunked: bool = True, **headers: str) -> Step:
    """Status and headers, underscores for hyphens."""
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda wire: wire.head(code, fields, chunked=chunked)


def waits(gate: Gate) -> Step:
    """Until the gate lets it pass."""
    return lambda _: gate.passage()


def pauses(seconds: float) -> Step:
    """For so many seconds."""
    return lambda _: asyncio.sleep(seconds)


def repeats(*steps: Step, times: int | None = None) -> Step:
    """These steps again and again, unless told how often until the client goes."""

    async def repeat(wire: Wire) -> None:
        left = times
        while left != 0:
            for step in steps:
                await _taken(step, wire)
            left = left and left - 1

    return repeat


# Scripts


silence = steps(Wire.hang)
"""Takes the request and never answers, not even with headers."""


def answer(text: str = ANSWER, pieces: int = 3, reasoning: str = "", usage: dict[str, Any] | None = USAGE) -> Script:
    """A good stream: `reasoning` and then `text`, each in about `pieces` deltas, the finish, `[DONE]`."""
    texts = (thinks(*cut(reasoning, pieces)), says(*cut(text, pieces)))
    return steps(Wire.head, *texts, lambda wire: wire.finish(usage=usage), Wire.done)


def gated(gate: Gate, *pieces: str) -> Script:
    """The head at once, then each piece, and last the finish, only when the gate lets it pass: n + 1 passages."""
    gated_pieces = (step for piece in pieces for step in (waits(gate), says(piece)))
    return steps(Wire.head, *gated_pieces, waits(gate), finishes, Wire.done)


def breaking(*pieces: str, code: int = 502) -> Script:
    """A stream with an error after these pieces."""
    return steps(says(*pieces), fails(code), Wire.end)


def hanging(*pieces: str) -> Script:
    """A stream that says nothing more after these pieces."""
    return steps(Wire.head, says(*pieces), Wire.hang)


def talking(seconds: float = 0.02) -> Script:
    """Words at this pace, as long as anybody listens: `word 0 word 1 `."""

    async def script(_: UpstreamRequest, wire: Wire) -> None:
        await wire.head()
        for number in range(10_000):
            await wire.delta(f"word {number} ")
            await asyncio.sleep(seconds)

    return script


def words(text: str) -> str:
    """What `talking` says, as far as `text` goes."""
    said, number = "", 0
    while len(said) < len(text):
        said += f"word {number} "
        number += 1
    return said[: len(text)]


def status(code: int, body: object = None, headers: Mapping[str, str] | None = None) -> Script:
    """A refusal instead of a stream: `body` as JSON (else OpenRouter's error), strings and bytes as they are."""
    refusal = {"error": {"code": code, "message": f"Refused with {code}", "metadata": None}, "user_id": "user_secret"}
    return steps(lambda wire: wire.respond(code, refusal if body is None else body, headers))


def cut(text: str, pieces: int) -> list[str]:
    """`text` in at most `pieces` parts of the same length, the last one shorter; no part is empty."""
    size = max(1, -(-len(text) // pieces))
    return [text[start : start + size] for start in range(0, len(text), size)]
