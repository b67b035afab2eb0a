"""What a completion is made of, as the adapter gives it on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["content", "reasoning"]


@dataclass(frozen=True, slots=True)
class Generation:
    """Upstream's id of the completion, for looking a charge up."""

    id: str


@dataclass(frozen=True, slots=True)
class Delta:
    """Text to append; encodable as UTF-8."""

    kind: Kind
    text: str


@dataclass(frozen=True, slots=True)
class Finish:
    """The end of a whole completion."""

    finish_reason: str | None
    usage: Mapping[str, Any] | None
