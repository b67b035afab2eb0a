"""Many readers, many conversations, readers of all speeds, and a store that takes its time: the text is exact."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import httpx
import pytest

from tests.support.engines import on_dicts, on_each_engine
from tests.support.problems import assert_problem
from tests.support.readers import Transcript
from tests.support.relay import Relay, comes_behind, serving
from tests.support.scripts import answer, gated, steps, waits
from tests.support.sse import Parser
from tests.support.stores import GatedStore, some_turns
from tests.support.upstream import ANSWER, Gate, ScriptedUpstream, UpstreamRequest, Wire
from tests.support.waiting import bounded, eventually

pytestmark = on_each_engine

TEXT = "".join(f"{number} é👋\u2028\n" for number in range(300))


# One reply


async def test_twenty_first_requests_at_once_make_one_upstream_call(upstream: ScriptedUpstream, relay: Relay) -> None:
    upstream.play(answer(TEXT, pieces=40, reasoning="Hmm " * 20))
    conversation_id = await relay.ask()
    transcripts = await asyncio.gather(*(relay.read(conversation_id) for _ in range(20)))
    assert {(t.content, t.reasoning) for t in transcripts} == {(TEXT, "Hmm " * 20)}
    assert len({t.start["message_id"] for t in transcripts}) == 1
    assert all(t.last == transcripts[0].last for t in transcripts)
    assert len(upstream.requests) == 1
    assert await relay.contents(conversation_id) == ["Hi", TEXT]


async def test_twenty_first_requests_at_once_share_a_failure(upstream: ScriptedUpstream, relay: Relay) -> None:
    gate = Gate()
    upstream.play(steps(waits(gate), lambda wire: wire.respond(400, {"error": {"code": 400, "message": "No"}})))
    conversation_id = await relay.ask()
    reading = [asyncio.create_task(relay.read(conversation_id)) for _ in range(20)]
    await eventually(lambda: all_started(relay, conversation_id))
    gate.open_wide()
    transcripts = await asyncio.gather(*reading)
    assert {t.last["error"]["code"] for t in transcripts} == {400}
    assert len({t.start["message_id"] for t in transcripts}) == len(upstream.requests)


async def all_started(relay: Relay, conversation_id: str) -> bool:
    return [message["status"] for message in await relay.messages(conversation_id)] == ["complete", "streaming"]


async def test_fifty_readers_of_one_reply_each_at_a_speed_of_its_own_get_the_same(
    upstream: ScriptedUpstream, relay: Relay
) -> None:
    """Reader n takes a block whenever upstream has sent n more pieces: the first keeps up, the last hardly begins."""
    pieces = [f"{number} é👋 " for number in range(100)]
    sent = 0
    moved = asyncio.Condition()

    async def script(_: UpstreamRequest, wire: Wire) -> None:
        nonlocal sent
        await wire.head()
        for piece in pieces:
            await wire.delta(piece)
            async with moved:
                sent += 1
                moved.notify_all()
        await wire.finish()
        await wire.done()

    async def read(speed: int) -> Transcript:
        async with relay.stream(conversation_id) as reader:
            for turn in range(1, len(pieces) // speed + 1):
                async with moved:
                    while sent < turn * speed:
                        await moved.wait()
                if not reader.transcript.blocks or not reader.transcript.blocks[-1].is_terminal:
                    await reader.next()
            return await reader.whole()

    upstream.play(script)
    conversation_id = await relay.ask()
    transcripts = await asyncio.gather(*(read(speed) for speed in range(1, 51)))
    assert {t.content for t in transcripts} == {"".join(pieces)}
    assert all(t.last == transcripts[0].last for t in transcripts)
    assert len(upstream.requests) == 1


async def test_readers_that_join_at_every_moment_get_the_whole(upstream: ScriptedUpstream, relay: Relay) -> None:
    gate = Gate()
    pieces = [f"{number} " for number in range(20)]
    upstream.play(gated(gate, *pieces))
    conversation_id = await relay.ask()
    joined = Gate()

    async def join() -> Transcript:
        async with relay.stream(conversation_id) as reader:
            await reader.next()
            await joined.passage()
            return await reader.whole()

    async with relay.stream(conversation_id) as first:
        joining = []
        for piece in pieces:
            gate.open()
            await first.until(piece)
            joining.append(asyncio.create_task(join()))
            await joined.reached(len(joining))
        gate.open_wide()
        joined.open_wide()
        last = (await first.whole()).last
    for transcript in await asyncio.gather(*joining):
        assert (transcript.content, transcript.last) == ("".join(pieces), last)
    assert len(upstream.requests) == 1


async def test_readers_that_drop_anywhere_and_come_back_get_every_character_once(
    upstream: ScriptedUpstream, relay: Relay
) -> None:
    """Each connection ends after a random number of bytes, most often inside an event, as a phone's does."""
    chance = random.Random(7)
    upstream.play(answer(TEXT, pieces=150, reasoning="Let me think. " * 20))
    conversation_id = await relay.ask()

    async def read() -> Transcript:
        transcript, id = Transcript(), None
        while id is None or not id.endswith(":end"):
            octets = chance.choice([chance.randrange(1, 1000), chance.randrange(1, 15000)])
            transcript, id = await dropping(relay, conversation_id, transcript, id, octets)
        async with relay.stream(conversation_id, id) as reader:
            assert reader.response.status_code == 204
        return transcript

    for transcript in await asyncio.gather(*(read() for _ in range(20))):
        assert (transcript.content, transcript.reasoning) == (TEXT, "Let me think. " * 20)
        assert transcript.last["status"] == "complete"
    assert len(upstream.requests) == 1


