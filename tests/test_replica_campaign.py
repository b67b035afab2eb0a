"""Relays and their server are killed and come back, by chance with a seed, while chats go on: what must hold then.

Long: `make campaign`, which takes more chats, and other seeds with SEED=.
"""

import asyncio
import contextlib
import random
import re
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from tests.support.process import RelayProcess, process
from tests.support.readers import Transcript
from tests.support.relay import Relay
from tests.support.replicas import Hopper
from tests.support.replicas import place as place_on
from tests.support.scripts import finishes, pauses, says, steps
from tests.support.servers import KEEPS_ALL, Server, server
from tests.support.upstream import ScriptedUpstream, Wire
from tests.support.waiting import eventually

pytestmark = pytest.mark.engines("valkey")

WORDS = 60
RELAYS = 3


TELLING = steps(
    Wire.head, *(step for n in range(WORDS) for step in (says(f"word {n} é😀 "), pauses(0.06))), finishes, Wire.done
)
"""An answer that takes about four seconds."""


class Place(Relay):
    """Where a relay is, until it is killed, and another one from then on."""

    def __init__(self, stack: contextlib.AsyncExitStack, env: dict[str, str]) -> None:
        self._stack = stack
        self._env = env
        self.outputs: list[RelayProcess] = []

    async def start(self) -> None:
        """A relay that is there from now on."""
        relay = await self._stack.enter_async_context(process("python", "server.py", env=self._env))
        self.outputs.append(relay)
        self.url, self.client = relay.url, relay.client
        self.client.timeout = httpx.Timeout(30)

    async def die(self) -> None:
        """With SIGKILL."""
        relay = self.outputs[-1]
        relay.kill()
        await relay.exit()

    @property
    def begun(self) -> list[str]:
        """Conversations in which replies were begun here."""
        pattern = r"Streaming response for conversation (\S+)"
        return [found for relay in self.outputs for found in re.findall(pattern, relay.output)]


class Chat:
    """One question and its readers."""

    def __init__(self, places: list[Place], chance: random.Random) -> None:
        self.places = chance.sample(places, len(places))
        self.chance = chance
        self.read: list[Transcript] = []

    async def run(self) -> None:
        """Until all readers have had the last event."""
        self.id = (await self._said("/conversations", {"id": f"chat-{self.chance.getrandbits(60)}"}))["id"]
        await self._said(f"/conversations/{self.id}/messages", {"content": "Tell me", "id": "question"})
        start = await self._started()
        hoppers = [Hopper(self.places[n:] + self.places[:n], self.id, start) for n in range(len(self.places))]
        self.read = list(await asyncio.gather(*(hopper.read(self._events(), 90) for hopper in hoppers)))

    async def _started(self) -> str:
        """The id of the first event of the reply, whichever relay makes it."""
        while True:
            for place in self.places:
                with contextlib.suppress(httpx.TransportError, EOFError):
                    async with place.stream(self.id) as reader:
                        if reader.response.status_code == 200 and (id := (await reader.next()).id):
                            return id
                await asyncio.sleep(0.05)

    async def _said(self, path: str, body: dict[str, str]) -> dict[str, str]:
        """Posted until it is taken: an id makes that safe."""
        while True:
            for place in self.places:
                with contextlib.suppress(httpx.TransportError):
                    response = await place.client.post(path, json=body)
                    if response.status_code in (200, 201):
                        return dict(response.json())
                    assert response.status_code == 503, response.text
                await asyncio.sleep(0.05)

    def _events(self) -> Iterator[int]:
        while True:
            yield self.chance.randrange(2, 12)


@contextlib.asynccontextmanager
async def placed(upstream: ScriptedUpstream, url: str) -> AsyncIterator[list[Place]]:
    """Relays that share a server."""
    env = {"OPENROUTER_BASE_URL": upstream.base_url, "OPENROUTER_API_KEY": "k", "STORE_URL": url}
    async with contextlib.AsyncExitStack() as stack:
        places = [Place(stack, env) for _ in range(RELAYS)]
        await asyncio.gather(*(place.start() for place in places))
        yield places


@pytest.mark.bound(280)
async def test_whoever_is_killed_every_reader_reads_what_is_stored_and_nothing_is_asked_twice(
    request: pytest.FixtureRequest, upstream: ScriptedUpstream
) -> None:
    chats, seed = request.config.getoption("--chats"), request.config.getoption("--seed")
    chance = random.Random(seed)
    upstream.play(TELLING)
    with server(request.config.getoption("--server"), *KEEPS_ALL) as shared:
        async with placed(upstream, place_on(shared.url)) as places:
            running = [Chat(places, random.Random(chance.random())) for _ in range(chats)]
            async with asyncio.TaskGroup() as group:
                for chat in running:
                    group.create_task(late(chance.random() * chats / 4, chat))
                kills = group.create_task(disaster(chance, places, chats // 3))
                group.create_task(outage(chance, shared, chats // 12))
            await assert_consistent(running, places, upstream, kills.result())


async def late(seconds: float, chat: Chat) -> None:
    await asyncio.sleep(seconds)
    await chat.run()


async def disaster(chance: random.Random, places: list[Place], times: int) -> int:
    """Relays die, one after the other, and come back."""
    for _ in range(times):
        await asyncio.sleep(chance.uniform(0.5, 2.0))
        place = chance.choice(places)
        await place.die()
        await place.start()
    return times


async def outage(chance: random.Random, shared: Server, times: int) -> None:
    """The server dies, and comes back."""
    for _ in range(times):
        await asyncio.sleep(chance.uniform(1.0, 3.0))
        await asyncio.to_thread(shared.kill)
        await asyncio.sleep(chance.uniform(0.1, 1.0))
        await asyncio.to_thread(shared.start)


async def assert_consistent(chats: list[Chat], places: list[Place], upstream: ScriptedUpstream, kills: int) -> None:
    whole = "".join(f"word {number} é😀 " for number in range(WORDS))
    for chat in chats:
        question, reply = await places[0].messages(chat.id)
        assert (question["content"], reply["status"]) in {("Tell me", "complete"), ("Tell me", "failed")}
        assert whole.startswith(reply["content"])
        for read in chat.read:
            if reply["id"] == read.blocks[-1].json["message_id"]:
                assert read.content == reply["content"]
                assert ("done" in read.last) == (reply["status"] == "complete")
    asked = [request.headers["x-session-id"] for request in upstream.requests]
    begun = [id for place in places for id in place.begun]
    assert 0 <= len(begun) - len(asked) <= kills  # one that died on its way to upstream
    assert not set(asked) - set(begun)
    await eventually(lambda: _is_counted(places, len(chats)))
    for chat in chats:
        assert (await places[0].client.delete(f"/conversations/{chat.id}")).status_code == 204
    await eventually(lambda: _is_counted(places, 0))


async def _is_counted(places: list[Place], chats: int) -> bool:
    told = [await place.health() for place in places]
    return all(
        (one["conversations"], one["messages"], one["replies_in_progress"]) == (chats, 2 * chats, 0) for one in told
    )
