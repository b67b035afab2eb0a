"""The question to upstream and the parts of its answer; `result.py` has the outcome."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["content", "reasoning"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """Everything in a completion's request but the relay's own settings."""

    model: str
    turns: Iterable[tuple[str, str]]  # role and content; it can be iterated only once
    options: Mapping[str, Any] = field(default_factory=dict)  # upstream's parameters, sent unchanged
    session_id: str | None = None  # keeps a conversation with one provider, and so with its cache
    traceparent: str | None = None


@dataclass(frozen=True, slots=True)
class Retry:
    """A try failed before any part of an answer came, and another one follows."""


@dataclass(frozen=True, slots=True)
class Delta:
    """Text to append to the reply; UTF-8 can encode it."""

    kind: Kind
    text: str
