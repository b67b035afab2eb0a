"""Relays that die, stop and are cut off, and the server that they share, which does so, too: real processes.

docs/faults.md quotes the rows: what happens, and what readers at the relay that makes the reply, and elsewhere, get.
"""

import asyncio
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from tests.support.problems import assert_problem
from tests.support.readers import Reader
from tests.support.relay import Relay
from tests.support.replicas import Network, place, processes, relays
from tests.support.scripts import gated, talking, words
from tests.support.servers import KEEPS_ALL, Server, server
from tests.support.upstream import ANSWER, Gate, ScriptedUpstream
from tests.support.waiting import bounded, eventually

pytestmark = pytest.mark.engines("valkey")

GONE = 15.0  # seconds within which the replies of a relay that died have ended


@pytest.fixture
def shared(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server of the test's own."""
    with server(request.config.getoption("--server"), *KEEPS_ALL) as running:
        yield running


def kill(pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Only that process, not its children."""
    os.kill(pid, number)


def patient(*relays: Relay) -> None:
    """Their clients wait for longer than any outage lasts."""
    for relay in relays:
        relay.client.timeout = httpx.Timeout(60)


async def failed(reader: Reader, within: float = GONE) -> str:
    """The text of a stream that ends with an error of 503."""
    whole = await bounded(reader.whole(), within)
    assert (whole.last["error"]["code"], whole.last["error"]["retryable"]) == (503, True)
    assert whole.content == words(whole.content)
    return whole.content


async def answered_again(relay: Relay, conversation_id: str, upstream: ScriptedUpstream) -> None:
    """What "Try again" does."""
    upstream.queue(gated(gate := Gate(), "Again."))
    gate.open_wide()
    assert (await relay.read(conversation_id)).content == "Again."


# Relays


@pytest.mark.row(
    "the relay here is killed",
    "cut; the rest and a 503 error at any relay",
    "503 error within 15 s",
    'its text is kept, "Try again" answers',
)
@pytest.mark.bound(90)
async def test_the_reply_of_a_relay_that_was_killed_fails_with_its_text(
    upstream: ScriptedUpstream, shared: Server
) -> None:
    upstream.play(talking())
    url = place(shared.url)
    async with processes(upstream, url, url) as (here, there):
        patient(here, there)
        conversation_id = await here.ask()
        async with here.stream(conversation_id) as mine, there.stream(conversation_id) as theirs:
            await mine.until("word 30 "), await theirs.until("word 30 ")
            kill(here.pid)
            assert await here.exit() == -signal.SIGKILL
            with pytest.raises(Exception):  # noqa: B017 - cut off, in whichever way
                await mine.whole()
            seen = mine.transcript
            async with there.stream(conversation_id, seen.last_id) as again:
                rest = await failed(theirs), (await bounded(again.whole(), GONE)).content
        _, reply = await there.messages(conversation_id)
        assert (reply["status"], reply["content"]) == ("failed", rest[0])
        assert reply["generation_id"] == upstream.requests[0].generation_id  # by which its charge is looked up
        assert seen.content + rest[1] == rest[0]
        assert len(upstream.requests) == 1
        await answered_again(there, conversation_id, upstream)


@pytest.mark.row(
    "the relay here is stopped for a while",
    "503 error when it goes on",
    "503 error within 15 s",
    "it appends nothing more, and leaves upstream",
)
@pytest.mark.bound(90)
async def test_a_relay_that_was_stopped_for_a_while_appends_nothing_to_what_others_have_ended(
    upstream: ScriptedUpstream, shared: Server
) -> None:
    upstream.play(talking())
    url = place(shared.url)
    async with processes(upstream, url, url) as (here, there):
        patient(here, there)
        conversation_id = await here.ask()
        async with here.stream(conversation_id) as mine, there.stream(conversation_id) as theirs:
            await theirs.until("word 20 ")
            kill(here.pid, signal.SIGSTOP)
            text = await failed(theirs)
            kill(here.pid, signal.SIGCONT)
            assert await failed(mine, 5) == text
            await bounded(upstream.requests[0].gone.wait(), 5)
        for relay in (here, there):
            assert (await relay.messages(conversation_id))[1]["content"] == text
        await answered_again(here, conversation_id, upstream)


@pytest.mark.row(
    "only the relay here is cut off from the server",
    "503 error after 10 to 15 s",
    "503 error within 15 s",
    "here a beginning of the text that is kept: what was on its way may be kept, too",
)
@pytest.mark.bound(90)
async def test_a_relay_that_alone_is_cut_off_fails_its_replies_and_the_others_end_them(
    upstream: ScriptedUpstream, shared: Server
) -> None:
    upstream.play(talking())
    network = Network(shared.port)
    async with network.laid() as far, processes(upstream, (url := place(far)), url.replace(far, shared.url)) as both:
        here, there = both
        patient(here, there)
        conversation_id = await here.ask()
        async with here.stream(conversation_id) as mine, there.stream(conversation_id) as theirs:
            await mine.until("word 20 "), await theirs.until("word 20 ")
            network.cut()
            began = time.monotonic()
            assert_problem(await here.client.get(f"/conversations/{conversation_id}"), 503)
            assert time.monotonic() - began < 3.5
            health = await here.client.get("/health")
            assert (health.status_code, health.json()["store"]) == (200, "unreachable")
            shown, kept = await asyncio.gather(failed(mine, 20), failed(theirs))
            assert kept.startswith(shown)  # what was on its way may be there, too
        network.mend()
        await eventually(lambda: _is_reachable(here))
        async with here.stream(conversation_id, mine.transcript.ids[-2]) as again:
            assert shown + (await again.whole()).content == kept
        assert len(upstream.requests) == 1


async def _is_reachable(relay: Relay) -> bool:
    return bool((await relay.health())["store"] == "ok")


@pytest.mark.row("SIGTERM here", "the whole reply", "the whole reply", "exit 0")
@pytest.mark.row("SIGTERM there", "the whole reply", "cut; the rest at any relay", "exit 0, at once")
@pytest.mark.bound(90)
async def test_at_sigterm_a_relay_finishes_what_it_makes_and_cuts_off_who_reads_of_others(
    upstream: ScriptedUpstream, shared: Server
) -> None:
    upstream.play(gated(gate := Gate(), "one ", "two"))
    url = place(shared.url)
    async with processes(upstream, url, url) as (here, there):
        patient(here, there)
        conversation_id = await here.ask()
        async with here.stream(conversation_id) as mine, there.stream(conversation_id) as theirs:
            gate.open()
            await mine.until("one "), await theirs.until("one ")
            there.terminate()
            began = time.monotonic()
            assert not any(block.is_terminal for block in (await bounded(theirs.whole(), 10)).blocks)
            assert await there.exit() == 0
            assert time.monotonic() - began < 4
            here.terminate()
            async with here.stream(conversation_id, theirs.transcript.last_id) as again:
                gate.open_wide()
                assert (await mine.whole()).content == "one two"
                assert (await again.whole()).content == "two"
            assert await here.exit() == 0


# The server


@pytest.mark.row(
    "the server is killed and back in 8 s, or hangs for 3 s",
    "the whole reply",
    "the whole reply",
    "requests meanwhile: 503",
)
@pytest.mark.bound(90)
@pytest.mark.parametrize("outage", ["killed", "killed for nearly as long as is waited for", "held up"])
async def test_a_reply_goes_on_when_the_server_is_back(upstream: ScriptedUpstream, shared: Server, outage: str) -> None:
    """Nor do others end it, to whom its relay looks as gone as the server was."""
    upstream.play(talking())
    url = place(shared.url)
    async with relays(upstream, url, 4) as (here, there, *others):
        patient(here, there, *others)
        conversation_id = await here.ask()
        async with here.stream(conversation_id) as mine, there.stream(conversation_id) as theirs:
            await mine.until("word 20 "), await theirs.until("word 20 ")
            if outage.startswith("killed"):
                shared.kill()
                assert_problem(await here.client.get(f"/conversations/{conversation_id}"), 503)
                await asyncio.sleep(1.0 if outage == "killed" else 8.5)
                shared.start()
            else:
                shared.signal(signal.SIGSTOP)
                await asyncio.sleep(3.5)
                shared.signal(signal.SIGCONT)
            await mine.until("word 300 "), await theirs.until("word 300 ")
            await eventually(lambda: _is_reachable(there))
            assert (await there.stop(conversation_id)).status_code == 200
            texts = [(await bounded(reader.whole(), 5)).content for reader in (mine, theirs)]
        assert texts[0] == texts[1] == words(texts[0])
        assert (await here.messages(conversation_id))[1]["content"] == texts[0]
    assert len(upstream.requests) == 1


async def test_the_first_request_after_a_restart_of_the_server_is_answered(
    upstream: ScriptedUpstream, shared: Server
) -> None:
    async with relays(upstream, place(shared.url), 1) as (relay,):
        for _ in range(3):
            conversation_id = await relay.ask()
            shared.kill()
            shared.start()
            assert [message["role"] for message in await relay.messages(conversation_id)] == ["user"]


@pytest.mark.row(
    "upstream ends while the server is away for 4 s",
    "the whole reply, when it is back",
    "the same",
    "complete, with usage",
)
@pytest.mark.bound(90)
async def test_what_upstream_ends_while_the_server_is_away_is_kept_when_it_is_back(
    upstream: ScriptedUpstream, shared: Server
) -> None:
    upstream.play(gated(gate := Gate(), "one ", "two"))
    url = place(shared.url)
    async with relays(upstream, url) as (here, there):
        patient(here, there)
        conversation_id = await here.ask()
        async with here.stream(conversation_id) as mine, there.stream(conversation_id) as theirs:
            gate.open()
            await mine.until("one "), await theirs.until("one ")
            shared.kill()
            gate.open_wide()
            await asyncio.sleep(4.0)
            shared.start()
            for reader in (mine, theirs):
                whole = await reader.whole()
                assert (whole.content, whole.last["status"]) == ("one two", "complete")
                assert whole.last["usage"] is not None
        assert (await there.messages(conversation_id))[1]["status"] == "complete"


@pytest.mark.row(
    "the server is away for longer",
    "503 error after 10 to 15 s",
    "cut",
    "failed, with the text that was kept, when it is back",
)
@pytest.mark.bound(90)
async def test_a_server_that_stays_away_fails_the_replies_and_has_them_ended_when_it_is_back(
    upstream: ScriptedUpstream, shared: Server
) -> None:
    upstream.play(talking())
    url = place(shared.url)
    async with relays(upstream, url) as (here, there):
        patient(here, there)
        conversation_id = await here.ask()
        async with here.stream(conversation_id) as mine, there.stream(conversation_id) as theirs:
            await mine.until("word 20 "), await theirs.until("word 20 ")
            shared.kill()
            text = await failed(mine, 20)
            await bounded(upstream.requests[0].gone.wait(), 5)
            cut = await bounded(theirs.whole(), 20)
            assert not any(block.is_terminal for block in cut.blocks)
        shared.start()
        await eventually(lambda: _is_failed(there, conversation_id), GONE)
        async with there.stream(conversation_id, cut.last_id) as again:
            assert cut.content + (await again.whole()).content == text
        await answered_again(there, conversation_id, upstream)


async def _is_failed(relay: Relay, conversation_id: str) -> bool:
    response = await relay.client.get(f"/conversations/{conversation_id}/messages")
    return response.status_code == 200 and response.json()["messages"][1]["status"] == "failed"


@pytest.mark.row(
    "SIGTERM here while the server is away",
    "503 error within the grace and 2 s",
    "503 error, when it is back",
    "exit 0 within the grace and 2 s; failed, with its text",
)
@pytest.mark.bound(90)
@pytest.mark.parametrize("outage", ["killed", "held up"])
async def test_a_relay_leaves_in_time_while_the_server_is_away(
    upstream: ScriptedUpstream, shared: Server, outage: str
) -> None:
    upstream.play(talking())
    url = place(shared.url)
    async with processes(upstream, url, SHUTDOWN_GRACE="1") as [here], relays(upstream, url, 1) as [there]:
        patient(here, there)
        conversation_id = await here.ask()
        async with here.stream(conversation_id) as mine, there.stream(conversation_id) as theirs:
            await mine.until("word 20 "), await theirs.until("word 20 ")
            shared.kill() if outage == "killed" else shared.signal(signal.SIGSTOP)
            here.terminate()
            began = time.monotonic()
            text = await failed(mine)
            assert await here.exit() == 0
            assert time.monotonic() - began < 1 + 2 + 1  # a busy machine's
            shared.start() if outage == "killed" else shared.signal(signal.SIGCONT)
            assert (await failed(theirs, GONE + 5)).startswith(text)  # what was on its way may be there, too
        assert "destroyed" not in here.output and "Traceback" not in here.output


class Failover:
    """A server and its replica, which can be held back and then takes the server's place."""

    def __init__(self, primary: Server, replica: Server, replication: Network, network: Network) -> None:
        self._primary, self._replica = primary, replica
        self._replication, self._network = replication, network

    def lose(self) -> None:
        """What comes from now on is lost."""
        self._replication.hold()

    def has(self, conversation_id: str) -> bool:
        """Whether the replica has it, with its question."""
        [key] = re.findall(rb"\{\S+\}:m:" + conversation_id.encode(), self._replica.said("KEYS", "*")) or [b""]
        return b":1" in self._replica.said("LLEN", key.decode())

    def happen(self) -> None:
        """Now."""
        self._primary.kill()
        self._replication.cut()
        self._replica.said("REPLICAOF", "NO", "ONE")
        self._network.lead(self._replica.port)


@pytest.fixture
async def failover(request: pytest.FixtureRequest, shared: Server) -> AsyncIterator[tuple[Failover, str]]:
    """One that can happen, and the URL by which relays find whichever server is the primary."""
    network, replication = Network(shared.port), Network(shared.port)
    async with replication.laid() as primary, network.laid() as far:
        master = ("127.0.0.1", primary.rpartition(":")[2])
        with server(request.config.getoption("--server"), "--replicaof", *master) as replica:
            await eventually(lambda: b"master_link_status:up" in replica.said("INFO", "replication"))
            yield Failover(shared, replica, replication, network), place(far)


@pytest.mark.row(
    "a failover that loses the last second",
    "the whole reply",
    "the whole reply",
    "nothing is missing, nothing is there twice",
)
@pytest.mark.bound(90)
async def test_a_failover_that_loses_what_came_last_loses_no_character(
    upstream: ScriptedUpstream, failover: tuple[Failover, str]
) -> None:
    upstream.play(talking())
    it, url = failover
    async with relays(upstream, url) as (here, there):
        patient(here, there)
        conversation_id = await here.ask()
        async with here.stream(conversation_id) as mine, there.stream(conversation_id) as theirs:
            await mine.until("word 20 "), await theirs.until("word 20 ")
            it.lose()
            await mine.until("word 70 "), await theirs.until("word 70 ")
            it.happen()
            await mine.until("word 200 "), await theirs.until("word 200 ")
            stopped = await there.stop(conversation_id)
            texts = [(await bounded(reader.whole(), 5)).content for reader in (mine, theirs)]
        assert texts[0] == texts[1] == words(texts[0]) == stopped.json()["content"]
        await here.idle()
        assert (await here.messages(conversation_id))[1]["content"] == texts[0]


@pytest.mark.row(
    "a failover that loses a reply's beginning",
    "`stopped` within 15 s",
    "`stopped` within 15 s",
    "the reply is gone; asked again it is generated again",
)
@pytest.mark.bound(90)
@pytest.mark.parametrize("word", ["", "word 20 "], ids=["before the first text", "in the middle"])
async def test_a_reply_whose_beginning_a_failover_loses_is_gone_as_if_deleted(
    upstream: ScriptedUpstream, failover: tuple[Failover, str], word: str
) -> None:
    """Asked again it is generated, and billed, again: docs/deploy.md says so."""
    upstream.play(talking() if word else gated(Gate(), "never"))
    it, url = failover
    async with relays(upstream, url) as (here, there):
        patient(here, there)
        conversation_id = await here.ask()
        await eventually(lambda: it.has(conversation_id))
        it.lose()
        async with here.stream(conversation_id) as mine, there.stream(conversation_id) as theirs:
            await mine.next(), await theirs.next()
            await mine.until(word), await theirs.until(word)
            it.happen()
            for reader in (mine, theirs):
                whole = await bounded(reader.whole(), GONE)
                assert (whole.last["status"], whole.content) == ("stopped", words(whole.content))
        await bounded(upstream.requests[0].gone.wait(), 5)
        assert [message["role"] for message in await there.messages(conversation_id)] == ["user"]
        await answered_again(there, conversation_id, upstream)
    assert len(upstream.requests) == 2


@pytest.mark.row(
    "the server lacks the replicas that it wants (`min-replicas-to-write`), for 3 s",
    "the whole reply",
    "the whole reply",
    "requests meanwhile that change something: 503; reading goes on",
)
@pytest.mark.bound(90)
async def test_a_server_that_wants_replicas_and_has_none_takes_nothing_until_it_has(
    upstream: ScriptedUpstream, shared: Server
) -> None:
    """`min-replicas-to-write`: what is acknowledged then is on two servers."""
    upstream.play(talking())
    async with relays(upstream, place(shared.url)) as (here, there):
        patient(here, there)
        conversation_id = await here.ask()
        async with here.stream(conversation_id) as mine, there.stream(conversation_id) as theirs:
            await mine.until("word 20 "), await theirs.until("word 20 ")
            shared.said("CONFIG", "SET", "min-replicas-to-write", "1")
            refused = await here.client.post("/conversations")
            assert_problem(refused, 503)
            assert refused.headers["retry-after"]
            assert (await there.messages(conversation_id))[0]["content"] == "Hi"
            await asyncio.sleep(3.0)
            shared.said("CONFIG", "SET", "min-replicas-to-write", "0")
            await mine.until("word 250 "), await theirs.until("word 250 ")
            assert (await there.stop(conversation_id)).status_code == 200
            texts = [(await bounded(reader.whole(), 5)).content for reader in (mine, theirs)]
        assert texts[0] == texts[1] == words(texts[0])


@pytest.mark.row("the server is full (`maxmemory`)", "507 error", "507 error", "reading and deleting go on")
@pytest.mark.bound(90)
async def test_a_full_server_takes_nothing_more_and_ends_and_deletes_what_it_has(
    upstream: ScriptedUpstream, shared: Server
) -> None:
    upstream.play(talking())
    async with relays(upstream, place(shared.url)) as (here, there):
        patient(here, there)
        conversation_id = await here.ask()
        async with here.stream(conversation_id) as mine, there.stream(conversation_id) as theirs:
            await mine.until("word 20 "), await theirs.until("word 20 ")
            shared.said("CONFIG", "SET", "maxmemory", "1mb")
            for reader in (mine, theirs):
                whole = await bounded(reader.whole(), 5)
                assert whole.last["error"]["code"] == 507
                assert whole.content == words(whole.content)
        kept = (await there.messages(conversation_id))[1]
        assert (kept["status"], kept["content"]) == ("failed", mine.transcript.content)
        assert_problem(await here.client.post("/conversations"), 507)
        assert_problem(await here.post(conversation_id, content="?"), 507)
        await asyncio.sleep(3.0)  # life signs are given all the same
        assert (await there.health())["store"] == "ok"
        assert (await there.client.delete(f"/conversations/{conversation_id}")).status_code == 204
        shared.said("CONFIG", "SET", "maxmemory", "0")
        upstream.play(gated(gate := Gate(), ANSWER))
        gate.open_wide()
        assert (await there.read(await here.ask())).content == ANSWER


async def test_the_log_says_once_that_the_server_is_away_and_that_it_is_back(
    upstream: ScriptedUpstream, shared: Server, caplog: pytest.LogCaptureFixture
) -> None:
    async with relays(upstream, place(shared.url), 1) as (relay,):
        conversation_id = await relay.ask()
        shared.kill()
        for _ in range(3):
            assert_problem(await relay.client.get(f"/conversations/{conversation_id}"), 503, "can't be reached")
        shared.start()
        await eventually(lambda: _is_reachable(relay))
    assert _told_by_the_store(caplog) == [
        "The server of STORE_URL can't be reached",
        "The server of STORE_URL answers again",
    ]


async def test_the_log_names_once_what_the_server_refuses(
    upstream: ScriptedUpstream, shared: Server, caplog: pytest.LogCaptureFixture
) -> None:
    async with relays(upstream, place(shared.url), 1) as (relay,):
        conversation_id = await relay.ask()
        shared.said("CONFIG", "SET", "min-replicas-to-write", "1")
        for _ in range(2):
            response = await relay.client.patch(f"/conversations/{conversation_id}", json={"title": "secret"})
            assert_problem(response, 503, "refuses")
        shared.said("CONFIG", "SET", "min-replicas-to-write", "0")
        title = {"title": "New"}
        assert (await relay.client.patch(f"/conversations/{conversation_id}", json=title)).status_code == 200
    assert _told_by_the_store(caplog) == ["The server of STORE_URL refuses a command (NOREPLICAS)"]
    assert "secret" not in caplog.text


def _told_by_the_store(caplog: pytest.LogCaptureFixture) -> list[str]:
    told = (record.getMessage() for record in caplog.records if record.name == "store")
    return [line for line in told if line.startswith("The server of STORE_URL")]
