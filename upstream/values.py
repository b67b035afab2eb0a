"""What is asked of upstream, and what a completion is made of, as the adapter gives it on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

Kind = Literal["content", "reasoning"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a completion is asked for: everything that goes upstream but the relay's own settings."""

    model: str
    turns: Sequence[tuple[str, str]]  # role and content
    options: Mapping[str, Any] = field(default_factory=dict)  # upstream's parameters, as they are sent
    session_id: str | None = None  # keeps a conversation with one provider, and so with its cache
    traceparent: str | None = None


class Citation(TypedDict):
    """A source of the answer. The indexes are those of the text that it supports, both or neither."""

    type: Literal["url_citation"]
    url: str
    title: str | None
    start_index: int | None
    end_index: int | None


@dataclass(frozen=True, slots=True)
class Report:
    """What upstream says of its answer beside the text, as far as it has come; the last one counts."""

    generation_id: str | None = None  # for looking a charge up
    served_model: str | None = None
    provider: str | None = None
    usage: Mapping[str, Any] | None = None
    annotations: Sequence[Citation] | None = None


@dataclass(frozen=True, slots=True)
class Retry:
    """A try has failed before anything of an answer came; another one is made."""


@dataclass(frozen=True, slots=True)
class Delta:
    """Text to append; encodable as UTF-8."""

    kind: Kind
    text: str


@dataclass(frozen=True, slots=True)
class Finish:
    """The end of a whole completion."""

    finish_reason: str | None
