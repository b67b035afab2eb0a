"""Several relays on one server: what one of them makes is followed, resumed, stopped and deleted through any other."""

import asyncio
import itertools
import random
import re
from collections.abc import Iterator

import pytest

from mirrors import Mirror, Mirrors
from result import Finish
from stores.records import Question
from tests.support.problems import assert_problem
from tests.support.relay import Relay
from tests.support.replicas import Hopper, place, relays, stores
from tests.support.scripts import answer, chunk, gated, says, steps, talking
from tests.support.servers import Server, server
from tests.support.stores import ask
from tests.support.upstream import ANSWER, Gate, ScriptedUpstream, Wire
from tests.support.waiting import bounded, eventually

pytestmark = pytest.mark.engines("valkey")

TEXT = "".join(f"{number} é😀\n" for number in range(200))


@pytest.fixture(scope="module")
def shared(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server of this module's own."""
    with server(request.config.getoption("--server")) as running:
        yield running


@pytest.fixture
def url(shared: Server) -> str:
    """A place on it that no other test has."""
    return place(shared.url)


# A question


@pytest.mark.parametrize("after", [{}, {"after": None}], ids=["at the end", "in place of all"])
async def test_a_question_is_one_load_and_one_commit(
    upstream: ScriptedUpstream, shared: Server, url: str, after: dict[str, None]
) -> None:
    """What follows is the reply's: its text, its end, and signs of life."""
    prefix = url.partition("prefix=")[2]
    async with relays(upstream, url) as (here, _):
        conversation_id = await here.ask("Before")
        await here.read(conversation_id)
        with shared.monitored(prefix) as scripts:
            body = {"content": "Why?", **after}
            path, headers = f"/conversations/{conversation_id}/messages", {"Accept": "text/event-stream"}
            response = await here.client.post(path, json=body, headers=headers)
            assert (response.status_code, ANSWER[-5:] in response.text) == (200, True)
    asked = [script for script in scripts if script != "beat"]
    assert asked[:2] == ["load", "commit"]
    assert {*asked[2:-2]} <= {"append"} and asked[-2:] == ["load", "commit"]


# Read


async def test_a_conversation_is_the_same_at_every_relay(upstream: ScriptedUpstream, url: str) -> None:
    async with relays(upstream, url) as (here, there):
        conversation_id = await here.ask("Why?")
        reply = await there.read(conversation_id)
        assert reply.content == ANSWER
        assert await here.messages(conversation_id) == await there.messages(conversation_id)
        assert (await here.client.get("/conversations")).json() == (await there.client.get("/conversations")).json()
        renamed = await there.client.patch(f"/conversations/{conversation_id}", json={"title": "Other"})
        assert (await here.shown(conversation_id)) == renamed.json()


@pytest.mark.parametrize(("count", "size"), [(1_998, 1), (20, 100_000)], ids=["many messages", "long ones"])
async def test_a_long_conversation_is_read_answered_cut_and_deleted(url: str, count: int, size: int) -> None:
    async with stores(url, url) as (here, there):
        turns = [{"role": ("user", "assistant")[n % 2], "content": f"{n} " + "é" * size} for n in range(count)]
        conversation_id = (await here.create_conversation(messages=turns)).id
        messages = await there.messages(conversation_id)
        assert [message.transcript.content for message in messages] == [turn["content"] for turn in turns]
        sliced = [message.id async for part, _ in there.slices(conversation_id) for message in part]
        assert sliced == [message.id for message in messages]
        begun = await ask(there, conversation_id, Question("Why?"))
        assert [*begun.turns] == [*((turn["role"], turn["content"]) for turn in turns), ("user", "Why?")]
        assert await here.finish_reply(conversation_id, begun.reply.id, Finish("stop"))
        await here.delete_messages_from(conversation_id, messages[10].id)
        assert [message.id for message in await there.messages(conversation_id)] == sliced[:10]
        await there.delete_conversation(conversation_id)
        assert await there.text_size() == 0


async def test_a_reply_is_joined_at_another_relay_and_read_as_it_comes(upstream: ScriptedUpstream, url: str) -> None:
    upstream.play(gated(gate := Gate(), "one ", "two ", "three"))
    async with relays(upstream, url) as (here, there):
        conversation_id = await here.ask()
        async with (
            here.stream(conversation_id) as first,
            there.stream(conversation_id, params={"join": "true"}) as late,
        ):
            gate.open()
            await first.until("one ")
        async with there.stream(conversation_id, params={"join": "true"}) as late:
            await late.until("one ")
            gate.open()
            await late.until("two ")
            listed = (await there.messages(conversation_id))[1]
            assert (listed["content"], listed["status"]) == ("one two ", "streaming")
            gate.open(2)
            whole = await late.whole()
        assert (whole.content, whole.last["status"]) == ("one two three", "complete")
        assert whole.last["message_id"] == (await here.messages(conversation_id))[1]["id"]
    assert len(upstream.requests) == 1


@pytest.mark.parametrize("events", [[2], [1, 5, 2, 3]], ids=["each event", "now and then"])  # `start` is one
async def test_a_reader_that_hops_reads_every_character_once(
    upstream: ScriptedUpstream, url: str, events: list[int]
) -> None:
    upstream.play(answer(TEXT, pieces=60, reasoning="Hm. " * 10))
    async with relays(upstream, url) as both:
        conversation_id = await both[0].ask()
        hoppers = [Hopper(both[turn:] + both[:turn], conversation_id) for turn in (0, 1, 0)]
        read = await asyncio.gather(*(hopper.read(itertools.cycle(events)) for hopper in hoppers))
        assert {(one.content, one.reasoning) for one in read} == {(TEXT, "Hm. " * 10)}
        assert all(one.last["status"] == "complete" for one in read)
        assert min(hopper.hops for hopper in hoppers) > 1
    assert len(upstream.requests) == 1


async def test_a_reply_is_followed_while_it_is_read_and_again_when_it_is(
    upstream: ScriptedUpstream, shared: Server, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mirrors.UNREAD_GRACE", 1.0)
    upstream.play(talking())
    async with relays(upstream, url) as (here, there):
        conversation_id = await here.ask()
        async with here.stream(conversation_id) as mine:
            await mine.until("word 5 ")
            async with there.stream(conversation_id) as theirs:
                await theirs.until("word 10 ")
                await eventually(lambda: _listens(shared))
            await eventually(lambda: _is_quiet(shared))
            async with there.stream(conversation_id, theirs.transcript.last_id) as again:
                await again.until("word 100 ")
                await eventually(lambda: _listens(shared))
                assert (await there.stop(conversation_id)).status_code == 200
                whole = (await mine.whole()).content
                assert theirs.transcript.content + (await again.whole()).content == whole


async def test_a_reader_that_has_taken_nothing_for_long_goes_on_where_it_was(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its reply wasn't followed meanwhile."""
    monkeypatch.setattr("mirrors.UNREAD_GRACE", 0.1)
    monkeypatch.setattr("stores.valkey.follower.BLOCK_TIMEOUT", 0.1)
    async with stores(url, url) as (here, there):
        conversation_id = (await here.create_conversation()).id
        reply = (await ask(here, conversation_id, Question("Why?"))).reply
        [_, found] = await there.messages(conversation_id)
        mirror = Mirrors(there).of(conversation_id, found)
        assert isinstance(mirror, Mirror)
        await eventually(lambda: mirror.task is None)
        await here.extend_reply(reply, "content", "text")
        await bounded(mirror.change())
        assert mirror.message.transcript.content == "text"
        assert await here.finish_reply(conversation_id, reply.id, Finish("stop"))
        assert (await bounded(mirror.wait())).status == "complete"


async def _listens(shared: Server) -> bool:
    """Whether relays are told of text as it comes, 50 times a second; without any, twice in two."""
    before = _asked(shared)
    await asyncio.sleep(0.5)
    return _asked(shared) - before > 4


async def _is_quiet(shared: Server) -> bool:
    return not await _listens(shared)


def _asked(shared: Server) -> int:
    found = re.search(rb"cmdstat_xread:calls=(\d+)", shared.said("INFO", "commandstats"))
    return int(found[1]) if found else 0


# Ask


@pytest.mark.bound(900)
async def test_twenty_first_requests_on_each_of_two_relays_make_one_call(
    request: pytest.FixtureRequest, upstream: ScriptedUpstream, url: str
) -> None:
    times = request.config.getoption("--rounds")
    async with relays(upstream, url) as both:
        for round_number in range(1, times + 1):
            conversation_id = await both[0].ask()
            read = await asyncio.gather(*(relay.read(conversation_id) for relay in both * 20))
            assert {one.content for one in read} == {ANSWER}
            assert len(upstream.requests) == round_number


async def test_two_questions_at_once_at_two_relays_are_one_reply_and_one_conflict(
    upstream: ScriptedUpstream, url: str
) -> None:
    upstream.play(gated(gate := Gate(), "text"))
    async with relays(upstream, url) as both:
        for _ in range(10):
            conversation_id = (await both[0].conversation())["id"]
            path = f"/conversations/{conversation_id}/messages"
            gate.open(2)
            responses = await asyncio.gather(
                *(
                    relay.client.post(path, json={"content": "Hi"}, headers={"Accept": "text/event-stream"})
                    for relay in both
                )
            )
            assert sorted(response.status_code for response in responses)[0] == 200
            conversation = (await both[1].client.get(f"/conversations/{conversation_id}")).json()
            answered = sum(response.status_code == 200 for response in responses)
            assert conversation["message_count"] == 2 * answered


async def test_a_clients_id_at_two_relays_at_once_is_one_conversation(upstream: ScriptedUpstream, url: str) -> None:
    async with relays(upstream, url) as both:
        for number in range(20):
            body = {"id": f"mine-{number}"}
            responses = await asyncio.gather(*(relay.client.post("/conversations", json=body) for relay in both * 3))
            assert sorted(response.status_code for response in responses) == [200] * 5 + [201]
            assert len({response.text for response in responses}) == 1
        await eventually(lambda: _holds(both[0], 20))  # what another relay has just done may take seconds to count


async def test_a_question_that_is_repeated_at_another_relay_is_asked_once(upstream: ScriptedUpstream, url: str) -> None:
    async with relays(upstream, url) as both:
        conversation_id = (await both[0].conversation())["id"]
        path, events = f"/conversations/{conversation_id}/messages", {"Accept": "text/event-stream"}
        question = {"content": "Hi", "id": "mine"}
        responses = await asyncio.gather(
            *(relay.client.post(path, json=question, headers=events) for relay in both * 10)
        )
        assert {response.status_code for response in responses} == {200}
        assert len(await both[1].messages(conversation_id)) == 2
        repeated = await both[1].client.post(path, json=question | {"content": "Else"})
        assert_problem(repeated, 409)
    assert len(upstream.requests) == 1


# Stop and delete


@pytest.mark.parametrize("text", ["", "Some text"], ids=["before the first text", "in the middle"])
async def test_a_reply_is_stopped_at_another_relay(upstream: ScriptedUpstream, url: str, text: str) -> None:
    gate = Gate()
    upstream.play(gated(gate, text, "never") if text else gated(gate, "never"))
    async with relays(upstream, url) as (here, there):
        conversation_id = await here.ask()
        async with here.stream(conversation_id) as mine, there.stream(conversation_id) as theirs:
            request = await upstream.called()
            await mine.next(), await theirs.next()
            if text:
                gate.open()
                await mine.until(text), await theirs.until(text)
            stopped = await bounded(there.stop(conversation_id), 2)
            assert (stopped.status_code, stopped.json()["status"], stopped.json()["content"]) == (200, "stopped", text)
            await bounded(request.gone.wait(), 2)
            for reader in (mine, theirs):
                whole = await bounded(reader.whole(), 2)
                assert (whole.content, whole.last["status"]) == (text, "stopped")
        assert (await there.stop(conversation_id)).status_code == 204
        assert (await here.messages(conversation_id))[1] == stopped.json()
        await here.idle()


async def test_a_reply_that_is_stopped_at_another_relay_keeps_who_answered_and_its_sources(
    upstream: ScriptedUpstream, url: str
) -> None:
    sources = [{"type": "url_citation", "url_citation": {"url": f"https://example.org/{n}"}} for n in (1, 2)]

    # None of them comes with text.
    cited = (chunk({"annotations": [source]}, model="served", provider="Someone") for source in sources)
    upstream.play(steps(*cited, says("Text"), Wire.hang))
    async with relays(upstream, url) as (here, there):
        conversation_id = await here.ask()
        async with here.stream(conversation_id) as reader:
            await reader.until("Text")
            stopped = (await there.stop(conversation_id)).json()
            last = (await bounded(reader.whole(), 2)).last
        assert (stopped["content"], stopped["served_model"], stopped["provider"]) == ("Text", "served", "Someone")
        assert stopped["generation_id"] == upstream.requests[0].generation_id
        assert [source["url"] for source in stopped["annotations"]] == [
            "https://example.org/1",
            "https://example.org/2",
        ]
        for name in ("served_model", "provider", "annotations"):
            assert last[name] == stopped[name]
        assert (await here.messages(conversation_id))[1] == stopped


@pytest.mark.parametrize("what", ["conversation", "messages"])
async def test_a_reply_is_deleted_at_another_relay(upstream: ScriptedUpstream, url: str, what: str) -> None:
    upstream.play(gated(gate := Gate(), "Some text", "never"))
    async with relays(upstream, url) as (here, there):
        conversation_id = await here.ask()
        async with here.stream(conversation_id) as mine, there.stream(conversation_id) as theirs:
            request = await upstream.called()
            gate.open()
            await mine.until("Some text"), await theirs.until("Some text")
            path = f"/conversations/{conversation_id}"
            if what == "messages":
                path += f"/messages/{(await there.messages(conversation_id))[1]['id']}"
            assert (await there.client.delete(path)).status_code == 204
            await bounded(request.gone.wait(), 2)
            for reader in (mine, theirs):
                assert (await bounded(reader.whole(), 2)).last["status"] == "stopped"
        await here.idle()
        health = await there.health()
        assert (health["conversations"], health["messages"]) == ((0, 0) if what == "conversation" else (1, 1))


async def test_a_question_that_is_edited_at_another_relay_ends_the_reply_to_the_old_one(
    upstream: ScriptedUpstream, url: str
) -> None:
    upstream.queue(gated(Gate(), "never"))
    async with relays(upstream, url) as (here, there):
        conversation_id = await here.ask("Old")
        async with here.stream(conversation_id) as mine:
            await mine.next()
            await there.say(conversation_id, "New", after=None)
            assert (await bounded(mine.whole(), 2)).last["status"] == "stopped"
        assert (await here.read(conversation_id)).content == ANSWER
        assert await there.contents(conversation_id) == ["New", ANSWER]


async def test_what_all_relays_hold_counts_for_each(upstream: ScriptedUpstream, url: str) -> None:
    async with relays(upstream, url, max_conversations=2) as (here, there):
        await here.conversation()
        second = await there.conversation()
        await eventually(lambda: _holds(here, 2))
        assert_problem(await here.client.post("/conversations"), 507)
        assert (await there.client.delete(f"/conversations/{second['id']}")).status_code == 204
        await eventually(lambda: _holds(here, 1))
        await here.conversation()


async def _holds(relay: Relay, conversations: int) -> bool:
    return bool((await relay.health())["conversations"] == conversations)


def chance(seed: int) -> Iterator[int]:
    """How many events a reader takes before it hops."""
    one = random.Random(seed)
    while True:
        yield one.randrange(1, 6)