async def dropping(
    relay: Relay, conversation_id: str, transcript: Transcript, id: str | None, after: int
) -> tuple[Transcript, str | None]:
    """Read `after` bytes and leave; only whole blocks count. The start event of a resumed stream isn't kept."""
    parser = Parser()
    async with relay.stream(conversation_id, id) as reader:
        async for octets in bounded_bytes(reader.response):
            for block in parser.feed(octets[:after]):
                id = block.id or id
                if block.event != "start":
                    transcript.add(block)
            after -= len(octets)
            if after <= 0:
                break
    return transcript, id


async def bounded_bytes(response: httpx.Response) -> AsyncIterator[bytes]:
    assert response.status_code == 200
    stream = response.aiter_bytes()
    while True:
        try:
            yield await bounded(anext(stream))
        except StopAsyncIteration:
            return


# Many replies


@pytest.mark.bound(120)
async def test_two_hundred_conversations_at_once_are_all_exact(upstream: ScriptedUpstream, relay: Relay) -> None:
    gate = Gate()

    async def script(request: UpstreamRequest, wire: Wire) -> None:
        await gate.passage()
        await answer(echo(request.body["messages"][0]["content"]), pieces=4)(request, wire)

    def echo(question: str) -> str:
        return f"You said {question}. é👋\u2028" * 5

    upstream.play(script)
    questions = [f"number {number}" for number in range(on_dicts(200, 50))]
    async with AsyncExitStack() as streams:
        readers = []
        for question in questions:
            readers.append(await streams.enter_async_context(relay.stream(await relay.ask(question))))
        await gate.reached(len(questions))
        assert (await relay.health())["replies_in_progress"] == len(questions)
        gate.open_wide()
        transcripts = await asyncio.gather(*(reader.whole() for reader in readers))
    assert [t.content for t in transcripts] == [echo(question) for question in questions]
    assert {t.last["status"] for t in transcripts} == {"complete"}
    assert len(upstream.requests) == len(questions)
    health = await relay.health()
    assert (health["messages"], health["replies_in_progress"]) == (2 * len(questions), 0)


# A store that takes its time


@pytest.mark.usefixtures("_slow")
async def test_a_slow_store_starts_one_reply_for_twenty_first_requests(upstream: ScriptedUpstream) -> None:
    upstream.play(answer(TEXT, pieces=30))
    async with serving(upstream) as relay:
        for _ in range(on_dicts(5, 2)):
            conversation_id = await relay.ask()
            before = len(upstream.requests)
            transcripts = await asyncio.gather(*(relay.read(conversation_id) for _ in range(20)))
            assert {t.content for t in transcripts} == {TEXT}
            assert len(upstream.requests) == before + 1
            assert [message["role"] for message in await relay.messages(conversation_id)] == ["user", "assistant"]


