"""How long upstream is waited for, and how often it is asked again."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Timers:
    """Seconds."""

    connect: float = 10.0
    read: float = 60.0  # without a byte
    delta: float = 300.0  # without a delta, whatever comments come
    tail: float = 5.0  # for the usage, after the finish reason, and for the body of an error
    rest: float = 1.0  # for the response's end, after `[DONE]`
    retries: tuple[float, ...] = (0.5, 1.5)  # before the second and the third try
    retry_after: float = 30.0  # the longest `Retry-After` that is waited for
    models: float = 3600.0  # that the models list is fresh
    models_retry: float = 30.0  # after a failed refresh, until the next
