"""The records of the store: conversations, messages and their text; and the errors of the store.

Knows nothing of rules, engines, HTTP or upstream.
"""

import io
import json
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate, pairwise
from types import EllipsisType
from typing import Any, Literal

from result import NO_REPORT, Ending, Failure, Finish, Report, Stopped

Kind = Literal["content", "reasoning"]
Role = Literal["user", "assistant"]
Status = Literal["complete", "streaming", "stopped", "failed"]

After = str | EllipsisType | None  # a message's id; None: the beginning; ...: behind the last message

PIECE_CHARS = 64 * 1024  # characters of a long text to read at once
PIECE_RUNS = 1024  # runs of one kind to read at once
_KINDS: tuple[Kind, Kind] = ("content", "reasoning")
_STATUS_OF: dict[type[Ending], Status] = {Finish: "complete", Stopped: "stopped", Failure: "failed"}
_BLOCK = 4096  # bytes of a closed text; of each block it is known which character begins in it first
_CONTINUATIONS = bytes(range(0x80, 0xC0))  # the bytes of UTF-8 in which no character begins


class StoreError(Exception):
    """The store refuses a request. The text is a sentence for the client."""


class NotFound(StoreError):
    """No such conversation or message."""


class ReplyInProgress(StoreError):
    """The conversation is being answered; a message has to wait."""


class NothingOwed(StoreError):
    """The last question is answered already, or there is none."""


class StoreFull(StoreError):
    """A limit is reached; reading and deleting go on."""


class StoreUnavailable(StoreError):
    """The engine can't be reached or can't write, and has changed nothing. Another try may succeed."""


class IdTaken(StoreError):
    """The client's id means something else already."""


class Repeated(StoreError):
    """The conversation or message to be added is there already: `found`."""

    def __init__(self, found: Any) -> None:
        super().__init__("It is there already.")
        self.found = found


