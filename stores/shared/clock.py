"""Moments that all relays agree on: the server's clock tells them, and no two changes have the same."""

import time

PROMPT = 1.0  # seconds within which an answer tells what time it is


class Clock:
    """In microseconds since 1970."""

    def __init__(self) -> None:
        self._latest = 0
        self._offset = 0  # by which the server's is ahead of ours

    def now(self) -> int:
        """Later than any moment that was told."""
        self._latest = max(time.time_ns() // 1000 + self._offset, self._latest + 1)
        return self._latest

    def hear(self, server_time: int, *, took: float = 0.0) -> None:
        """What time it was at the server, in an answer that took so many seconds."""
        if took < PROMPT:
            self._offset = server_time - time.time_ns() // 1000

    def advance(self, at: int) -> None:
        """It is later than `at`."""
        self._latest = max(self._latest, at)
