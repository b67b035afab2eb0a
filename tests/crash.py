"""A campaign of crashes: conversations go on, the service is killed in the middle of anything, and has to know it all.

    python -m tests.crash [--kills 150] [--seed N]

Its upstream survives. After each kill everything that the service had said must be so. Not collected by pytest.
"""

import argparse
import asyncio
import contextlib
import random
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx

from tests.support.process import RelayProcess, process
from tests.support.readers import Reader, Transcript
from tests.support.relay import Relay
from tests.support.upstream import ScriptedUpstream, UpstreamRequest, Wire, cut

AT_ONCE = 12
"""Conversations that go on side by side."""
IDLE = 10
"""Conversations in which nothing happens: pages of them don't change."""
LONGEST_LIFE = 1.5
"""Seconds from the first request to the kill."""
EVENTS = {"Accept": "text/event-stream"}


def answer_to(question: str) -> str:
    """What upstream says to it."""
    return "".join(f"{question} {number} é👋\u2028\n" for number in range(20))


def reasoning_about(question: str) -> str:
    """What upstream thinks of it."""
    return f"Hmm, {question}? " * 5


@dataclass
class Seen:
    """What one reader has got of one reply."""

    transcript: Transcript = field(default_factory=Transcript)

    @property
    def message_id(self) -> str | None:
        """None if it was cut off before the first event."""
        return self.transcript.start["message_id"] if self.transcript.blocks else None


@dataclass
class Asked:
    """One question."""

    id: str
    content: str
    is_acknowledged: bool = False
    streams: bool = False  # so that it and its reply are one step


class Chat:
    """One conversation, what was asked in it, and what its readers have seen since the service started."""

    def __init__(self, number: int, chance: random.Random) -> None:
        self.id = f"chat-{number}"
        self.path = f"/conversations/{self.id}"
        self.asked: list[Asked] = []
        self.seen: list[Seen] = []
        self._chance = chance
        self._is_there = False
        self._owes = False

    async def go_on(self, relay: Relay) -> None:
        """Ask and read, ask and read, until the service has gone."""
        with contextlib.suppress(httpx.TransportError):
            await self._create(relay)
            while True:
                if self._owes:
                    await self._read(relay)
                else:
                    await self._ask(relay)

    async def check(self, relay: Relay) -> None:
        """Everything that was said must be so, and nothing else happens by asking for it."""
        if not self._is_there:
            return
        messages = await relay.messages(self.id)
        self._check_questions(messages)
        for question, message in pairwise(messages):
            if message["role"] == "assistant":
                _check_reply(message, question["content"])
        for seen in self.seen:
            await self._check_reader(relay, seen, {message["id"]: message for message in messages})
        self.seen.clear()
        self._owes = bool(messages) and (messages[-1]["role"] == "user" or messages[-1]["status"] == "failed")
        if self.asked:
            await self._repeat(relay, self.asked[-1], messages)

    async def finish(self, relay: Relay) -> None:
        """Have the last question answered, and know the whole conversation."""
        await self._create(relay)
        while self._owes or not self.asked:
            await (self._read(relay) if self._owes else self._ask(relay))
        await self.check(relay)
        messages = await relay.messages(self.id)
        assert [message["id"] for message in messages if message["role"] == "user"] == [one.id for one in self.asked]
        assert messages[-1]["status"] == "complete" and messages[-1]["usage"]

    async def _create(self, relay: Relay) -> None:
        response = await relay.client.post("/conversations", json={"id": self.id})
        assert response.status_code == 200 if self._is_there else response.status_code in (200, 201)
        self._is_there = True

    async def _ask(self, relay: Relay) -> None:
        number = len(self.asked)
        asked = Asked(f"{self.id}-{number}", f"{self.id} asks {number}", streams=self._chance.random() < 0.5)
        self.asked.append(asked)
        await self._post(relay, asked)

    async def _post(self, relay: Relay, asked: Asked, status: int = 201) -> None:
        body = {"content": asked.content, "id": asked.id}
        if not asked.streams:
            response = await relay.client.post(f"{self.path}/messages", json=body)
            assert response.status_code == status, response.text
            asked.is_acknowledged = self._owes = True
            return
        async with relay.client.stream("POST", f"{self.path}/messages", json=body, headers=EVENTS) as response:
            asked.is_acknowledged = self._owes = True
            await self._follow(Reader(response))

    async def _read(self, relay: Relay) -> None:
        """Two readers, of whom one may leave early."""
        leaves = self._chance.choice([None, self._chance.randrange(40)])
        async with asyncio.TaskGroup() as readers:
            with contextlib.suppress(httpx.TransportError):
                readers.create_task(_unless_gone(self._one_reader(relay, None)))
                readers.create_task(_unless_gone(self._one_reader(relay, leaves)))
        await relay.health()  # raises when the service has gone

    async def _one_reader(self, relay: Relay, leaves: int | None) -> None:
        async with relay.stream(self.id) as reader:
            if reader.response.status_code != 409:  # by then it had been answered
                await self._follow(reader, leaves)

    async def _follow(self, reader: Reader, leaves: int | None = None) -> None:
        self.seen.append(Seen(reader.transcript))
        with contextlib.suppress(EOFError):
            while leaves is None or len(reader.transcript.blocks) <= leaves:
                await reader.next()
            return
        self._owes = "error" in reader.transcript.last

    async def _repeat(self, relay: Relay, asked: Asked, messages: list[dict[str, Any]]) -> None:
        """Post the last question again: it is there, or it never was."""
        is_there = any(message["id"] == asked.id for message in messages)
        if is_there and asked.streams:
            async with relay.client.stream(
                "POST", f"{self.path}/messages", json={"content": asked.content, "id": asked.id}, headers=EVENTS
            ) as response:
                whole = await Reader(response).whole()
            assert (whole.content, whole.start["message_id"]) == (messages[-1]["content"], messages[-1]["id"])
        elif is_there:
            await self._post(relay, asked, 200)
            self._owes = messages[-1]["status"] == "failed" or messages[-1]["role"] == "user"
        else:
            self.asked.pop()

    def _check_questions(self, messages: list[dict[str, Any]]) -> None:
        """In their order; the one that was on its way may be there or not."""
        there = [(message["id"], message["content"]) for message in messages if message["role"] == "user"]
        assert there == [(one.id, one.content) for one in self.asked][: len(there)]
        assert [one.id for one in self.asked[len(there) :] if one.is_acknowledged] == []
        if there and self.asked[len(there) - 1].streams:
            assert messages[-1]["role"] == "assistant", "the question is there without its reply"

    async def _check_reader(self, relay: Relay, seen: Seen, messages: dict[str, dict[str, Any]]) -> None:
        """It comes back with its last id, and gets exactly the rest."""
        if seen.message_id is None:
            return
        message = messages[seen.message_id]
        got = seen.transcript.reasoning + seen.transcript.content
        assert _text(message).startswith(got)
        async with relay.stream(self.id, seen.transcript.last_id) as reader:
            if seen.transcript.blocks[-1].is_terminal:
                assert reader.response.status_code == 204
                return
            rest = await reader.whole()
        assert got + rest.reasoning + rest.content == _text(message)
        assert rest.last.get("error") == message["error"] and rest.last["message_id"] == message["id"]


