"""Who ends the replies of a relay that gives no sign of life: who has watched it, and nobody who was away itself."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from result import Finish
from store import Store
from stores.rules import Rules
from tests.support.replicas import Network, begun, stores
from tests.support.servers import Server
from tests.support.waiting import eventually

pytestmark = pytest.mark.engines("valkey")

LEASE = 2.0


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Signs of life come more often, and their absence tells sooner."""
    monkeypatch.setattr("stores.valkey.heartbeat.HEARTBEAT_INTERVAL", 0.1)
    monkeypatch.setattr("stores.valkey.heartbeat.LEASE_TIMEOUT", LEASE)


@pytest.fixture
async def networks(shared: Server) -> AsyncIterator[list[tuple[Network, str]]]:
    """Two of them between a store and the server, each with its URL."""
    one, other = Network(shared.port), Network(shared.port)
    async with one.laid() as one_url, other.laid() as other_url:
        yield [(one, one_url), (other, other_url)]


async def status(store: Store, conversation_id: str) -> str | None:
    """Of its last message."""
    return (await store.messages(conversation_id))[-1].status


def beats(shared: Server) -> bytes:
    """The last signs of life, as the server has them."""
    return shared.said("HGETALL", "{relay}:relays")


async def beat(shared: Server, times: int = 3) -> None:
    """Return when a relay has given so many signs of life from now on."""
    for _ in range(times):
        before = beats(shared)
        await eventually(lambda before=before: beats(shared) != before)  # type: ignore[misc]


async def test_the_replies_of_a_relay_that_is_silent_are_ended_by_another(
    shared: Server, networks: list[tuple[Network, str]]
) -> None:
    [(network, far), _] = networks
    async with stores(far, shared.url) as (here, there):
        conversation_id, reply = await begun(here)
        network.cut()
        await eventually(lambda: _is(there, conversation_id, "failed"))
        network.mend()
        await eventually(lambda: reply.interruption is not None)


async def _is(store: Store, conversation_id: str, expected: str) -> bool:
    return await status(store, conversation_id) == expected


async def test_a_reply_that_could_not_be_ended_is_tried_again_and_not_called_ended(
    shared: Server,
    networks: list[tuple[Network, str]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    [(network, far), _] = networks
    caplog.set_level("WARNING", "store")
    finish, failures = Rules.finish, [RuntimeError()]

    def fails_once(*args: Any, **kwargs: Any) -> Any:
        if failures:
            raise failures.pop()
        return finish(*args, **kwargs)

    async with stores(far, shared.url) as (here, there):
        conversation_id, reply = await begun(here)
        monkeypatch.setattr(Rules, "finish", fails_once)
        network.cut()
        await eventually(lambda: _is(there, conversation_id, "failed"))
        network.mend()
        await eventually(lambda: reply.interruption is not None)
    said = [line.splitlines()[0] for line in caplog.messages if reply.id in line]
    assert said == [
        f"reply {reply.id} could not be ended",
        f"Ended reply {reply.id} of conversation {conversation_id}, which nobody made any more",
    ]


async def test_a_full_server_takes_signs_of_life(shared: Server, networks: list[tuple[Network, str]]) -> None:
    """Else all that relays had left would go on for ever."""
    [(network, far), _] = networks
    async with stores(far, shared.url) as (here, there):
        conversation_id, _ = await begun(here)
        shared.said("CONFIG", "SET", "maxmemory", "1mb")
        network.cut()
        await eventually(lambda: _is(there, conversation_id, "failed"))


async def test_a_relay_that_was_away_itself_ends_nothing_of_others(
    shared: Server, networks: list[tuple[Network, str]]
) -> None:
    """After an outage everybody looks gone."""
    [(network, far), (its_network, its_far)] = networks
    async with stores(far, its_far) as (here, there):
        conversation_id, reply = await begun(here)
        await beat(shared)
        network.cut()
        await beat(shared)  # there, which knows the last sign from here
        its_network.cut()
        await asyncio.sleep(LEASE + 0.5)
        its_network.mend()
        await beat(shared)  # there
        assert await status(there, conversation_id) == "streaming"
        network.mend()
        await eventually(lambda: here.is_reachable)
        assert await here.finish_reply(conversation_id, reply.id, Finish())


async def test_a_relay_that_has_stood_still_ends_nothing_of_others(
    shared: Server, networks: list[tuple[Network, str]]
) -> None:
    """Its connection hasn't broken, but it has watched nobody meanwhile: the whole machine may have been suspended."""
    [(network, far), _] = networks
    async with stores(far, shared.url) as (here, there):
        conversation_id, _ = await begun(here)
        await beat(shared)
        network.cut()
        await beat(shared)  # there, which knows the last sign from here
        time.sleep(LEASE + 0.5)  # noqa: ASYNC251 - which stops both
        await beat(shared)  # there
        assert await status(there, conversation_id) == "streaming"


async def test_a_relay_of_which_nothing_is_known_has_as_long_to_give_a_sign(
    shared: Server, networks: list[tuple[Network, str]]
) -> None:
    """A failover may have lost what it gave, and a relay that has just started has heard none."""
    [(network, far), _] = networks
    async with stores(far) as [here]:
        conversation_id, reply = await begun(here)
        network.cut()
        assert shared.said("DEL", "{relay}:relays") == b":1\r\n"
        async with stores(shared.url) as [there]:
            await beat(shared)
            assert await status(there, conversation_id) == "streaming"
            network.mend()
            await eventually(lambda: here.is_reachable)
            assert await here.finish_reply(conversation_id, reply.id, Finish())


async def test_how_old_a_sign_is_by_the_servers_clock_says_nothing(
    shared: Server, networks: list[tuple[Network, str]]
) -> None:
    """A failover may lead to a server with another clock."""
    [(network, far), _] = networks
    async with stores(far) as [here]:
        conversation_id, _ = await begun(here)
        network.cut()
        [relay] = [line for line in beats(shared).split(b"\r\n") if len(line) == 32]
        shared.said("HSET", "{relay}:relays", relay.decode(), str(int(_value(beats(shared))) - 60_000_000))
        async with stores(shared.url) as [there]:
            await beat(shared)
            assert await status(there, conversation_id) == "streaming"
            await eventually(lambda: _is(there, conversation_id, "failed"))


def _value(said: bytes) -> bytes:
    """Of the only field of a hash."""
    return said.split(b"\r\n")[4]