@pytest.mark.bound(120)
@pytest.mark.usefixtures("_slow")
async def test_a_slow_store_leaves_no_reader_hanging_whatever_happens_meanwhile(upstream: ScriptedUpstream) -> None:
    """Streams, stops, deletes, resumes and new questions at random; every stream ends and nothing is left over."""
    chance = random.Random(11)
    upstream.play(answer("one two three four", pieces=4))
    async with serving(upstream) as relay:

        async def read(conversation_id: str, last_event_id: str | None) -> str | None:
            async with relay.stream(conversation_id, last_event_id) as reader:
                if reader.response.status_code != 200:
                    assert reader.response.status_code in (204, 404, 409)
                    return None
                transcript = await reader.whole()
                assert "one two three four".startswith(transcript.content) or last_event_id
                return str(chance.choice(transcript.ids)) if transcript.last else None

        async def disturb(conversation_id: str) -> None:
            await some_turns(chance)
            path = f"/conversations/{conversation_id}"
            messages = (await relay.client.get(f"{path}/messages")).json().get("messages", [])
            match chance.randrange(5):
                case 0:
                    await bounded(relay.stop(conversation_id))
                case 1 if messages:
                    await bounded(relay.client.delete(f"{path}/messages/{chance.choice(messages)['id']}"))
                case 2:
                    await bounded(relay.client.delete(path))
                case _:
                    await bounded(relay.client.post(f"{path}/messages", json={"content": "Again"}))

        async def converse() -> None:
            conversation_id = await relay.ask()
            for _ in range(3):
                reading = [asyncio.create_task(read(conversation_id, None)) for _ in range(3)]
                disturbing = [asyncio.create_task(disturb(conversation_id)) for _ in range(3)]
                ids = await asyncio.gather(*reading)
                await asyncio.gather(*disturbing)
                await asyncio.gather(*(read(conversation_id, id) for id in ids if id))

        await asyncio.gather(*(converse() for _ in range(on_dicts(10, 4))))
        await relay.idle()
        assert (await relay.read(await relay.ask())).content == "one two three four"


@pytest.mark.usefixtures("_gated")
async def test_a_reply_that_ends_while_a_slow_store_joins_a_reader_ends_for_it_too(upstream: ScriptedUpstream) -> None:
    upstream.play(gated(gate := Gate(), "one ", "two"))
    async with serving(upstream) as relay:
        conversation_id = await relay.ask()
        async with relay.stream(conversation_id) as reader:
            gate.open()
            await reader.until("one ")
            begun = GatedStore.gates["begin_reply"] = Gate()
            joining = asyncio.create_task(relay.read(conversation_id))
            await begun.reached()
            gate.open_wide()
            last = (await reader.whole()).last
        begun.open_wide()
        whole = await bounded(joining)
    assert (whole.content, whole.last) == ("one two", last)


@pytest.mark.usefixtures("_gated")
async def test_a_reply_that_is_resumed_while_a_slow_store_begins_it_ends_for_that_reader_too(
    upstream: ScriptedUpstream,
) -> None:
    async with serving(upstream) as relay:
        conversation_id = await relay.ask()
        begun = GatedStore.gates["begin_reply"] = Gate()
        first = asyncio.create_task(relay.read(conversation_id))
        await begun.reached()
        known = (await relay.messages(conversation_id))[1]["id"]
        resuming = asyncio.create_task(relay.read(conversation_id, f"{known}:0"))
        await comes_behind(relay, resuming)
        begun.open_wide()
        transcripts = await bounded(asyncio.gather(first, resuming))
    assert [(t.content, t.last["status"]) for t in transcripts] == [(ANSWER, "complete")] * 2
    assert len(upstream.requests) == 1


@pytest.mark.usefixtures("_gated")
async def test_a_reply_that_a_slow_store_deletes_ends_though_another_one_has_begun(
    upstream: ScriptedUpstream,
) -> None:
    upstream.queue(gated(Gate(), "never sent"), answer("second"))
    async with serving(upstream) as relay:
        conversation_id = await relay.ask()
        async with relay.stream(conversation_id) as reader:
            start = (await reader.next()).json
            deleted = GatedStore.gates["delete_messages_from"] = Gate()
            path = f"/conversations/{conversation_id}/messages/{start['message_id']}"
            deleting = asyncio.create_task(relay.client.delete(path))
            await deleted.reached()
            second = await relay.read(conversation_id)
            deleted.open_wide()
            assert (await bounded(deleting)).status_code == 204
            last = (await bounded(reader.whole())).last
        assert (second.content, last["status"], last["message_id"]) == ("second", "stopped", start["message_id"])
        await bounded(upstream.requests[0].gone.wait())
        assert (await relay.health())["replies_in_progress"] == 0


@pytest.mark.usefixtures("_gated")
async def test_a_reply_that_is_deleted_makes_no_room_before_it_has_ended(upstream: ScriptedUpstream) -> None:
    upstream.play(gated(Gate(), "never sent"))
    async with serving(upstream, max_replies=1) as relay:
        conversation_id = await relay.ask()
        async with relay.stream(conversation_id) as reader:
            start = (await reader.next()).json
            ended = GatedStore.gates["finish_reply"] = Gate()
            path = f"/conversations/{conversation_id}/messages/{start['message_id']}"
            assert (await relay.client.delete(path)).status_code == 204
            await ended.reached()
            assert_problem(await status_of(relay, conversation_id), 503, "MAX_REPLIES")
            ended.open_wide()
            await bounded(reader.whole())
    assert len(upstream.requests) == 1


