"""The HTTP API against a small model: whatever is asked in whatever order, the service and the model agree.

A real uvicorn and a scripted upstream over real sockets. A rule is a request or a few, its effect on the model, and
what the service must answer; after every rule all that can be read must be what the model says.
"""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from openrouter import Timers
from tests.support.problems import assert_problem
from tests.support.readers import Reader
from tests.support.relay import Relay, serving
from tests.support.sse import Block
from tests.support.upstream import USAGE, Gate, Script, ScriptedUpstream, UpstreamRequest, Wire
from tests.support.waiting import eventually

MOST_CONVERSATIONS = 2
ENDS = ["complete", "too long", "error", "cut off", "refused"]

Pieces = list[tuple[str, str]]


@dataclass
class Turn:
    """A message as it should be, and for a reply what its upstream will still do."""

    id: str
    role: str
    content: str = ""
    reasoning: str = ""
    model: str | None = None
    status: str = "complete"
    finish_reason: str | None = None
    usage: dict[str, Any] | None = None
    code: int | None = None
    generation_ids: tuple[str | None, ...] = (None,)  # one of these
    coming: Pieces = field(default_factory=list)
    end: str = ""
    gate: Gate = field(default_factory=Gate)

    def grow(self) -> None:
        """The next piece has come."""
        kind, text = self.coming.pop(0)
        if kind == "content":
            self.content += text
        else:
            self.reasoning += text
        self.generation_ids = self.generation_ids[-1:]

    def finish(self) -> None:
        """Upstream has ended."""
        codes = {"error": 503, "cut off": 502, "refused": 400}
        self.code = codes.get(self.end)
        self.status = "failed" if self.code else "complete"
        self.finish_reason = {"complete": "stop", "too long": "length"}.get(self.end)
        self.usage = USAGE if self.end == "complete" else None
        self.generation_ids = self.generation_ids[-1:]


@dataclass
class Chat:
    """A conversation as it should be."""

    id: str
    created_at: str
    default_model: str
    title: str | None
    system_prompt: str | None
    turns: list[Turn] = field(default_factory=list)

    @property
    def last(self) -> Turn | None:
        return self.turns[-1] if self.turns else None

    @property
    def is_streaming(self) -> bool:
        return self.last is not None and self.last.status == "streaming"

    @property
    def is_owed(self) -> bool:
        return self.last is not None and (self.last.role == "user" or self.last.status == "failed")

    @property
    def shown_title(self) -> str | None:
        automatic = self.turns[0].content.strip().splitlines()[0][:80].rstrip() if self.turns else None
        return self.title or automatic


@dataclass
class Seen:
    """What a reader has when it has the event with this id."""

    chat: Chat
    turn: Turn
    content: str
    reasoning: str
    is_end: bool


def script_of(turn: Turn, pieces: Pieces) -> Script:
    """Every piece and then the end, each when the turn's gate lets it pass."""

    async def script(_: UpstreamRequest, wire: Wire) -> None:
        if turn.end == "refused":
            await turn.gate.passage()
            return await wire.respond(400, {"error": {"code": 400, "message": "No"}})
        await wire.head()
        for kind, text in pieces:
            await turn.gate.passage()
            await (wire.delta(text) if kind == "content" else wire.reasoning(text))
        await turn.gate.passage()
        if turn.end == "complete":
            await wire.finish()
            await wire.done()
        elif turn.end == "too long":
            await wire.finish("length", usage=None)
            await wire.end()
        elif turn.end == "error":
            await wire.error(503, "Overloaded")

    return script


