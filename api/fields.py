"""The fields of a request's body: what each must be.

Knows nothing of requests.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

Complaint = tuple[str, str]  # where, and what it must be
Rule = Callable[[object], Iterator[Complaint]]  # where: below the field

# The pattern of openapi.json. It names what only some dialects take for white space: `\s` alone differs between them.
_VISIBLE = re.compile(r"[^\s\x1c-\x1f\x85\ufeff]")
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Text:
    """A string with something to see in it."""

    most: int  # characters
    setting: str = ""  # that decides `most`
    nullable: bool = True
    printable: bool = False  # ASCII alone: it is sent in a header

    def complaint(self, value: object) -> str | None:
        """What is wrong with `value`; None if nothing is."""
        if value is None and self.nullable:
            return None
        if not isinstance(value, str):
            return f"must be a string{' or null' if self.nullable else ''}"
        if not _VISIBLE.search(value):
            return "must not be blank"
        if len(value) > self.most:
            return f"must have at most {self.most} characters{f' ({self.setting})' if self.setting else ''}"
        if self.printable and not (value.isascii() and value.isprintable()):
            return "must be printable ASCII, such as openai/gpt-5-mini"
        if _SURROGATE.search(value):
            return "must be text that UTF-8 can carry: it has one half of a surrogate pair"
        return None

    def __call__(self, value: object) -> Iterator[Complaint]:
        """As a `Rule`."""
        if complaint := self.complaint(value):
            yield "", complaint


MODEL = Text(200, nullable=False, printable=True)
OPTIONAL_MODEL = Text(200, printable=True)
TITLE = Text(200)


def identifier(value: object) -> Iterator[Complaint]:
    """An id that a client chooses, or null."""
    if not (value is None or (isinstance(value, str) and _ID.fullmatch(value))):
        yield "", "must be 1 to 64 characters of A-Z a-z 0-9 _ -, or null"


def reference(value: object) -> Iterator[Complaint]:
    """The id of a message, or null."""
    if not (value is None or isinstance(value, str)):
        yield "", "must be the id of a message, or null for the beginning"


def role(value: object) -> Iterator[Complaint]:
    """Who says it."""
    if value not in ("user", "assistant"):
        yield "", "must be user or assistant"


@dataclass(frozen=True, slots=True)
class Turns:
    """The messages of a conversation that is imported, oldest first; or null."""

    most: int
    content: Text

    def __call__(self, value: object) -> Iterator[Complaint]:
        """As a `Rule`."""
        if value is not None and not isinstance(value, list):
            yield "", "must be a list of messages, or null"
        elif value and len(value) > self.most:
            yield "", f"must have at most {self.most} messages (MAX_MESSAGES)"
        else:
            rules: dict[str, Rule] = {"role": role, "content": self.content, "model": OPTIONAL_MODEL}
            for number, turn in enumerate(value or ()):
                if isinstance(turn, dict):
                    for where, complaint in complaints(turn, rules, ("role", "content")):
                        yield f".{number}.{where}", complaint
                else:
                    yield f".{number}", "must be a JSON object"


def complaints(
    fields: Mapping[str, object], rules: Mapping[str, Rule], required: tuple[str, ...] = ()
) -> Iterator[Complaint]:
    """What is wrong with an object of these fields."""
    for name in fields:
        if name not in rules:
            yield name[:80].encode(errors="backslashreplace").decode(), "is not a field here"
    for name, rule in rules.items():
        if name in fields:
            for where, complaint in rule(fields[name]):
                yield name + where, complaint
        elif name in required:
            yield name, "is required"
