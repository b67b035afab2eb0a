"""What is asked of upstream, and what a completion is made of, beside what came of it (`result.py`)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["content", "reasoning"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a completion is asked for: everything that goes upstream but the relay's own settings."""

    model: str
    turns: Iterable[tuple[str, str]]  # role and content; it is walked over once
    options: Mapping[str, Any] = field(default_factory=dict)  # upstream's parameters, as they are sent
    session_id: str | None = None  # keeps a conversation with one provider, and so with its cache
    traceparent: str | None = None


@dataclass(frozen=True, slots=True)
class Retry:
    """A try has failed before anything of an answer came; another one is made."""


@dataclass(frozen=True, slots=True)
class Delta:
    """Text to append; encodable as UTF-8."""

    kind: Kind
    text: str