@pytest.mark.usefixtures("_gated")
async def test_a_reply_that_ends_while_a_slow_store_is_asked_for_it_is_not_taken_for_lost(
    upstream: ScriptedUpstream,
) -> None:
    upstream.play(gated(gate := Gate(), "one ", "two"))
    async with serving(upstream) as relay:
        conversation_id = await relay.ask()
        async with relay.stream(conversation_id) as reader:
            start = await reader.next()
            found = GatedStore.gates["message"] = Gate()
            resuming = asyncio.create_task(relay.read(conversation_id, start.id))
            await found.reached()
            gate.open_wide()
            last = (await reader.whole()).last
        found.open_wide()
        resumed = await bounded(resuming)
    assert (resumed.content, resumed.last) == ("one two", last)


@pytest.mark.usefixtures("_gated")
async def test_a_reply_that_is_stopped_while_a_slow_store_begins_it_is_stopped(upstream: ScriptedUpstream) -> None:
    upstream.play(gated(Gate(), "never sent"))
    async with serving(upstream) as relay:
        conversation_id = await relay.ask()
        begun = GatedStore.gates["begin_reply"] = Gate()
        reading = asyncio.create_task(relay.read(conversation_id))
        await begun.reached()
        stopping = asyncio.create_task(relay.stop(conversation_id))
        assert (await relay.messages(conversation_id))[1]["status"] == "streaming"
        begun.open_wide()
        assert (await bounded(stopping)).json()["status"] == "stopped"
        assert (await bounded(reading)).last["status"] == "stopped"


@pytest.mark.usefixtures("_gated")
async def test_a_conversation_that_is_deleted_while_a_slow_store_begins_its_reply_ends_it(
    upstream: ScriptedUpstream,
) -> None:
    upstream.play(gated(Gate(), "never sent"))
    async with serving(upstream) as relay:
        conversation_id = await relay.ask()
        begun = GatedStore.gates["begin_reply"] = Gate()
        reading = asyncio.create_task(relay.read(conversation_id))
        await begun.reached()
        deleting = asyncio.create_task(relay.client.delete(f"/conversations/{conversation_id}"))
        await eventually(lambda: is_gone(relay, conversation_id))
        begun.open_wide()
        assert (await bounded(deleting)).status_code == 204
        assert (await bounded(reading)).last["status"] == "stopped"
        await relay.idle()
    assert upstream.connections == 0


async def is_gone(relay: Relay, conversation_id: str) -> bool:
    return (await relay.client.get(f"/conversations/{conversation_id}")).status_code == 404


@pytest.mark.usefixtures("_gated")
async def test_a_question_after_a_reply_that_a_slow_store_is_still_finishing_is_answered(
    upstream: ScriptedUpstream,
) -> None:
    async with serving(upstream) as relay:
        conversation_id = await relay.ask()
        finished = GatedStore.gates["finish_reply"] = Gate()
        first = asyncio.create_task(relay.read(conversation_id))
        await finished.reached()
        await relay.say(conversation_id, "Next")
        second = asyncio.create_task(relay.read(conversation_id))
        await finished.reached(2)
        finished.open_wide()
        transcripts = await bounded(asyncio.gather(first, second))
    assert [(t.content, t.last["status"]) for t in transcripts] == [(ANSWER, "complete")] * 2
    assert transcripts[0].start["message_id"] != transcripts[1].start["message_id"]
    assert len(upstream.requests) == 2


@pytest.mark.usefixtures("_gated")
async def test_a_slow_store_lets_no_more_replies_in_than_allowed(upstream: ScriptedUpstream) -> None:
    upstream.play(gated(Gate(), "never sent"))
    async with serving(upstream, max_replies=1) as relay:
        first, second = await relay.ask(), await relay.ask()
        begun = GatedStore.gates["begin_reply"] = Gate()
        async with asyncio.TaskGroup() as group:
            streams = [group.create_task(status_of(relay, id)) for id in (first, second)]
            await begun.reached()
            await eventually(lambda: begun.arrived == 2 or any(stream.done() for stream in streams))
            begun.open_wide()
        statuses = sorted(stream.result().status_code for stream in streams)
        assert statuses == [200, 503]
        assert_problem(next(r.result() for r in streams if r.result().status_code == 503), 503, "MAX_REPLIES")


async def status_of(relay: Relay, conversation_id: str) -> httpx.Response:
    """The beginning of the response; the reader leaves at once."""
    async with relay.stream(conversation_id) as reader:
        return reader.response
