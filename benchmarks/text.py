"""The text in the bytes that a reader received, whichever of the two kinds of stream they are, and its proof."""

import json
from collections.abc import Iterator
from typing import Any

from benchmarks import script
from benchmarks.errors import UnexpectedAnswer, WrongText
from benchmarks.exchange import dechunked


def check(key: int, pieces: list[bytes], tokens: int) -> None:
    """Raise WrongText unless the stream is whole and says exactly the first `tokens` tokens of stream `key`."""
    received, ended = read(pieces)
    expected = script.text(key, tokens)
    if received != expected:
        raise WrongText(f"Stream {key}: {_difference(received, expected)}")
    if not ended:
        raise WrongText(f"Stream {key}: all {tokens} tokens came, the end of the stream didn't")


def characters(pieces: list[bytes]) -> int:
    """How many characters of text these bytes hold; a half event at the end doesn't count."""
    return len(read(pieces)[0])


def read(pieces: list[bytes]) -> tuple[str, bool]:
    """The text so far, and whether the stream said that it was over."""
    head, separator, raw = b"".join(pieces).partition(b"\r\n\r\n")
    if separator and b" 200 " not in head.split(b"\r\n", 1)[0]:
        raise UnexpectedAnswer(f"A stream was answered with {head[:60]!r} {raw[:300]!r}")
    body = dechunked(raw) if b"chunked" in head.lower() else raw
    texts, ended = [], False
    for payload in _payloads(body):
        text, last = _delta(payload)
        texts.append(text)
        ended = ended or last
    return "".join(texts), ended


def _payloads(body: bytes) -> Iterator[bytes]:
    """The data of each whole event without a name."""
    for block in body.replace(b"\r\n", b"\n").split(b"\n\n")[:-1]:
        lines = block.split(b"\n")
        if not any(line.startswith(b"event:") for line in lines):
            yield from (line[5:].strip(b" ") for line in lines if line.startswith(b"data:"))


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
