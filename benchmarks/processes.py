"""A subject's process: started on its core, weighed by the operating system's accounts, ended with all its children.

CPU is the kernel's clock of the process (user and system time of every thread, the sum that /proc/PID/stat shows in
ticks of 10 ms, here in nanoseconds); memory is its resident set. Both include child processes.
"""

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

_CLOCK_OF_A_PROCESS = 2  # clock_getcpuclockid(3): the clock's number is ~pid << 3, with CPUCLOCK_SCHED in the low bits


@dataclass(frozen=True)
class Command:
    """A process to start: arguments, the whole environment, the folder to start in."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    folder: Path = Path("/")


class Process:
    """A running subject. `end` it, whatever happens."""

    def __init__(self, command: Command, core: int | None, log: Path) -> None:
        self.log, self.started_at = log, time.monotonic()
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            self._popen = subprocess.Popen(
                [*_settled(core), *command.arguments],
                env=dict(command.environment),
                cwd=command.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.pid = self._popen.pid

    @property
    def running(self) -> bool:
        """Whether the process is still there."""
        return self._popen.poll() is None

    def cpu(self) -> float:
        """Seconds of CPU since the start."""
        return sum(time.clock_gettime((~pid << 3) | _CLOCK_OF_A_PROCESS) for pid in _family(self.pid))

    def waited(self) -> float:
        """Seconds that its threads were ready to run while others had the core."""
        return sum(_run_delay(pid) for pid in _family(self.pid))

    def memory(self) -> float:
        """Resident KiB."""
        return float(sum(_resident(pid) for pid in _family(self.pid)))

    def last_words(self, lines: int = 12) -> str:
        """The end of what the process printed."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def end(self) -> None:
        """Ask the process and its children to stop; after three seconds make them."""
        self._signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(3)
        self._signal(signal.SIGKILL)
        self._popen.wait()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)


def pin(core: int | None) -> None:
    """Keep this process on a core."""
    if core is not None:
        os.sched_setaffinity(0, {core})


def _settled(core: int | None) -> list[str]:
    """The prefix that puts a command on its core and ends it when the benchmark is killed, both by util-linux."""
    pinned = [] if core is None else ["taskset", "--cpu-list", str(core)]
    return ["setpriv", "--pdeathsig", "KILL", *pinned]


def _family(leader: int) -> list[int]:
    """The processes of the session that `leader` was started in."""
    return [
        pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if pid == leader or _session(pid) == leader
    ]


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


def _run_delay(pid: int) -> float:
    tasks = Path(f"/proc/{pid}/task")
    with contextlib.suppress(OSError):
        return sum(int((task / "schedstat").read_text().split()[1]) for task in tasks.iterdir()) / 1e9
    return 0.0


def _resident(pid: int) -> int:
    try:
        found = re.search(r"^Rss: +(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) if found else 0