class Follower:
    """A reader of a reply who compares everything with the model and notes which ids were seen."""

    def __init__(self, reader: Reader, place: Seen, seen: dict[str, Seen]) -> None:
        self.reader = reader
        self.turn = place.turn
        self.place = place
        self.seen = seen

    async def start(self) -> None:
        """The first event."""
        assert self.reader.response.headers["x-message-id"] == self.turn.id
        block = await self.reader.next()
        assert (block.event, block.json) == ("start", {"message_id": self.turn.id, "model": self.turn.model})
        self._note(block)

    async def catch_up(self) -> None:
        """Everything that the model knows of; no event of it is missing, doubled or in disorder."""
        while (self.place.content, self.place.reasoning) != (self.turn.content, self.turn.reasoning):
            block = await self.reader.next()
            assert not block.is_terminal
            self.place.content += block.content
            self.place.reasoning += block.json["reasoning"] if block.event == "reasoning" else ""
            assert self.turn.content.startswith(self.place.content)
            assert self.turn.reasoning.startswith(self.place.reasoning)
            self._note(block)

    async def end(self) -> None:
        """The last event and the end of the stream, after everything else."""
        await self.catch_up()
        block = await self.reader.next()
        assert_last_event(block, self.turn)
        self.place.is_end = True
        self._note(block)
        try:
            raise AssertionError(f"more after the last event: {await self.reader.next()}")
        except EOFError:
            pass

    def _note(self, block: Block) -> None:
        assert block.id
        place = self.place
        self.seen[block.id] = Seen(place.chat, place.turn, place.content, place.reasoning, place.is_end)


def assert_last_event(block: Block, turn: Turn) -> None:
    """Assert that the event is the one that ends this reply."""
    if turn.status == "failed":
        assert block.json.keys() == {"error", "message_id"} and block.json["message_id"] == turn.id
        assert_failure(block.json["error"], turn)
        return
    fields = {"model": turn.model, "status": turn.status, "finish_reason": turn.finish_reason, "usage": turn.usage}
    assert block.json == {"done": True, "message_id": turn.id, **fields}


def assert_failure(error: dict[str, Any], turn: Turn) -> None:
    """Assert that the error is this reply's."""
    assert error.keys() == {"code", "message", "retryable", "retry_after"} and error["message"]
    assert (error["code"], error["retryable"], error["retry_after"]) == (turn.code, turn.code != 400, None)


def assert_message(message: dict[str, Any], turn: Turn) -> None:
    """Assert that the message is as the model has it."""
    message = dict(message)
    error = message.pop("error")
    if turn.code is None:
        assert error is None
    else:
        assert_failure(error, turn)
    assert message.pop("generation_id") in (turn.generation_ids if turn.status != "streaming" else (None,))
    assert message.pop("timestamp")
    assert message == {
        "id": turn.id,
        "role": turn.role,
        "content": turn.content,
        "model": turn.model,
        "status": turn.status,
        "finish_reason": turn.finish_reason,
        "reasoning": turn.reasoning or None,
        "usage": turn.usage,
    }


SETTINGS = settings(max_examples=50, stateful_step_count=30, deadline=None, suppress_health_check=[*HealthCheck])
CHOICES = st.integers(0, 11)
MODELS = st.none() | st.sampled_from(["a/one", "b/two:free"])
TEXTS = st.text(st.sampled_from("ab é😀\u2028\n"), min_size=1, max_size=12).filter(str.strip)
KINDS = st.sampled_from(["content", "reasoning"])
PIECES = st.lists(st.tuples(KINDS, st.text("ab é😀\u2028\n\r", min_size=1, max_size=5)), max_size=5)
CHANGES = st.fixed_dictionaries(
    {}, optional={"default_model": st.just("c/three"), "title": st.none() | TEXTS, "system_prompt": st.none() | TEXTS}
)


