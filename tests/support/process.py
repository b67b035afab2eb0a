"""The service in a process of its own, for what a process does: start, signals, exit codes, output."""

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
from asyncio.subprocess import DEVNULL, STDOUT, Process
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import httpx

from tests.support.engines import new_store_url
from tests.support.relay import STARTING, Relay, client
from tests.support.servers import free_port
from tests.support.waiting import eventually

ROOT = Path(__file__).parents[2]

COMMANDS = {"python": [sys.executable], "uvicorn": [sys.executable, "-m", "uvicorn"]}
"""The programs of the environment that the tests run in, wherever PATH leads."""


class RelayProcess(Relay):
    """A relay with a process id."""

    def __init__(self, url: str, client: httpx.AsyncClient, child: Process, log: int) -> None:
        super().__init__(url, client)
        self.pid = child.pid
        self._child = child
        self._log = log

    @property
    def output(self) -> str:
        """What it has written so far to stdout and stderr."""
        return os.pread(self._log, os.fstat(self._log).st_size, 0).decode()

    @property
    def running(self) -> bool:
        """False once it has exited."""
        return self._child.returncode is None

    @property
    def children(self) -> list[int]:
        """The processes that it has started."""
        return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]

    def terminate(self) -> None:
        """SIGTERM, as a container's runtime sends it."""
        self._child.send_signal(signal.SIGTERM)

    def interrupt(self) -> None:
        """SIGINT, as Ctrl-C sends it."""
        self._child.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """SIGKILL, at whatever moment."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)  # asyncio's own would take the exit code from whoever waits for it

    async def exit(self, within: float = 10.0) -> int:
        """Its exit code (negative: the signal it died of); `AssertionError` with its output if it goes on."""
        try:
            async with asyncio.timeout(within):
                return await self._child.wait()
        except TimeoutError:
            raise AssertionError(f"still running after {within} s:\n{self.output}") from None

    async def listens(self) -> None:
        """Return once it answers, since it listens before; `AssertionError` with its output if it exits or hangs."""
        try:
            await eventually(self._answers_or_exited, STARTING)
        except AssertionError:
            raise AssertionError(f"no answer after {STARTING} s:\n{self.output}") from None
        assert self.running, f"exited with {self._child.returncode}:\n{self.output}"

    async def _answers_or_exited(self) -> bool:
        if not self.running:
            return True
        try:
            reader, writer = await asyncio.open_connection(*self.url.removeprefix("http://").split(":"))
        except OSError:
            return False
        with contextlib.closing(writer), contextlib.suppress(ConnectionError):
            writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            return bool(await reader.read())
        return False


@contextlib.asynccontextmanager
async def process(
    *command: str, env: Mapping[str, str] | None = None, cwd: Path = ROOT, listening: bool = True
) -> AsyncIterator[RelayProcess]:
    """`process("python", "server.py")` or `process("uvicorn", "server:app")`, killed with all its children at the end.

    Its environment has PATH, a free port (as PORT and UVICORN_PORT), `env`, coverage.py's variables, and nothing else.
    Returns when it answers, or at once unless `listening`.
    """
    port = str(free_port())
    environ = {"PATH": os.environ["PATH"], "PYTHONUNBUFFERED": "1", "PORT": port, "UVICORN_PORT": port}
    environ |= {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")}
    environ |= {"STORE_URL": new_store_url(), **(env or {})}
    argv = [*COMMANDS.get(command[0], command[:1]), *command[1:]]
    url = f"http://127.0.0.1:{environ['PORT']}"
    with tempfile.TemporaryFile() as log:
        child = await asyncio.create_subprocess_exec(
            *argv, stdin=DEVNULL, stdout=log, stderr=STDOUT, env=environ, cwd=cwd, start_new_session=True
        )
        try:
            async with client(url) as connections:
                relay = RelayProcess(url, connections, child, log.fileno())
                if listening:
                    await relay.listens()
                yield relay
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            await child.wait()
