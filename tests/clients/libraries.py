"""The libraries that are tried, and what docs/clients.md says of them."""

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Library:
    """One row of the table."""

    name: str
    where: str
    """The program that runs it: node, browser, python or java."""
    methods: tuple[str, ...] = ("GET", "POST")
    package: str = ""
    """What it is called in package.json or requirements.txt, if not by its name."""
    remark: str = ""
    early_id: bool = False
    """It takes an id before the block has ended: cut between the last two bytes of a block, it loses that block."""
    whole_answer: bool = False
    """It can't resume: what it does after a cut is the same request again."""
    tabs: bool = False
    """It closes its connection while its tab is hidden."""

    @property
    def version(self) -> str:
        """The one that is pinned; none of what comes with a system."""
        return _pinned().get((self.where == "python", self.package or self.name), "")

    def __str__(self) -> str:
        return self.name

    @property
    def told(self) -> list[str]:
        """Its row in docs/clients.md."""
        name = f"`{self.name}` {self.version}".strip()
        cut = (
            "exact, but for [one byte](#one-byte)" if self.early_id else "exact, from the beginning" * self.whole_answer
        )
        post = "one question" if "POST" in self.methods else ""
        seen = "exact" if self.where == "browser" else ""
        return [name, cut or "exact", post, "exact" if self.tabs else "", seen, "fine", self.remark]


CLOSE = "close it at `done`"
ABORT = "abort it at `done`: if the connection is lost just then, it asks for ever"
NAMED = "a POST has to name `text/event-stream` in `Accept`"
RESUME = "repeat the request with `Last-Event-ID`"
REPEAT = "give the question an `id`, repeat the request, and forget the text that came before: it keeps ids to itself"

LIBRARIES = [
    Library("EventSource", "browser", ("GET",)),
    Library("event-source-polyfill", "browser", ("GET",)),
    Library(
        "reconnecting-eventsource",
        "browser",
        ("GET",),
        remark=f"{CLOSE}; listen with `addEventListener`: `onmessage` keeps no ids",
    ),
    Library("@microsoft/fetch-event-source", "browser", remark=ABORT, early_id=True, tabs=True),
    Library("@fortaine/fetch-event-source", "browser", remark=ABORT, early_id=True, tabs=True),
    Library("extended-eventsource", "browser", remark=CLOSE, early_id=True),
    Library("sse.js", "browser", remark=f"`autoReconnect: true`, and {CLOSE}"),
    Library("axios (browser)", "browser", package="axios", remark=f"{RESUME}; {NAMED}"),
    Library("eventsource", "node", ("GET",)),
    Library(
        "eventsource 2",
        "node",
        ("GET",),
        package="eventsource-2",
        remark="don't parse `start`: half a block may stand before its data; version 3 is well",
        early_id=True,
    ),
    Library("undici", "node", ("GET",), remark="its `EventSource` is that of Node 22"),
    Library("eventsource-client", "node"),
    Library("launchdarkly-eventsource", "node"),
    Library("eventsource-parser", "node", remark=RESUME),
    Library("axios", "node", remark=f"{RESUME}; {NAMED}"),
    Library("@ai-sdk/provider-utils", "node", ("POST",), remark=REPEAT, whole_answer=True),
    Library("openai", "node", ("POST",), remark=REPEAT, whole_answer=True),
    Library("httpx-sse", "python", remark=RESUME),
    Library("aiohttp-sse-client2", "python", remark=f"{RESUME}, in a new `EventSource`"),
    Library("sseclient-py", "python", remark=RESUME),
    Library("requests", "python", remark=RESUME),
    Library("requests-sse", "python", remark=f"{CLOSE}: it raises at a 204"),
    Library(
        "launchdarkly-eventsource (Python)",
        "python",
        ("GET",),
        package="launchdarkly-eventsource",
        remark=CLOSE,
    ),
    Library("openai (Python)", "python", ("POST",), package="openai", remark=REPEAT, whole_answer=True),
    Library("curl", "python", remark=f"{RESUME}; `--retry` repeats a POST, with `--retry-all-errors` and `-o`"),
    Library("java.net.http", "java", remark=RESUME),
]


def those(where: str) -> list[Library]:
    """The libraries that one program runs."""
    return [library for library in LIBRARIES if library.where == where]


@cache
def _pinned() -> dict[tuple[bool, str], str]:
    """Versions by whether it is Python's, and the package."""
    npm = json.loads((HERE / "package.json").read_text(encoding="utf-8"))["devDependencies"]
    pins = re.findall(r"^([\w-]+)==(\S+)", (HERE / "requirements.txt").read_text(encoding="utf-8"), re.MULTILINE)
    return {(False, name): version.rpartition("@")[2] for name, version in npm.items()} | {
        (True, name): version for name, version in pins
    }