class Api(RuleBasedStateMachine):
    """One service, its upstream, and the model of what is in it."""

    runner: asyncio.Runner
    upstream: ScriptedUpstream
    relay: Relay

    def __init__(self) -> None:
        super().__init__()
        self.chats: list[Chat] = []
        """The one that changed last is the last."""
        self.seen: dict[str, Seen] = {}
        self.asked_before = len(self.upstream.requests)
        self.replies = self.steps = 0

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Do it; between two rules time stands still for the service."""
        return self.runner.run(work)

    def teardown(self) -> None:
        """Leave an empty service to the next example, whatever the model thinks is in it."""
        self.run(self._empty())

    async def _empty(self) -> None:
        for conversation in (await self.relay.client.get("/conversations")).json()["conversations"]:
            await self.relay.client.delete(f"/conversations/{conversation['id']}")

    def has_conversations(self) -> bool:
        return bool(self.chats)

    def has_room(self) -> bool:
        return len(self.chats) < MOST_CONVERSATIONS

    def has_reply_in_progress(self) -> bool:
        return any(chat.is_streaming for chat in self.chats)

    def has_idle_conversation(self) -> bool:
        return any(not chat.is_streaming for chat in self.chats)

    def has_seen_events(self) -> bool:
        return bool(self.seen)

    # Conversations

    @initialize(body=CHANGES)
    def make_the_first(self, body: dict[str, Any]) -> None:
        self.run(self._make(body))

    @precondition(has_room)
    @rule(body=CHANGES)
    def make(self, body: dict[str, Any]) -> None:
        self.run(self._make(body))

    async def _make(self, body: dict[str, Any]) -> None:
        response = await self.relay.client.post("/conversations", json=body)
        assert response.status_code == 201
        made = response.json()
        assert response.headers["location"] == f"/conversations/{made['id']}"
        default_model = body.get("default_model", "openrouter/auto")
        chat = Chat(made["id"], made["created_at"], default_model, body.get("title"), body.get("system_prompt"))
        self.chats.append(chat)
        assert_conversation(made, chat)

    @precondition(has_conversations)
    @rule(which=CHOICES, place=CHOICES, changes=CHANGES | CHANGES | st.none())
    def change_or_delete(self, which: int, place: int, changes: dict[str, Any] | None) -> None:
        """Some of its fields, some of its messages, or all of it."""
        chat = self._pick(which)
        if changes is not None:
            self._change(chat, changes)
        elif place := place % (len(chat.turns) + 1):
            self._delete_messages(chat, place - 1)
        else:
            self._delete(chat)

    def _change(self, chat: Chat, changes: dict[str, Any]) -> None:
        for name, value in changes.items():
            setattr(chat, name, value)
        assert_conversation(self._request("PATCH", chat, json=changes).json(), chat)
        self._touch(chat)

    def _delete_messages(self, chat: Chat, place: int) -> None:
        gone = chat.turns[place].id
        self._request("DELETE", chat, f"/messages/{gone}", status=204)
        assert_problem(self._request("DELETE", chat, f"/messages/{gone}", status=404), 404)
        del chat.turns[place:]
        self._touch(chat)

    def _delete(self, chat: Chat) -> None:
        self._request("DELETE", chat, status=204)
        assert_problem(self._request("DELETE", chat, status=404), 404)
        self.chats.remove(chat)

    # Messages

    @precondition(has_conversations)
    @rule(which=CHOICES, content=TEXTS, model=MODELS)
    def say(self, which: int, content: str, model: str | None) -> None:
        chat = self._pick(which)
        if chat.is_streaming:
            body = {"content": content, "model": model}
            assert_problem(self._request("POST", chat, "/messages", status=409, json=body), 409)
        else:
            self._say(chat, content, model)

    def _say(self, chat: Chat, content: str, model: str | None) -> None:
        body = {"content": content, "model": model}
        message = self._request("POST", chat, "/messages", status=201, json=body).json()
        chat.turns.append(Turn(message["id"], "user", content, model=model))
        assert_message(message, chat.turns[-1])
        self._touch(chat)

    # Replies

    @precondition(has_idle_conversation)
    @rule(
        which=CHOICES,
        question=st.none() | st.tuples(TEXTS, MODELS),
        pieces=PIECES,
        end=st.sampled_from(ENDS),
        model=MODELS,
        stays=st.booleans(),
    )
    def ask(self, which: int, question: Any, pieces: Pieces, end: str, model: str | None, stays: bool) -> None:
        """A reader starts the reply to a new question or to the last, and stays to its end or leaves at once."""
        idle = [chat for chat in self.chats if not chat.is_streaming]
        chat = idle[which % len(idle)]
        if question or not chat.is_owed:
            self._say(chat, *(question or ("Why?", None)))
        self._request("HEAD", chat, "/stream")
        turn = Turn("", "assistant", status="streaming", end=end, coming=[] if end == "refused" else pieces)
        self.run(self._ask(chat, turn, model, stays))

    async def _ask(self, chat: Chat, turn: Turn, model: str | None, stays: bool) -> None:
        if chat.turns[-1].status == "failed":
            chat.turns.pop()
        asked = next(turn.model for turn in reversed(chat.turns) if turn.role == "user")
        turn.model = model or asked or chat.default_model
        history = upstream_sees(chat)
        self.upstream.queue(script_of(turn, list(turn.coming)))
        async with self.relay.stream(chat.id, params={"model": model} if model else None) as reader:
            turn.id = reader.response.headers["x-message-id"]
            follower = Follower(reader, Seen(chat, turn, "", "", False), self.seen)
            await follower.start()
            self.replies += 1
            request = await self.upstream.called(self.asked_before + self.replies)
            await turn.gate.reached()
            turn.generation_ids = (None,) if turn.end == "refused" else (None, request.generation_id)
            if stays:
                self._open_the_rest(turn)
                await follower.end()
        assert (request.body["model"], request.body["messages"]) == (turn.model, history)
        chat.turns.append(turn)
        self._touch(chat)

    @precondition(has_reply_in_progress)
    @rule(which=CHOICES, pieces=st.integers(1, 5) | st.none(), is_read=st.booleans())
    def go_on(self, which: int, pieces: int | None, is_read: bool) -> None:
        """Some text arrives and nobody reads it, or the rest of it, with a reader that joined late or without any."""
        streaming = [chat for chat in self.chats if chat.is_streaming]
        chat = streaming[which % len(streaming)]
        turn = chat.turns[-1]
        if pieces is not None:
            self._let_arrive(chat, turn, min(pieces, len(turn.coming)))
        else:
            self.run(self._end_read(chat, turn) if is_read else self._end_unread(chat, turn))
            self._touch(chat)

    def _let_arrive(self, chat: Chat, turn: Turn, pieces: int) -> None:
        for _ in range(pieces):
            turn.gate.open()
            turn.grow()
        self.run(self._until_shown(chat, turn))

    async def _until_shown(self, chat: Chat, turn: Turn) -> None:
        async def is_shown() -> bool:
            message = (await self.relay.messages(chat.id))[-1]
            shown = message["content"], message["reasoning"] or "", message["status"]
            return shown == (turn.content, turn.reasoning, turn.status)

        await eventually(is_shown)

    async def _end_read(self, chat: Chat, turn: Turn) -> None:
        async with self._following(Seen(chat, turn, "", "", False)) as follower:
            await follower.catch_up()
            self._open_the_rest(turn)
            await follower.end()

    async def _end_unread(self, chat: Chat, turn: Turn) -> None:
        self._open_the_rest(turn)
        await self._until_shown(chat, turn)

    def _open_the_rest(self, turn: Turn) -> None:
        while turn.coming:
            turn.grow()
        turn.finish()
        turn.gate.open_wide()

    @precondition(has_conversations)
    @rule(which=CHOICES)
    def read_what_exists_or_nothing(self, which: int) -> None:
        """Without a `Last-Event-ID`: a reply in progress is joined; where nothing is owed, nothing is streamed."""
        chat = self._pick(which)
        if chat.is_streaming:
            self.run(self._join(Seen(chat, chat.turns[-1], "", "", False)))
        elif not chat.is_owed:
            assert_problem(self._request("GET", chat, "/stream", status=409), 409)

    async def _join(self, place: Seen, last_event_id: str | None = None) -> None:
        async with self._following(place, last_event_id) as follower:
            await (follower.catch_up() if place.turn.status == "streaming" else follower.end())

    @precondition(has_seen_events)
    @rule(which=CHOICES, in_query=st.booleans())
    def resume(self, which: int, in_query: bool) -> None:
        """From an event that somebody has seen at any time."""
        event_id, place = [*self.seen.items()][-1 - which % len(self.seen)]
        if place.chat in self.chats and place.turn in place.chat.turns and not place.is_end:
            place = Seen(place.chat, place.turn, place.content, place.reasoning, False)
            self.run(self._join(place, event_id))
            return
        status = 204 if place.chat in self.chats else 404
        how = {"params": {"last_event_id": event_id}} if in_query else {"headers": {"Last-Event-ID": event_id}}
        self._request("GET", place.chat, "/stream", status=status, **how)

    @precondition(has_conversations)
    @rule(which=CHOICES)
    def stop(self, which: int) -> None:
        chat = self._pick(which)
        if not chat.is_streaming:
            self._request("DELETE", chat, "/stream", status=204)
            return
        turn = chat.turns[-1]
        turn.status = "stopped"
        assert_message(self._request("DELETE", chat, "/stream").json(), turn)
        self._request("DELETE", chat, "/stream", status=204)
        self._touch(chat)

    # What can be read

    @invariant()
    def everything_is_as_the_model_says(self) -> None:
        self.run(self._compare())

    async def _compare(self) -> None:
        assert len(self.upstream.requests) == self.asked_before + self.replies
        assert await self.relay.health() == {
            "status": "ok",
            "conversations": len(self.chats),
            "messages": sum(len(chat.turns) for chat in self.chats),
            "replies_in_progress": sum(chat.is_streaming for chat in self.chats),
        }
        for chat in self.chats:
            messages = await self.relay.messages(chat.id)
            assert len(messages) == len(chat.turns)
            for message, turn in zip(messages, chat.turns, strict=True):
                assert_message(message, turn)
        self.steps += 1
        if self.steps % 3 == 0:
            await self._list_pages(1 + self.steps % 2)

    async def _list_pages(self, limit: int) -> None:
        listed: list[dict[str, Any]] = []
        cursor = ""
        while cursor is not None:
            response = await self.relay.client.get("/conversations", params={"limit": limit, "cursor": cursor})
            page, cursor = response.json()["conversations"], response.json()["next_cursor"]
            assert len(page) == limit or cursor is None
            listed += page
        assert len(listed) == len(self.chats)
        for conversation, chat in zip(listed, reversed(self.chats), strict=True):
            assert_conversation(conversation, chat)
        times = [conversation["updated_at"] for conversation in listed]
        assert times == sorted(set(times), reverse=True)

    # Short forms

    def _pick(self, which: int) -> Chat:
        return self.chats[which % len(self.chats)]

    def _touch(self, chat: Chat) -> None:
        self.chats.remove(chat)
        self.chats.append(chat)

    def _request(self, method: str, chat: Chat, path: str = "", *, status: int = 200, **more: Any) -> httpx.Response:
        url = f"/conversations/{chat.id}{path}"
        response: httpx.Response = self.run(self.relay.client.request(method, url, **more))
        assert response.status_code == status, response.text
        return response

    @asynccontextmanager
    async def _following(self, place: Seen, last_event_id: str | None = None) -> AsyncIterator[Follower]:
        async with self.relay.stream(place.chat.id, last_event_id) as reader:
            follower = Follower(reader, place, self.seen)
            await follower.start()
            yield follower


def upstream_sees(chat: Chat) -> list[dict[str, str]]:
    """The system prompt and every turn that has content, failed replies left out, neighbours of one role joined."""
    seen = [{"role": "system", "content": chat.system_prompt}] if chat.system_prompt else []
    for turn in chat.turns:
        if turn.status == "failed" or not turn.content:
            continue
        if seen and seen[-1]["role"] == turn.role:
            seen[-1]["content"] += "\n\n" + turn.content
        else:
            seen.append({"role": turn.role, "content": turn.content})
    return seen


def assert_conversation(conversation: dict[str, Any], chat: Chat) -> None:
    """Assert that the conversation is as the model has it."""
    conversation = dict(conversation)
    assert conversation.pop("updated_at") >= chat.created_at
    assert conversation == {
        "id": chat.id,
        "title": chat.shown_title,
        "system_prompt": chat.system_prompt,
        "default_model": chat.default_model,
        "created_at": chat.created_at,
        "message_count": len(chat.turns),
    }


def test_the_api_agrees_with_its_model_whatever_is_asked_in_whatever_order() -> None:
    opened = AsyncExitStack()
    with asyncio.Runner() as Api.runner:
        Api.upstream = Api.runner.run(opened.enter_async_context(ScriptedUpstream()))
        Api.relay = Api.runner.run(opened.enter_async_context(serving(Api.upstream, timers=Timers(retries=()))))
        try:
            run_state_machine_as_test(Api, settings=SETTINGS)
        finally:
            Api.runner.run(opened.aclose())
