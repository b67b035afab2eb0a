"""A completion without I/O: what is read from bytes, and the bytes of the shapes that servers send."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from result import Finish, Report
from upstream.completion import Completion
from upstream.errors import UpstreamError, UpstreamUnreadable
from upstream.values import Delta, Kind

KEY = "sk-or-v1-0123456789abcdef"
GENERATION = "gen-1778452651-woYjQ50l"
DONE = "[DONE]"


@dataclass(frozen=True)
class Answer:
    """What was read of a completion."""

    values: list[Report | Delta | Finish]
    error: UpstreamError | None
    is_generated: bool
    """Whether there was something that must not be generated again."""

    @property
    def may_be_asked_again(self) -> bool:
        """Whether nothing was generated, as far as anybody can tell."""
        is_read = not isinstance(self.error, UpstreamUnreadable)
        return self.error is not None and self.error.failure.retryable and is_read and not self.is_generated

    @property
    def deltas(self) -> list[tuple[Kind, str]]:
        """Kind and text of each."""
        return [(value.kind, value.text) for value in self.values if isinstance(value, Delta)]

    @property
    def report(self) -> Report:
        """The last one."""
        return next((value for value in reversed(self.values) if isinstance(value, Report)), Report())

    @property
    def usage(self) -> Any:
        """What that says of it, decoded."""
        return json.loads(self.report.usage or "null")

    @property
    def finish(self) -> Finish | None:
        """The last value, where it is the end of a whole answer."""
        last = self.values[-1] if self.values else None
        return last if isinstance(last, Finish) else None

    def text(self, kind: Kind) -> str:
        """All of one kind."""
        return "".join(text for of, text in self.deltas if of == kind)


def read(pieces: Iterable[bytes]) -> Answer:
    """Read a response whose body comes in these pieces."""
    completion = Completion(KEY)
    values: list[Report | Delta | Finish] = []
    for piece in pieces:
        if not completion.is_over:
            values += completion.feed(piece)
    rest, end = completion.finish()
    values += [*rest, end] if isinstance(end, Finish) else rest
    return Answer(values, end if isinstance(end, UpstreamError) else None, completion.is_generated)


def told(*events: object) -> Answer:
    """Read these events, each of which comes by itself."""
    return read(map(sse, events))


def sse(*events: object, field: bytes = b"data: ", end: bytes = b"\n\n") -> bytes:
    """An event stream: bytes and strings as they are, anything else as JSON."""
    return b"".join(field + _line(event) + end for event in events)


def _line(event: object) -> bytes:
    return event if isinstance(event, bytes) else event.encode() if isinstance(event, str) else raw(event)


def raw(value: object) -> bytes:
    """JSON."""
    return json.dumps(value).encode()


def chunk(delta: object = None, finish_reason: object = None, **choice: object) -> dict[str, Any]:
    """A chunk with one choice."""
    return {"id": GENERATION, "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason, **choice}]}


def says(text: str, finish_reason: object = None, **choice: object) -> dict[str, Any]:
    """A chunk of content."""
    return chunk({"content": text}, finish_reason, **choice)


def pieces_of(stream: bytes, cuts: Iterable[int]) -> list[bytes]:
    """The stream, cut at these places, whatever its length."""
    bounds = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    return [stream[start:end] for start, end in pairwise(bounds)]
