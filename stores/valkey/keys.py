"""The keys on the server, the form of their values, and the scripts that change them.

A relay sends scripts whole each time, so that a new primary needs to know nothing. Only arguments carry text. A server
without memory runs a script with `allow-oom` (signs of life, endings, deletions), and refuses the others as a whole.

A conversation is a hash with its fields, and a list with its messages. A field has text as `=text`, null as an empty
value, anything else as JSON. A change leaves the fields that another version of the relay has written as they are.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from stores.records import Conversation, Message, decode, encode
from stores.snapshot import Snapshot, iso

T = TypeVar("T")

_ELSEWHERE = {"id", "title", "created_at", "updated_at", "message_count"}
_FIELDS = [field.name for field in fields(Conversation) if field.name not in _ELSEWHERE]

_FOLDER = Path(__file__).parent
_SHARED = (_FOLDER / "shared.lua").read_text()


def _script(name: str) -> str:
    first_line, _, rest = (_FOLDER / f"{name}.lua").read_text().partition("\n")
    return f"{first_line}\n{_SHARED}{rest}"


def _constant(name: str) -> int:
    match = re.search(rf"^local {name} = (\d+)", _SHARED, re.MULTILINE)
    assert match, f"shared.lua defines {name}"
    return int(match[1])


APPEND, BEAT, COMMIT, FENCE_OFF, HEADS, LOAD, NOTE, SLICE, TEXT = map(
    _script, ("append", "beat", "commit", "fence", "heads", "load", "note", "slice", "text")
)
COMMIT_ALWAYS = COMMIT.replace("#!lua", "#!lua flags=allow-oom", 1)
"""For changes that make room: a server without memory takes them, too."""

END, FENCE = _constant("END"), _constant("FENCE")


@dataclass(frozen=True, slots=True)
class Keys:
    """The names of the keys. All have one hash tag, so that a cluster keeps them on one server."""

    prefix: str

    def of(self, name: str) -> str:
        """The key of `list`, `totals`, `running`, `relays`, `format`, or of `c:`, `m:`, `q:`, `r:`, `in:` and an id."""
        return f"{{{self.prefix}}}:{name}"

    def of_conversation(self, id: str) -> list[str]:
        """The keys of its fields, of its messages, and of the place of each message."""
        return [self.of(f"{kind}:{id}") for kind in "cmq"]


def head_of(snapshot: Snapshot) -> list[str]:
    """The names and values of the fields of a conversation, in turn."""
    values: dict[str, Any] = {name: getattr(snapshot.conversation, name) for name in _FIELDS}
    values |= {"own_title": snapshot.own_title, "auto_title": snapshot.first_line}
    written = {name: _written(value) for name, value in values.items()}
    written["message_count"] = str(snapshot.conversation.message_count)
    return [part for pair in written.items() for part in pair]


def snapshot_of(conversation_id: str, head: Sequence[str]) -> Snapshot:
    """The snapshot that has these fields, without its messages."""
    texts = dict(pairs(head))
    own_title, first_line = _read(texts.get("own_title", "")), _read(texts.get("auto_title", ""))
    conversation = Conversation(
        id=conversation_id,
        title=own_title or first_line,
        created_at=iso(int(texts["created_at"])),
        updated_at=iso(int(texts["updated_at"])),
        message_count=int(texts["message_count"]),
        **{name: _read(texts[name]) for name in _FIELDS if name in texts},
    )
    return Snapshot(conversation, own_title, first_line, version=texts["version"])


def element_of(message: Message) -> str:
    """A message as an element of the list. The text of a reply in progress is in a stream instead."""
    head, text = encode(message)
    return f"{head}\n{'' if message.status == 'streaming' else text}"


def messages_of(elements: Sequence[str]) -> Iterator[Message]:
    """The messages that `element_of` has written."""
    heads_and_texts = [element.partition("\n")[::2] for element in elements]
    heads = json.loads(f"[{','.join(head for head, _ in heads_and_texts)}]")  # far quicker than one by one
    for head, (_, text) in zip(heads, heads_and_texts, strict=True):
        yield decode(head, text)


def pairs(flat: Sequence[T]) -> Iterator[tuple[T, T]]:
    """The names and values of a hash, which the server answers in turn."""
    return zip(flat[::2], flat[1::2], strict=True)


def _written(value: Any) -> str:
    if value is None:
        return ""
    return f"={value}" if isinstance(value, str) else json.dumps(value)


def _read(written: str) -> Any:
    if not written:
        return None
    return written[1:] if written[0] == "=" else json.loads(written)
