"""What came of a reply: how it ended, and what upstream reported of it beside the text.

Upstream, the stores and the API all speak of it in these values. They import nothing of ours.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

_AS_JSON = {"is_json": True}


@dataclass(frozen=True, slots=True)
class Finish:
    """The reply is whole. Upstream gave this reason."""

    finish_reason: str | None = None


@dataclass(frozen=True, slots=True)
class Stopped:
    """Somebody stopped the reply, or deleted it."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a reply failed. `code` is an HTTP status, `retry_after` is in seconds."""

    code: int
    message: str
    retryable: bool
    retry_after: float | None = None


Ending = Finish | Stopped | Failure


@dataclass(frozen=True, slots=True)
class Report:
    """What upstream says of its answer beside the text, as far as it has come; the last report counts.

    Objects are kept as JSON, which takes a fraction of their memory. `upstream/completion.py` reads each field from
    the stream. The engines keep them all, relays tell each other of them, and the API shows them.
    """

    generation_id: str | None = None  # for looking a charge up
    served_model: str | None = None
    provider: str | None = None
    usage: str | None = field(default=None, metadata=_AS_JSON)
    annotations: str | None = field(default=None, metadata=_AS_JSON)

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Report":
        """Return the report in a record, which may have other fields, too."""
        known = {name: record[name] for name in cls.__slots__ if name in record}
        return cls(**known) if known else NO_REPORT

    def known(self) -> dict[str, str]:
        """Return what was reported, by name, as it is kept."""
        return {name: value for name in self.__slots__ if (value := getattr(self, name)) is not None}

    def shown(self) -> dict[str, Any]:
        """Return all fields by name, as clients see them."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return values | {name: json.loads(text) for name in _OBJECTS if (text := values[name])}

    @property
    def figures(self) -> Mapping[str, Any]:
        """The usage, empty if none was reported."""
        return json.loads(self.usage) if self.usage else {}


NO_REPORT = Report()
_OBJECTS = [entry.name for entry in fields(Report) if entry.metadata.get("is_json")]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a reply went, to be counted. Times are in seconds since it began; `first_token` is None if there was none."""

    model: str  # that was asked for
    is_listed: bool  # the models list has it
    status: str
    error: Failure | None
    report: Report
    retries: int
    first_token: float | None
    end: float
