"""What came of a reply. Upstream, stores and the API all speak of it in these values; they import nothing of ours."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a reply failed. `code` is an HTTP status, `retry_after` is in seconds."""

    code: int
    message: str
    retryable: bool
    retry_after: float | None = None
