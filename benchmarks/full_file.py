"""`python -m benchmarks.full_file`: a SQLite file with as much in it as the settings allow, its start and its commits.

Prints; writes no page. `--part 0.1` for a tenth of it.
"""

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from settings import Settings
from store import Store
from stores.records import Question
from stores.rules import Rules, imported
from stores.snapshot import Change, Totals
from stores.sqlite.file import File

CONVERSATIONS, MESSAGES, TEXT = 10_000, 10, 256 * 1024 * 1024
COMMITS = 500


def main() -> None:
    """Make it, start on it, write to it; print what that takes."""
    parser = argparse.ArgumentParser("python -m benchmarks.full_file", description=__doc__)
    parser.add_argument("--part", type=float, default=1.0, metavar="P", help="only this part of it")
    part = parser.parse_args().part
    with TemporaryDirectory() as folder:
        file = Path(folder) / "chat.db"
        print(f"a start on no file: {start(file):.2f} s")
        fill(file, part)
        print(f"{file.stat().st_size / 2**20:.0f} MiB for {TEXT * part / 2**20:.0f} MiB of text")
        print(f"a start on it: {start(file):.2f} s, of which it is read in {reading(file):.2f} s")
        print(f"a start with a log of {grow_log(file)} MiB beside it: {start(file):.2f} s")
        times = sorted(asyncio.run(commits(file)))
        print(f"a commit: {statistics.median(times):.2f} ms in the median, {times[len(times) * 99 // 100]:.2f} at p99")


def fill(file: Path, part: float) -> None:
    """Conversations with questions and answers of one size."""
    stored = File(file)
    stored.open(0)
    changes = list(imports(round(CONVERSATIONS * part)))
    for first in range(0, len(changes), 100):
        stored.write(changes[first : first + 100], [])
    stored.close()


def imports(conversations: int) -> Iterator[Change]:
    """As many new conversations, each as full as all are."""
    settings = Settings(model_name="m", max_store_bytes=2 * TEXT)
    text = "x" * (TEXT // CONVERSATIONS // MESSAGES)
    turns = [{"role": role, "content": text} for role in ("user", "assistant") * (MESSAGES // 2)]
    now = time.time_ns() // 1000
    for number in range(conversations):
        at = now + number * 100
        yield Rules(settings, Totals(), at).create(list(imported(turns, at)))


def start(file: Path) -> float:
    """Seconds until a process on that file has started, which is then told to end."""
    began = time.monotonic()
    env = {"PATH": os.environ["PATH"], "PORT": "0", "STORE_URL": f"sqlite:///{file}"}
    server = [sys.executable, "server.py"]
    with subprocess.Popen(server, env=env, stderr=subprocess.PIPE, text=True) as child:
        assert child.stderr
        for line in child.stderr:
            if "Uvicorn running" in line:
                break
        seconds = time.monotonic() - began
        child.terminate()
        child.stderr.read()
    return seconds


def reading(file: Path) -> float:
    """Seconds in which it is opened and read."""
    began = time.monotonic()
    stored = File(file)
    stored.open(0)
    seconds = time.monotonic() - began
    stored.close()
    return seconds


def grow_log(file: Path) -> int:
    """Write every message again, as a process does that dies before the log is folded in; the log's size in MiB."""
    script = (
        "import os, sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None);"
        "c.execute('PRAGMA wal_autocheckpoint = 0'); c.execute('UPDATE messages SET head = head || char(32)');"
        "os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", script, str(file)], check=True)
    return round(file.with_name("chat.db-wal").stat().st_size / 2**20)


async def commits(file: Path) -> list[float]:
    """Milliseconds of each of many questions, one after the other, each in another conversation."""
    store = Store(Settings(model_name="m", store_url=f"sqlite:///{file}", max_store_bytes=2 * TEXT))
    await store.open()
    page, _ = await store.list_conversations(COMMITS)
    times = []
    for conversation in page:
        began = time.perf_counter()
        await store.add_user_message(conversation.id, Question("And why is that so?"))
        times.append(1000 * (time.perf_counter() - began))
    await store.close()
    return times


if __name__ == "__main__":
    main()
