"""The outcome of a reply: how it ended, and what upstream reported beside its text.

Upstream, the stores and the API share these values. This module imports no other module of the project.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finish:
    """The reply is whole; `finish_reason` is upstream's."""

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
    """The facts that upstream has reported so far beside the text; the last report counts.

    `upstream/completion.py` reads the fields from the stream. The engines, other relays and the API treat all fields
    alike, so a new field needs no change there.
    """

    generation_id: str | None = None  # OpenRouter looks up the charge by it
    served_model: str | None = None
    provider: str | None = None
    usage: str | None = None
    annotations: str | None = None


NO_REPORT = Report()
OBJECTS = ("usage", "annotations")
"""The fields of a report that hold JSON as text, which takes a fraction of an object's memory."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The facts about a reply that metrics count; the times are in seconds since the reply began."""

    model: str  # the model that the client asked for
    is_listed: bool  # whether the models list has the model
    status: str
    error: Failure | None
    report: Report
    retries: int
    first_token: float | None  # None if no text came
    end: float