class Sheet:
    """A conversation that is made, changed and deleted, again and again: (what was said, what may be so as well)."""

    def __init__(self, number: int) -> None:
        self.id = f"sheet-{number}"
        self._path = f"/conversations/{self.id}"
        self._title: str | None = None  # None: it isn't there
        self._next: str | None = None  # if what was asked last has been done
        self._turn = 0

    async def go_on(self, relay: Relay) -> None:
        """Until the service has gone."""
        with contextlib.suppress(httpx.TransportError):
            while True:
                self._turn += 1
                self._next = None if self._title and self._turn % 3 == 0 else f"{self._turn}"
                response = await self._step(relay)
                assert response.status_code in (200, 201, 204)
                self._title = self._next

    async def check(self, relay: Relay) -> None:
        """It is as was said, or as was asked."""
        response = await relay.client.get(self._path)
        title = response.json()["title"] if response.status_code == 200 else None
        assert title in (self._title, self._next), f"{title}: neither {self._title} nor {self._next}"
        self._title = title

    def _step(self, relay: Relay) -> Awaitable[httpx.Response]:
        if self._next is None:
            return relay.client.delete(self._path)
        if self._title is None:
            return relay.client.post("/conversations", json={"id": self.id, "title": self._next})
        return relay.client.patch(self._path, json={"title": self._next})


def _check_reply(message: dict[str, Any], question: str) -> None:
    """It is whole, or as far as it had come."""
    if message["status"] == "complete":
        assert (message["reasoning"], message["content"]) == (reasoning_about(question), answer_to(question))
        return
    assert message["status"] == "failed", message
    error = message["error"]
    assert (error["code"], error["retryable"]) == (503, True) and "restarted" in error["message"]
    assert (reasoning_about(question) + answer_to(question)).startswith(_text(message))


def _text(message: dict[str, Any]) -> str:
    return str(message["reasoning"] or "") + str(message["content"])


async def _unless_gone(reading: Any) -> None:
    with contextlib.suppress(httpx.TransportError):
        await reading