class Transcript:
    """A message's text in the order in which it arrived, content and reasoning interleaved.

    It grows until `close()`: `take` adds text, and readers may have it up to `kept`, once an engine has kept it. Each
    reader has a position of its own. Positions are in characters.
    """

    __slots__ = ("_firsts", "_growing", "_switches", "_text", "kept", "size", "taken")

    def __init__(self, text: str | None = None) -> None:
        """A whole text, all of it content; without one, a transcript that grows."""
        self._text = _compact(text or "")
        self._growing = io.StringIO(newline="") if text is None else None
        self._firsts: array[int] | None = None  # the position of the first character that begins in each block
        self._switches = array("I")  # positions at which the kind changes; it begins as content
        self.kept = self.taken = len(text or "")
        self.size = len(self._text)  # bytes of UTF-8, up to `taken`

    @classmethod
    def of(cls, text: str, switches: Sequence[int], *, grows: bool) -> "Transcript":
        """The transcript that had these `parts()`."""
        transcript = cls(None if grows else text)
        if grows:
            for number, (start, end) in enumerate(pairwise([0, *switches, len(text)])):
                transcript.append(_KINDS[number % 2], text[start:end])
        else:
            transcript._switches.extend(switches)
        return transcript

    def parts(self) -> tuple[str, list[int]]:
        """The text up to `kept`, content and reasoning, and the positions at which one changes to the other."""
        return self._slice(0, self.kept), [position for position in self._switches if position < self.kept]

    def __eq__(self, other: object) -> bool:
        """Whether both have the same text up to `kept`."""
        return isinstance(other, Transcript) and self.parts() == other.parts()

    __hash__ = object.__hash__

    def append(self, kind: Kind, text: str) -> None:
        """Add `text` that is kept already."""
        self.take(kind, text)
        self.kept = self.taken

    def take(self, kind: Kind, text: str) -> int:
        """Add `text` at the end, hidden from readers until it is kept: its bytes of UTF-8."""
        assert self._growing is not None, "a closed transcript doesn't grow"
        if not text:
            return 0
        if kind != _KINDS[len(self._switches) % 2]:
            self._switches.append(self.taken)
        self._growing.seek(self.taken)
        self._growing.write(text)
        self.taken += len(text)
        self.size += (size := byte_size(text))
        return size

    def drop(self) -> int:
        """Forget the text that isn't kept: its bytes of UTF-8."""
        if self._growing is None or self.taken == self.kept:
            return 0
        size = byte_size(self._slice(self.kept, self.taken))
        self._growing.truncate(self.kept)
        while self._switches and self._switches[-1] >= self.kept:
            self._switches.pop()
        self.taken = self.kept
        self.size -= size
        return size

    def read(self, start: int, most: int, runs: int = 0, *, is_kept: bool = True) -> list[tuple[Kind, str]]:
        """At most `most` characters from `start` on, in at most `runs` runs of one kind (0: any number)."""
        end = min(start + most, self.kept if is_kept else self.taken)
        if start >= end:
            return []
        if not self._switches or start >= self._switches[-1]:  # the usual case
            return [(_KINDS[len(self._switches) % 2], self._slice(start, end))]
        first = bisect_right(self._switches, start)
        behind = bisect_left(self._switches, end)
        if 0 < runs <= behind - first:
            behind = first + runs - 1
            end = self._switches[behind]
        cuts = [start, *self._switches[first:behind], end]
        text = self._slice(start, end)  # one slice: a closed text may need decoding
        return [(_KINDS[(first + i) % 2], text[a - start : b - start]) for i, (a, b) in enumerate(pairwise(cuts))]

    def catch_up(self, whole: "Transcript") -> None:
        """Add the text that another transcript of the same message has beyond this one."""
        if self._growing is None or whole.kept <= self.kept:
            return
        text = whole._slice(self.kept, whole.kept)
        self._growing.seek(self.kept)
        self._growing.write(text)
        self._switches.extend(whole._switches[len(self._switches) : bisect_left(whole._switches, whole.kept)])
        self.kept = self.taken = whole.kept
        self.size += byte_size(text)

    def close(self) -> None:
        """End its growth, and forget the text that isn't kept."""
        if self._growing is not None:
            self.drop()
            self._text, self._growing = _compact(self._growing.getvalue()), None

    @property
    def content(self) -> str:
        """The text that answers."""
        return self._all_of("content")

    @property
    def reasoning(self) -> str:
        """The model's thinking."""
        return self._all_of("reasoning")

    @property
    def has_reasoning(self) -> bool:
        """Whether some of the text that is kept is reasoning."""
        return bool(self._switches) and self._switches[0] < self.kept

    def pieces(self, wanted: Kind, end: int) -> Iterator[str]:
        """Yield the text of one kind up to position `end`, in pieces that each cost little."""
        position = 0
        while position < end:
            runs = self.read(position, min(PIECE_CHARS, end - position), PIECE_RUNS)
            position += sum(len(text) for _, text in runs)
            yield "".join(text for kind, text in runs if kind == wanted)

    def _all_of(self, wanted: Kind) -> str:
        if self._growing is None and not self._switches:  # the usual case, quick for long histories
            return self._slice(0, self.kept) if wanted == "content" else ""
        text, switches = self.parts()
        cuts = [0, *switches, len(text)]
        first = _KINDS.index(wanted)
        return "".join([text[start:end] for start, end in zip(cuts[first::2], cuts[first + 1 :: 2], strict=False)])

    def _slice(self, start: int, end: int) -> str:
        if self._growing is None:
            return self._text[start:end] if isinstance(self._text, str) else self._decoded(self._text, start, end)
        self._growing.seek(start)
        return self._growing.read(end - start)

    def _decoded(self, text: bytes, start: int, end: int) -> str:
        """Decode the blocks around a slice only, so that its cost doesn't depend on its position."""
        if end - start == self.kept:
            return text.decode()
        firsts = self._firsts = self._firsts or _firsts(text)
        block = bisect_right(firsts, start) - 1
        end_of_blocks = bisect_left(firsts, end) * _BLOCK + 3  # the last character may go on in the block behind
        around = text[block * _BLOCK : end_of_blocks].decode(errors="ignore")  # without a character that is cut off
        return around[start - firsts[block] : end - firsts[block]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn. `transcript` grows while `status` is `streaming`; the rest is of the moment it was read."""

    id: str
    role: Role
    transcript: Transcript
    model: str | None = None
    options: str | None = None  # of a question, as JSON
    timestamp: str
    status: Status = "complete"
    finish_reason: str | None = None
    error: Failure | None = None
    report: Report = NO_REPORT
    question_id: str | None = None  # of a reply: the message that it answers

    @property
    def size(self) -> int:
        """Bytes of its text, its options and its sources."""
        return self.transcript.size + byte_size(self.options) + byte_size(self.report.annotations)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """A conversation without its messages. Times are ISO 8601 in UTC."""

    id: str
    title: str | None
    system_prompt: str | None
    default_model: str
    options: str | None = None  # as JSON
    cost: float | None = None  # US dollars that its replies have reported
    created_at: str
    updated_at: str
    message_count: int = 0


@dataclass(frozen=True, slots=True)
class Question:
    """A user's question. `id` is the client's own; the messages behind `after` are removed first."""

    content: str
    model: str | None = None
    options: Mapping[str, Any] | None = None
    id: str | None = None
    after: After = ...
    traceparent: str | None = None  # the trace of its request


def ended(message: Message, ending: Ending, report: Report | None = None) -> Message:
    """The reply `message` in its final state. Without a `report` it keeps its own; the engine closes its transcript."""
    return replace(
        message,
        status=_STATUS_OF[type(ending)],
        finish_reason=ending.finish_reason if isinstance(ending, Finish) else None,
        error=ending if isinstance(ending, Failure) else None,
        report=report or message.report,
    )


def as_json(value: object) -> str | None:
    """A value as JSON; None for None."""
    return None if value is None else json.dumps(value)


def byte_size(text: str | None) -> int:
    """Bytes of `text` in UTF-8."""
    return 0 if text is None else len(text if text.isascii() else text.encode())


def text_size(messages: Sequence[Message]) -> int:
    """Bytes of the text of all messages."""
    return sum(message.size for message in messages)


def head_size(conversation: Conversation, own_title: str | None) -> int:
    """Bytes of the text that a conversation has beside its messages."""
    return byte_size(own_title) + byte_size(conversation.system_prompt) + byte_size(conversation.options)


def _compact(text: str) -> str | bytes:
    """In a string one emoji makes every character take four bytes; in UTF-8 it doesn't."""
    return text if text.isascii() else text.encode()


def _firsts(text: bytes) -> "array[int]":
    """How many characters begin before each block: nothing is decoded, so that a megabyte takes a millisecond."""
    blocks = (text[start : start + _BLOCK] for start in range(0, len(text), _BLOCK))
    counts = (len(block.translate(None, _CONTINUATIONS)) for block in blocks)
    return array("I", accumulate(counts, initial=0))


_FIELDS = {name: None for name in Message.__slots__ if name not in ("transcript", "report")}  # in their order


def encode(message: Message) -> tuple[str, str]:
    """The head of a message, in ASCII on one line, and its text, content and reasoning in order of arrival."""
    head: dict[str, Any] = {name: value for name in _FIELDS if (value := getattr(message, name)) is not None}
    if message.report is not NO_REPORT:
        head |= encode_report(message.report)
    if message.error:
        head["error"] = asdict(message.error)
    text, switches = message.transcript.parts()
    if switches:
        head["switches"] = switches
    return json.dumps(head, separators=(",", ":")), text


def decode(head: Mapping[str, Any], text: str) -> Message:
    """The message that `encode` has written. The transcript of a `streaming` one grows."""
    known = {name: value for name, value in head.items() if name in _FIELDS}
    if "error" in known:
        known["error"] = Failure(**known["error"])
    transcript = Transcript.of(text, head.get("switches", ()), grows=known["status"] == "streaming")
    return Message(transcript=transcript, report=decode_report(head), **known)


def encode_report(report: Report) -> dict[str, str]:
    """The fields that upstream has reported, by name."""
    return {name: value for name in Report.__slots__ if (value := getattr(report, name)) is not None}


def decode_report(head: Mapping[str, Any]) -> Report:
    """The report in a head, which has other fields, too."""
    known = head.keys() & Report.__slots__
    return Report(**{name: head[name] for name in known}) if known else NO_REPORT
