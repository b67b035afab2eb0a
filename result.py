"""What came of a reply: how it ended, and what upstream reported of it beside the text.

Upstream, the stores and the API all speak of it in these values. They import nothing of ours.
"""

from dataclasses import dataclass


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

    `upstream/completion.py` reads its fields from the stream. The engines keep each of them, relays tell each other of
    them, and the API shows them, whatever they are.
    """

    generation_id: str | None = None  # for looking a charge up
    served_model: str | None = None
    provider: str | None = None
    usage: str | None = None
    annotations: str | None = None


NO_REPORT = Report()
OBJECTS = ("usage", "annotations")
"""The fields of a report that are JSON: text takes a fraction of an object's memory."""


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