class Campaign:
    """One file, one upstream, and many lives of the service."""

    def __init__(self, upstream: ScriptedUpstream, file: Path, seed: int, tell: Callable[[str], None]) -> None:
        self._upstream = upstream
        self._chance = random.Random(seed)
        self._tell = tell
        self._env = {
            "OPENROUTER_API_KEY": "key",
            "OPENROUTER_BASE_URL": upstream.base_url,
            "LOG_LEVEL": "ERROR",
            "STORE_URL": f"sqlite:///{file}",
        }
        self._chats = [Chat(number, self._chance) for number in range(AT_ONCE)]
        self._all: list[Chat | Sheet] = [*self._chats, *(Sheet(number) for number in range(3))]
        self._cursor = ""
        upstream.play(self._script)

    async def run(self, kills: int) -> None:
        """Raises `AssertionError` where the service has forgotten, doubled or made up anything."""
        async with self._life() as relay:
            await self._make_idle(relay)
        for number in range(kills):
            if self._chance.random() < 0.2:
                await self._die_young()
            async with self._life() as relay:
                await self._check(relay)
                await self._until_killed(relay)
            self._tell(f"{number + 1:4} kills, {sum(len(chat.asked) for chat in self._chats):5} questions")
        async with self._life() as relay:
            await self._check(relay)
            await asyncio.gather(*(chat.finish(relay) for chat in self._chats))
            await relay.idle()
            await self._delete_all(relay)

    @contextlib.asynccontextmanager
    async def _life(self) -> AsyncIterator[RelayProcess]:
        async with process("python", "server.py", env=self._env) as relay:
            yield relay
            relay.kill()
            await relay.exit()

    async def _die_young(self) -> None:
        """Killed in the middle of its start."""
        async with process("python", "server.py", env=self._env, listening=False) as relay:
            await asyncio.sleep(self._chance.uniform(0.1, 0.6))
            relay.kill()
            await relay.exit()

    async def _script(self, request: UpstreamRequest, wire: Wire) -> None:
        question = request.body["messages"][-1]["content"].split("\n\n")[-1]
        pace = self._chance.choice([0.0, 0.001, 0.01, 0.03])
        for piece in cut(reasoning_about(question), 10):
            await asyncio.sleep(pace)
            await wire.reasoning(piece)
        for piece in cut(answer_to(question), 40):
            await asyncio.sleep(pace)
            await wire.delta(piece)
        await wire.finish()
        await wire.done()

    async def _until_killed(self, relay: RelayProcess) -> None:
        calls = len(self._upstream.requests)
        async with asyncio.TaskGroup() as group:
            for one in self._all:
                group.create_task(one.go_on(relay))
            await asyncio.sleep(self._chance.uniform(0.0, LONGEST_LIFE))
            relay.kill()
        asked = Counter(request.body["messages"][-1]["content"] for request in self._upstream.requests[calls:])
        assert asked.total() == len(asked), "a question was asked upstream twice"

    async def _check(self, relay: RelayProcess) -> None:
        calls = len(self._upstream.requests)
        assert await self._page(relay, self._cursor) == self._idle, "the cursor doesn't hold"
        await asyncio.gather(*(one.check(relay) for one in self._all))
        assert (await relay.health())["replies_in_progress"] == 0
        assert len(self._upstream.requests) == calls, "upstream was asked by itself"

    async def _make_idle(self, relay: Relay) -> None:
        for number in range(IDLE):
            await relay.conversation(id=f"idle-{number}")
        page = (await relay.client.get("/conversations", params={"limit": 3})).json()
        self._cursor = page["next_cursor"]
        self._idle = [f"idle-{number}" for number in reversed(range(IDLE - 3))]
        assert await self._page(relay, self._cursor) == self._idle

    async def _page(self, relay: Relay, cursor: str) -> list[str]:
        response = await relay.client.get("/conversations", params={"cursor": cursor})
        return [conversation["id"] for conversation in response.json()["conversations"]]

    async def _delete_all(self, relay: RelayProcess) -> None:
        listed = (await relay.client.get("/conversations", params={"limit": 200})).json()["conversations"]
        times = [conversation["updated_at"] for conversation in listed]
        assert times == sorted(set(times), reverse=True) and len(listed) >= IDLE + AT_ONCE
        for conversation in listed:
            assert (await relay.client.delete(f"/conversations/{conversation['id']}")).status_code == 204
        health = await relay.health()
        assert (health["conversations"], health["messages"]) == (0, 0)


async def campaign(kills: int, seed: int, tell: Callable[[str], None] = print) -> None:
    """Raises `AssertionError` where the service has forgotten, doubled or made up anything."""
    with TemporaryDirectory() as folder:
        async with ScriptedUpstream() as upstream:
            await Campaign(upstream, Path(folder) / "chat.db", seed, tell).run(kills)


def main() -> None:
    """Read the command line, and kill."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=150)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}")
    asyncio.run(campaign(arguments.kills, arguments.seed))
    print("nothing was forgotten")
    sys.exit(0)


if __name__ == "__main__":
    main()
