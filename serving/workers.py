"""Several processes of one relay on the same sockets: one that dies is replaced, and a signal ends them all.

Knows nothing of what they serve. A terminal and systemd send their signals to every process, and kill(1) to one alone:
so a pipe that closes tells the processes to end, and a signal of its own to hurry.
"""

import logging
import os
import signal
import sys
import time

from uvicorn.server import HANDLED_SIGNALS

from serving.shutdown import HURRY

STARTUP_FAILURE = 3  # the exit code that makes uvicorn's supervisor give up, too
SHORT_LIFE = 1.0  # seconds: what dies sooner isn't replaced at once

logger = logging.getLogger("server")


def forked(count: int) -> int:
    """Return in each of `count` new processes, with a descriptor that reads as closed when they shall end.

    This process stays behind. It exits when all have ended: with the code of one that couldn't start, else with 0.
    """
    supervisor = _Supervisor(count)
    while supervisor.wants_another():
        if supervisor.fork() == 0:
            return supervisor.leave()
    sys.exit(supervisor.code)


class _Supervisor:
    """It keeps so many processes, and waits for them."""

    def __init__(self, count: int) -> None:
        self.code = 0
        self._count = count
        self._started: dict[int, float] = {}  # by process, when
        self._is_ending = False
        self._ends, self._goes_on = os.pipe()
        for number in HANDLED_SIGNALS:
            signal.signal(number, lambda *_: self._on_signal())

    def wants_another(self) -> bool:
        """Wait until there is one too few; False when all have ended that should."""
        while len(self._started) == self._count or (self._is_ending and self._started):
            self._wait()
        return not self._is_ending

    def fork(self) -> int:
        """The new process's id, 0 in itself."""
        if pid := os.fork():
            self._started[pid] = time.monotonic()
        return pid

    def leave(self) -> int:
        """What a new process takes with it."""
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        os.close(self._goes_on)
        return self._ends

    def _wait(self) -> None:
        pid, status = os.wait()
        lived, code = time.monotonic() - self._started.pop(pid), os.waitstatus_to_exitcode(status)
        if self._is_ending:
            return
        if code == STARTUP_FAILURE:
            self.code = code
            return self._end()
        logger.error("Process %d has ended with %d: another one takes its place", pid, code)
        time.sleep(0 if lived > SHORT_LIFE else SHORT_LIFE)

    def _on_signal(self) -> None:
        if not self._is_ending:
            return self._end()
        for pid in self._started:
            os.kill(pid, HURRY)

    def _end(self) -> None:
        self._is_ending = True
        os.close(self._goes_on)
