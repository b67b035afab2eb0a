"""The cost of a stretch of time: the subject's CPU, and how far two things may have spoilt the measurement."""

import time
from dataclasses import dataclass

from benchmarks.processes import Process


@dataclass(frozen=True)
class Cost:
    """`began` and the `seconds` that passed since; `cpu`, the subject's seconds of CPU; two shares of that time.

    `ours`: upstream and readers had their own core busy; near 1 they may have been the bottleneck.
    `waited`: the subject was ready to run but others had its core; far from 0 the machine wasn't quiet.
    """

    began: float
    seconds: float
    cpu: float
    ours: float
    waited: float

    def figures(self, name: str, tokens: int) -> dict[str, float]:
        """Microseconds of CPU a token, and tokens a second, with how far they can be trusted."""
        return {
            f"cpu_{name}": self.cpu / tokens * 1e6,
            f"speed_{name}": tokens / self.seconds,
            f"ours_{name}": self.ours,
            f"waited_{name}": self.waited,
        }


class Meter:
    """Runs from its making; `read` it at the end."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._cpu, self._waited = process.cpu(), process.waited()
        self._ours, self._began = time.process_time(), time.monotonic()

    def read(self) -> Cost:
        """The cost so far."""
        seconds, ours = time.monotonic() - self._began, time.process_time() - self._ours
        cpu, waited = self._process.cpu() - self._cpu, self._process.waited() - self._waited
        return Cost(self._began, seconds, cpu, ours / seconds, waited / seconds)
