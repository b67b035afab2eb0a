"""python read.py <targets.json: reads all of them at once, each with the Python library (or the program) that it names.

For each event it writes a line: the target's number, the event's name and its data.
"""

import asyncio
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import aiohttp
import httpx
import openai
import requests
import requests_sse
import sseclient
from aiohttp_sse_client2.client import EventSource as AiohttpEventSource
from httpx_sse import connect_sse
from ld_eventsource import SSEClient as LaunchDarkly
from ld_eventsource.actions import Event as LaunchDarklyEvent
from ld_eventsource.config import ConnectStrategy, ErrorStrategy

TELLING = threading.Lock()
PAUSE = 0.02


@dataclass
class Events:
    """What a library has read of one stream."""

    number: int
    last: str = ""
    """The last id."""
    ended: bool = False

    def take(self, name: str, data: str, id: str | None = None) -> bool:
        """An event; whether it was the last one."""
        self.tell(name, data)
        self.last = id or self.last
        self.ended |= bool({"done", "error"} & json.loads(data).keys())
        return self.ended

    def tell(self, name: str, data: str) -> None:
        """A line."""
        with TELLING:
            print(self.number, name, data, sep="\t", flush=True)

    def take_lines(self, lines: Iterable[str]) -> bool:
        """The lines of a stream, as the documentation's example reads them."""
        block = _Block()
        for line in lines:
            if not line and block.data:
                if self.take(block.event, "\n".join(block.data), block.id):
                    return True
                block = _Block()
            elif line:
                block.take(line)
        return False


@dataclass
class _Block:
    event: str = "message"
    data: list[str] = field(default_factory=list)
    id: str = ""

    def take(self, line: str) -> None:
        name, _, value = line.partition(": ")
        if name == "event":
            self.event = value
        elif name == "data":
            self.data.append(value)
        elif name == "id":
            self.id = value


Target = dict[str, Any]


def headers(target: Target, events: Events) -> dict[str, str]:
    """Those of the target, and the last id."""
    told: dict[str, str] = target["headers"]
    return told | ({"Last-Event-ID": events.last} if events.last else {})


def with_httpx_sse(target: Target, events: Events) -> None:
    with httpx.Client(timeout=30, trust_env=False) as client:
        while not events.ended:
            try:
                with connect_sse(
                    client, target["method"], target["url"], headers=headers(target, events), content=target["body"]
                ) as source:
                    for event in source.iter_sse():
                        event.json()  # for each one: that is what dies of an event without data
                        if events.take(event.event, event.data, event.id):
                            return
            except httpx.TransportError:
                time.sleep(PAUSE)


def with_aiohttp(target: Target, events: Events) -> None:
    asyncio.run(_with_aiohttp(target, events))


async def _with_aiohttp(target: Target, events: Events) -> None:
    while not events.ended:
        try:
            async with AiohttpEventSource(
                target["url"],
                option={"method": target["method"]},
                headers=headers(target, events),
                data=target["body"],
                reconnection_time=timedelta(seconds=PAUSE),
            ) as source:
                async for event in source:
                    if events.take(event.type or "message", event.data, event.last_event_id):
                        return
        except (aiohttp.ClientError, ConnectionError):
            await asyncio.sleep(PAUSE)


def with_sseclient(target: Target, events: Events) -> None:
    def attempt(response: Any) -> bool:  # as its documentation does, whatever its types say
        return any(events.take(event.event, event.data, event.id) for event in sseclient.SSEClient(response).events())

    _with_requests(target, events, attempt)


def with_requests(target: Target, events: Events) -> None:
    _with_requests(target, events, lambda response: events.take_lines(line.decode() for line in response.iter_lines()))


def _with_requests(target: Target, events: Events, attempt: Callable[[requests.Response], bool]) -> None:
    while not events.ended:
        try:
            with requests.request(
                target["method"], target["url"], headers=headers(target, events), data=target["body"], stream=True
            ) as response:
                if attempt(response):
                    return
        except requests.RequestException:
            time.sleep(PAUSE)


def with_requests_sse(target: Target, events: Events) -> None:
    pause = timedelta(seconds=PAUSE)
    with requests_sse.EventSource(
        target["url"], target["method"], pause, 10, headers=target["headers"], data=target["body"]
    ) as source:
        for event in source:
            if events.take(event.type or "message", event.data or "", event.last_event_id):
                return


def with_launchdarkly(target: Target, events: Events) -> None:
    strategy = ConnectStrategy.http(target["url"])
    with LaunchDarkly(strategy, initial_retry_delay=PAUSE, error_strategy=ErrorStrategy.always_continue()) as client:
        for event in client.all:
            if isinstance(event, LaunchDarklyEvent) and events.take(event.event, event.data, event.id):
                return


def with_openai(target: Target, events: Events) -> None:
    """Its streams keep ids and names to themselves: the same question again, and its answer from the beginning."""
    base_url = target["url"].rpartition("/")[0]
    with openai.OpenAI(api_key="none", base_url=base_url, max_retries=5) as client:
        while not events.ended:
            events.tell("=", "again")
            try:
                for data in client.post(
                    "/messages",
                    cast_to=object,
                    body=json.loads(target["body"]),
                    options={"headers": {"Accept": "text/event-stream"}},
                    stream=True,
                    stream_cls=openai.Stream[object],
                ):
                    assert isinstance(data, dict)
                    name = "start" if "question_id" in data else "message" if data else "ping"
                    if events.take("reasoning" if "reasoning" in data else name, json.dumps(data)):
                        return
            except openai.APIConnectionError:
                time.sleep(PAUSE)


def with_curl(target: Target, events: Events) -> None:
    """A GET is taken up with the last id; a POST is repeated by curl itself."""
    if target["method"] == "GET":
        while not events.ended:
            extra = [part for name, value in headers(target, events).items() for part in ("-H", f"{name}: {value}")]
            done = subprocess.run(["curl", "-sN", "--http2", target["url"], *extra], capture_output=True, check=False)
            whole = done.stdout.decode(errors="ignore").rpartition("\n\n")[0]
            events.take_lines(f"{whole}\n\n".split("\n"))
        return
    told = [part for name, value in target["headers"].items() for part in ("-H", f"{name}: {value}")]
    with tempfile.NamedTemporaryFile() as output:
        again = ["--retry", "9", "--retry-all-errors", "--retry-delay", "1", "-o", output.name]
        subprocess.run(["curl", "-s", "--http2", target["url"], *told, "-d", target["body"], *again], check=True)
        events.take_lines(output.read().decode().split("\n"))


LIBRARIES: dict[str, Callable[[Target, Events], None]] = {
    "httpx-sse": with_httpx_sse,
    "aiohttp-sse-client2": with_aiohttp,
    "sseclient-py": with_sseclient,
    "requests": with_requests,
    "requests-sse": with_requests_sse,
    "launchdarkly-eventsource (Python)": with_launchdarkly,
    "openai (Python)": with_openai,
    "curl": with_curl,
}


def read(number: int, target: Target) -> None:
    """One target, to its end."""
    events = Events(number)
    LIBRARIES[target["library"]](target, events)
    events.tell("=", "closed at done")


if __name__ == "__main__":
    targets = json.load(sys.stdin)
    with ThreadPoolExecutor(len(targets)) as pool:
        list(pool.map(read, range(len(targets)), targets))
