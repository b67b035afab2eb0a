"""A strict parser of event streams, independent of the product.

https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation, but where the standard
forgives (bytes that aren't UTF-8, unknown fields, a stream that ends inside a block) this raises.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

LINE_END = re.compile(rb"\r\n|\r|\n")
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Block:
    """What stood before a blank line. `id`, `retry` and `data` are None where the block has no such field."""

    event: str = "message"
    id: str | None = None
    retry: int | None = None
    data: str | None = None
    comments: tuple[str, ...] = ()
    raw: bytes = b""

    @property
    def json(self) -> dict[str, Any]:
        """The data, decoded; it must be an object."""
        decoded = json.loads(self.data or "")
        assert isinstance(decoded, dict), f"not an object: {self.data}"
        return decoded

    @property
    def content(self) -> str:
        """The text of the answer in it."""
        return str(self.json.get("content", "")) if self.event == "message" else ""

    @property
    def is_terminal(self) -> bool:
        """True for `done` and `error`."""
        return self.event == "message" and bool({"done", "error"} & self.json.keys())

    @property
    def is_comment(self) -> bool:
        """True where there is nothing but comments."""
        return self == Block(comments=self.comments, raw=self.raw)


class Parser:
    """Bytes in, cut anywhere; blocks out, each as soon as its blank line has come."""

    def __init__(self) -> None:
        self.left = bytearray()
        """Bytes that aren't a whole line yet."""
        self._at_start = True
        self._after_cr = False
        self._raw = b""
        self._lines: list[str] = []

    @property
    def inside_a_block(self) -> bool:
        """True when the stream must not end here."""
        return bool(self.left or self._lines)

    def feed(self, octets: bytes) -> list[Block]:
        """The blocks that these bytes complete."""
        self.left += octets
        if self._at_start and not self._past_bom():
            return []
        return [block for line in self._whole_lines() if (block := self._block_ended_by(line))]

    def _past_bom(self) -> bool:
        if len(self.left) < len(BOM) and BOM.startswith(self.left):
            return False
        self._at_start = False
        self.left = self.left.removeprefix(BOM)
        return True

    def _whole_lines(self) -> Iterator[str]:
        """A line ends at a CR at once; if a LF comes later, it belongs to that CR."""
        if self.left:
            self._take(1 if self._after_cr and self.left.startswith(b"\n") else 0)
            self._after_cr = False
        while end := LINE_END.search(self.left):
            self._after_cr = end.group() == b"\r" and end.end() == len(self.left)
            yield self._take(end.end())[: end.start()].decode()

    def _take(self, size: int) -> bytes:
        taken = bytes(self.left[:size])
        del self.left[:size]
        self._raw += taken
        return taken

    def _block_ended_by(self, line: str) -> Block | None:
        if line:
            self._lines.append(line)
            return None
        lines, raw = self._lines, self._raw
        self._lines, self._raw = [], b""
        return interpret(lines, raw) if lines else None


def interpret(lines: list[str], raw: bytes = b"") -> Block:
    """The block of these lines; `ValueError` for a field that the standard doesn't know."""
    fields: dict[str, Any] = {}
    comments: list[str] = []
    data: list[str] = []
    for line in lines:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if line.startswith(":"):
            comments.append(line[1:])
        elif name == "data":
            data.append(value)
        elif name == "event" or (name == "id" and "\0" not in value):
            fields[name] = value
        elif name == "retry" and value.isascii() and value.isdigit():
            fields[name] = int(value)
        elif name not in ("id", "retry"):
            raise ValueError(f"no such field: {line!r}")
    fields["event"] = fields.get("event") or "message"
    return Block(data="\n".join(data) if data else None, comments=tuple(comments), raw=raw, **fields)
