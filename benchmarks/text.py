"""The text in the bytes that a reader received, whichever of the two kinds of stream they are: its proof, its times."""

import json
import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

from benchmarks import script
from benchmarks.errors import UnexpectedAnswer, WrongText
from benchmarks.exchange import chunks

_EVENT = re.compile(rb"(.*?)(?:\r\n\r\n|\n\n)", re.DOTALL)


def check(key: int, pieces: list[bytes], tokens: int) -> None:
    """Raise WrongText unless the stream is whole and says exactly the first `tokens` tokens of stream `key`."""
    received, ended = read(pieces)
    expected = script.text(key, tokens)
    if received != expected:
        raise WrongText(f"Stream {key}: {_difference(received, expected)}")
    if not ended:
        raise WrongText(f"Stream {key}: all {tokens} tokens came, the end of the stream didn't")


def arrivals(pieces: list[bytes], came_at: Sequence[float]) -> list[float]:
    """When each token was there: the time of the piece that completed its event."""
    ends, length = list(accumulate(map(len, pieces))), 0
    times: list[float] = []
    for end, text, _ in _deltas(b"".join(pieces)):
        length += len(text)
        whole = length // script.TOKEN_CHARS - 1  # the first token is twice as long
        times += [came_at[bisect_left(ends, end)]] * (whole - len(times))
    return times


def read(pieces: list[bytes]) -> tuple[str, bool]:
    """The text so far, and whether the stream said that it was over."""
    deltas = list(_deltas(b"".join(pieces)))
    return "".join(text for _, text, _ in deltas), any(last for _, _, last in deltas)


def _deltas(answer: bytes) -> Iterator[tuple[int, str, bool]]:
    """Each whole event without a name: where it ends in the answer, its text, whether it ends the stream."""
    head, separator, _ = answer.partition(b"\r\n\r\n")
    start = len(head) + len(separator)
    if separator and b" 200 " not in head.split(b"\r\n", 1)[0]:
        raise UnexpectedAnswer(f"A stream was answered with {head[:60]!r} {answer[start : start + 300]!r}")
    spans = list(chunks(answer, start)) if b"chunked" in head.lower() else [(start, len(answer))]
    ends = list(accumulate(end - start for start, end in spans))
    for event in _EVENT.finditer(b"".join(answer[start:end] for start, end in spans)):
        span = bisect_left(ends, event.end())
        for payload in _payloads(event[1]):
            yield spans[span][1] - (ends[span] - event.end()), *_delta(payload)


def _payloads(event: bytes) -> list[bytes]:
    """The data of an event without a name."""
    lines = event.splitlines()
    if any(line.startswith(b"event:") for line in lines):
        return []
    return [line[5:].strip(b" ") for line in lines if line.startswith(b"data:")]


def _delta(payload: bytes) -> tuple[str, bool]:
    if payload == b"[DONE]":
        return "", True
    event: dict[str, Any] = json.loads(payload)
    if event.get("error"):
        raise WrongText(f"A stream ended with {event['error']}")
    if "choices" in event:
        return "".join((choice.get("delta") or {}).get("content") or "" for choice in event["choices"]), False
    return event.get("content") or "", bool(event.get("done"))


def _difference(received: str, expected: str) -> str:
    same = next((i for i, (a, b) in enumerate(zip(received, expected, strict=False)) if a != b), None)
    at = min(len(received), len(expected)) if same is None else same
    return (
        f"{len(received)} characters came, {len(expected)} were sent; from character {at} on "
        f"{received[at : at + 30]!r} instead of {expected[at : at + 30]!r}"
    )
