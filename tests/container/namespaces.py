"""Namespaces in which container tools can do what they like: nothing that they mount or start is left behind."""

import contextlib
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

# Runtimes refuse a machine whose control groups are of both versions, although the containers here use none.
HIDE_CGROUP2 = "umount /sys/fs/cgroup/unified 2>/dev/null || true"
OWN_RUN = "for of in netns containers crun libpod; do mkdir -p /run/$of && mount -t tmpfs tmpfs /run/$of; done"
LOOPBACK = "ip link set lo up"
REFUSED = "this machine lets nobody make namespaces or mount in them, or the tests don't run as root: see stderr"


class Namespaces:
    """Mounts and processes, and with `network` a network, apart from the machine's."""

    def __init__(self, pid: int, environ: Mapping[str, str], network: bool) -> None:
        self._enter = ["nsenter", f"--target={pid}", "--mount", "--pid", *(["--net"] if network else [])]
        self._environ = environ
        self.root = Path(f"/proc/{pid}/root")
        """The file system as it is seen from inside."""

    @classmethod
    @contextlib.contextmanager
    def made(cls, environ: Mapping[str, str], *, network: bool = False) -> Iterator["Namespaces"]:
        """New ones; at the end, every process in them is killed."""
        script = f"set -e; {HIDE_CGROUP2}; {OWN_RUN}; {LOOPBACK if network else ':'}; echo made; exec sleep infinity"
        kinds = ["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", *(["--net"] if network else [])]
        command = ["setpriv", "--pdeathsig=KILL", "unshare", *kinds, "sh", "-c", script]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as keeper:
            try:
                assert keeper.stdout and keeper.stdout.readline() == "made\n", REFUSED
                children = Path(f"/proc/{keeper.pid}/task/{keeper.pid}/children").read_text()
                yield cls(int(children), environ, network)
            finally:
                keeper.kill()

    def run(self, *command: str, cwd: Path | None = None) -> str:
        """What a command prints inside; `AssertionError` with all that it said if it fails."""
        return output(*self._enter, *([f"--wd={cwd}"] if cwd else []), *command, env=self._environ)


def output(*command: str, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
    """What a command prints; `AssertionError` with all that it said if it fails or takes 20 minutes."""
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=cwd, timeout=1200, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout
