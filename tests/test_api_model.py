"""The HTTP API against a small model: whatever is asked in whatever order, the service and the model agree.

A real uvicorn and a scripted upstream over real sockets. A rule is a request or a few, its effect on the model, and
what the service must answer; after every rule all that can be read must be what the model says.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import groupby
from types import EllipsisType
from typing import Any

import httpx
import pytest
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
from tests.support.contract import nulls
from tests.support.engines import on_dicts, on_each_engine
from tests.support.problems import assert_problem
from tests.support.readers import Reader
from tests.support.relay import EVENTS, Relay, serving
from tests.support.sse import Block
from tests.support.upstream import USAGE, Gate, Script, ScriptedUpstream, UpstreamRequest, Wire
from tests.support.waiting import eventually

pytestmark = on_each_engine

ENDS = ["complete", "cited", "too long", "error", "cut off", "refused"]
LIMITS: dict[str, int] = {
    "max_conversations": 2,
    "max_messages": 2_000,
    "max_replies": 1_000,
    "max_store_bytes": 20_000,
}
NARROW = LIMITS | {"max_messages": 4, "max_replies": 1}

CITED = {"url": "https://example.com/é", "title": "A page", "start_index": 0, "end_index": 3}
SOURCES = [{"type": "url_citation", **CITED}]

Pieces = list[tuple[str, str]]
Options = dict[str, Any] | None


@dataclass(eq=False)
class Turn:
    """A message as it should be, and for a reply what its upstream will still do."""

    id: str
    role: str
    content: str = ""
    reasoning: str = ""
    model: str | None = None
    options: Options = None
    question_id: str | None = None
    status: str = "complete"
    finish_reason: str | None = None
    usage: dict[str, Any] | None = None
    code: int | None = None
    generation_ids: tuple[str | None, ...] = (None,)  # one of these
    is_served: bool = False  # upstream has said by whom
    annotations: list[dict[str, Any]] | None = None
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
        self.is_served = True
        self.generation_ids = self.generation_ids[-1:]

    def finish(self) -> None:
        """Upstream has ended."""
        codes = {"error": 503, "cut off": 502, "refused": 400}
        self.code = codes.get(self.end)
        self.status = "failed" if self.code else "complete"
        self.finish_reason = {"complete": "stop", "cited": "stop", "too long": "length"}.get(self.end)
        self.usage = USAGE if self.finish_reason == "stop" else None
        self.annotations = SOURCES if self.end == "cited" else None
        self.is_served = self.is_served or self.end not in ("cut off", "refused")
        self.generation_ids = self.generation_ids[-1:]

    @property
    def served(self) -> dict[str, str | None]:
        """What is told of who made it."""
        is_told = self.is_served and self.status != "streaming"
        return {
            "served_model": f"{self.model}-20260224" if is_told else None,
            "provider": "DeepInfra" if is_told else None,
        }


@dataclass
class Question:
    """What is asked, as its request has it."""

    content: str
    model: str | None = None
    options: Options = None
    id: str | None = None
    after: str | EllipsisType | None = ...

    @property
    def body(self) -> dict[str, Any]:
        after = {} if self.after is ... else {"after": self.after}
        return {"content": self.content, "model": self.model, "options": self.options, "id": self.id} | after


@dataclass
class Plan:
    """What upstream will answer, and whether the reader who has it begun stays to its end or leaves at once."""

    pieces: Pieces
    end: str
    stays: bool


@dataclass(eq=False)
class Chat:
    """A conversation as it should be."""

    id: str
    created_at: str
    default_model: str
    title: str | None
    system_prompt: str | None
    options: Options = None
    cost: float | None = None
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
        first = next((turn.content.strip().splitlines()[0] for turn in self.turns if turn.role == "user"), None)
        return self.title or (first and first[:80].rstrip())

    @property
    def bytes(self) -> int:
        texts = [self.title, self.system_prompt, *(turn.content + turn.reasoning for turn in self.turns)]
        values = [self.options, *(value for turn in self.turns for value in (turn.options, turn.annotations))]
        texts += [json.dumps(value) for value in values if value is not None]
        return sum(len((text or "").encode()) for text in texts)

    @property
    def last_question(self) -> Turn:
        return next(turn for turn in reversed(self.turns) if turn.role == "user")

    def find(self, id: str | EllipsisType | None) -> Turn | None:
        return next((turn for turn in self.turns if turn.id == id), None)

    def kept_by(self, question: Question) -> list[Turn]:
        """What stays when it is added."""
        if question.after is ...:
            return list(self.turns)
        place = self.find(question.after)
        return self.turns[: self.turns.index(place) + 1] if place else []

    def reply_to(self, question: Turn) -> Turn | None:
        behind = self.turns[self.turns.index(question) :]
        return next((turn for turn in behind if turn.role == "assistant"), None)


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
        if turn.end == "cited":
            await wire.event(wire.chunk({"annotations": [{"type": "url_citation", "url_citation": CITED}]}))
        if turn.end in ("complete", "cited"):
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
        turn = self.turn
        start = {"message_id": turn.id, "model": turn.model, "question_id": turn.question_id}
        assert (block.event, block.json) == ("start", start)
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
    fields: dict[str, Any] = {
        "model": turn.model,
        "status": turn.status,
        "finish_reason": turn.finish_reason,
        "usage": turn.usage,
    }
    fields |= {"annotations": turn.annotations, **turn.served}
    assert block.json == nulls("DoneEvent") | {"done": True, "message_id": turn.id, **fields}


def assert_failure(error: dict[str, Any], turn: Turn) -> None:
    """Assert that the error is this reply's."""
    assert error.keys() == {"code", "message", "retryable", "retry_after"} and error["message"]
    assert (error["code"], error["retryable"], error["retry_after"]) == (turn.code, turn.code != 400, None)


def assert_message(message: dict[str, Any], turn: Turn) -> None:
    """Assert that the message is as the model has it."""
    apart = {name: message[name] for name in ("error", "generation_id", "timestamp", "last_event_id")}
    if turn.code is None:
        assert apart["error"] is None
    else:
        assert_failure(apart["error"], turn)
    assert apart["generation_id"] in (turn.generation_ids if turn.status != "streaming" else (None,))
    assert apart["timestamp"]
    assert (apart["last_event_id"] is not None) == (turn.status == "streaming")
    assert message == nulls("Message") | apart | {
        "id": turn.id,
        "role": turn.role,
        "content": turn.content,
        "model": turn.model,
        "options": turn.options,
        "status": turn.status,
        "finish_reason": turn.finish_reason,
        "reasoning": turn.reasoning or None,
        "usage": turn.usage,
        "annotations": turn.annotations,
        **turn.served,
    }


SETTINGS = settings(stateful_step_count=30, deadline=None, suppress_health_check=[*HealthCheck])
CHOICES = st.integers(0, 11)
MODELS = st.none() | st.sampled_from(["a/one", "b/two:free"])
TEXTS = st.text(st.sampled_from("ab é😀\u2028\n"), min_size=1, max_size=12).filter(str.strip)
KINDS = st.sampled_from(["content", "reasoning"])
PIECES = st.lists(st.tuples(KINDS, st.text("ab é😀\u2028\n\r", min_size=1, max_size=5)), max_size=5)
OPTIONS = st.none() | st.fixed_dictionaries(
    {}, optional={"seed": st.none() | st.integers(0, 3), "stop": st.none() | st.just(["é"]), "max_tokens": st.just(9)}
)
CHANGES = st.fixed_dictionaries(
    {},
    optional={
        "default_model": st.just("c/three"),
        "title": st.none() | TEXTS,
        "system_prompt": st.none() | TEXTS,
        "options": OPTIONS,
    },
)


PLANS = st.builds(Plan, PIECES, st.sampled_from(ENDS), st.sampled_from([True, False, False]))
NEW_IDS = st.none() | st.sampled_from(["q-1", "Q_2"])
IDS = NEW_IDS | CHOICES
PLACES = st.none() | st.just("nowhere") | CHOICES | CHOICES
TURNS = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant"]), "content": TEXTS}, optional={"model": MODELS}
)
BODIES: st.SearchStrategy[dict[str, Any]] = st.builds(
    dict,
    CHANGES,
    id=st.none() | st.sampled_from(["one", "two"]),
    messages=st.just([]) | st.lists(TURNS, max_size=3) | st.lists(TURNS, min_size=3, max_size=5),
)


class Api(RuleBasedStateMachine):
    """One service, its upstream, and the model of what is in it."""

    runner: asyncio.Runner
    upstream: ScriptedUpstream
    relays: list[tuple[Relay, dict[str, int]]]
    """With their limits."""

    def __init__(self) -> None:
        super().__init__()
        self.relay, self.limits = self.relays[0]
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

    def has_reply_in_progress(self) -> bool:
        return any(chat.is_streaming for chat in self.chats)

    def has_reply_to_start(self) -> bool:
        return any(chat.is_owed for chat in self.chats)

    def has_questions(self) -> bool:
        return any(turn.role == "user" for chat in self.chats for turn in chat.turns)

    def has_seen_events(self) -> bool:
        return bool(self.seen)

    # Conversations

    @initialize(is_narrow=st.booleans(), body=BODIES)
    def make_the_first(self, is_narrow: bool, body: dict[str, Any]) -> None:
        self.relay, self.limits = self.relays[is_narrow]
        self.run(self._make(body))

    @rule(body=BODIES)
    def make(self, body: dict[str, Any]) -> None:
        """With messages or without; one whose id is there already is that one, even where there is no room."""
        self.run(self._make(body))

    async def _make(self, body: dict[str, Any]) -> None:
        response = await self.relay.client.post("/conversations", json=body)
        known = next((chat for chat in self.chats if chat.id == body["id"]), None)
        if len(body["messages"]) > self.limits["max_messages"]:
            assert_problem(response, 422, "MAX_MESSAGES")
        elif known is None and len(self.chats) == self.limits["max_conversations"]:
            assert_problem(response, 507, "MAX_CONVERSATIONS")
        else:
            assert response.status_code == (200 if known else 201)
            made = response.json()
            assert response.headers["location"] == f"/conversations/{made['id']}"
            assert_conversation(made, known or await self._made(made, body))

    async def _made(self, made: dict[str, Any], body: dict[str, Any]) -> Chat:
        assert made["id"] == (body["id"] or made["id"])
        default_model = body.get("default_model", "openrouter/auto")
        chat = Chat(made["id"], made["created_at"], default_model, body.get("title"), body.get("system_prompt"))
        chat.options = body.get("options")
        messages = await self.relay.messages(chat.id)
        for turn, message in zip(body["messages"], messages, strict=True):
            chat.turns.append(Turn(message["id"], **turn))
        self.chats.append(chat)
        return chat

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
    @rule(which=CHOICES, content=TEXTS, model=MODELS, options=OPTIONS, id=IDS, plan=PLANS | st.none())
    def ask(self, which: int, content: str, model: str | None, options: Options, id: Any, plan: Plan | None) -> None:
        """At the end; with a plan its reply is begun with it."""
        chat = self._pick(which)
        self._ask(chat, Question(content, model, options, self._id_in(chat, id)), plan)

    @precondition(has_conversations)
    @rule(which=CHOICES, content=TEXTS, id=NEW_IDS, after=PLACES)
    def edit(self, which: int, content: str, id: str | None, after: Any) -> None:
        """Behind a message."""
        self._edit(which, content, id, after, None)

    @precondition(has_conversations)
    @rule(which=CHOICES, content=TEXTS, id=NEW_IDS, after=PLACES, plan=PLANS)
    def edit_and_resend(self, which: int, content: str, id: str | None, after: Any, plan: Plan) -> None:
        """Behind a message, and its reply is begun with it."""
        self._edit(which, content, id, after, plan)

    def _edit(self, which: int, content: str, id: str | None, after: Any, plan: Plan | None) -> None:
        chats = [chat for chat in self.chats if chat.is_streaming] or self.chats
        chat = chats[which % len(chats)]
        self._ask(chat, Question(content, None, None, id, self._id_in(chat, after)), plan)

    @precondition(has_questions)
    @rule(
        which=CHOICES,
        model=st.just(...) | MODELS,
        options=st.just(...) | st.just(...) | OPTIONS,
        after=st.just(...) | PLACES,
        plan=PLANS | st.none(),
    )
    def ask_again(self, which: int, model: Any, options: Any, after: Any, plan: Plan | None) -> None:
        """Whatever has become of it: never a second message, never a second reply, and nothing is removed."""
        asked = [(chat, turn) for chat in self.chats for turn in chat.turns if turn.role == "user"]
        chat, turn = asked[which % len(asked)]
        model = turn.model if model is ... else model
        options = turn.options if options is ... else options
        self._ask(chat, Question(turn.content, model, options, turn.id, self._id_in(chat, after)), plan)

    def _ask(self, chat: Chat, question: Question, plan: Plan | None) -> None:
        known = chat.find(question.id)
        if status := self._refusal(chat, question, plan):
            assert_problem(self._post(chat, question, plan, status), status)
        elif known is None:
            self._add(chat, question, plan)
        elif plan is None:
            assert_message(self._post(chat, question, plan, 200).json(), known)
        elif reply := chat.reply_to(known):
            self.run(self._join(Seen(chat, reply, "", "", False), question=question))
        else:
            self.run(self._begin(chat, plan, self._asking(chat, question)))

    def _refusal(self, chat: Chat, question: Question, plan: Plan | None) -> int | None:
        """With which status it is refused."""
        known, place = chat.find(question.id), chat.find(question.after)
        asked = ("user", question.content, question.model, question.options)
        is_repeated = known is not None and (known.role, known.content, known.model, known.options) == asked
        if known and not is_repeated:
            return 409
        if known and (plan is None or chat.reply_to(known)):
            return None
        if plan and self._is_crowded(in_place_of=chat if question.after is not ... else None):
            return 503
        if known:
            return 507 if len(chat.turns) == self.limits["max_messages"] else None
        if question.after is ... or (place and place.status == "streaming"):
            if chat.is_streaming:
                return 409
        elif question.after is not None and place is None:
            return 404
        return 507 if len(chat.kept_by(question)) + 1 + bool(plan) > self.limits["max_messages"] else None

    def _is_crowded(self, in_place_of: Chat | None = None) -> bool:
        return sum(chat.is_streaming for chat in self.chats if chat is not in_place_of) >= self.limits["max_replies"]

    def _add(self, chat: Chat, question: Question, plan: Plan | None) -> None:
        turns = chat.kept_by(question)
        asked = Turn(question.id or "", "user", question.content, model=question.model, options=question.options)
        if plan:
            chat.turns = [*turns, asked]
            self.run(self._begin(chat, plan, self._asking(chat, question)))
        else:
            message = self._post(chat, question, plan, 201).json()
            asked.id = asked.id or message["id"]
            chat.turns = [*turns, asked]
            assert_message(message, asked)
            self._touch(chat)

    def _post(self, chat: Chat, question: Question, plan: Plan | None, status: int) -> httpx.Response:
        headers = EVENTS if plan else {"Accept": "application/json"}
        return self._request("POST", chat, "/messages", status=status, json=question.body, headers=headers)

    def _asking(self, chat: Chat, question: Question) -> AbstractAsyncContextManager[Reader]:
        return self._reader("POST", chat, "/messages", json=question.body, headers=EVENTS)

    def _id_in(self, chat: Chat, choice: Any) -> Any:
        """A number stands for one of its messages."""
        if not isinstance(choice, int):
            return choice
        return chat.turns[choice % len(chat.turns)].id if chat.turns else None

    @precondition(has_conversations)
    @rule(which=CHOICES, content=TEXTS, plan=PLANS)
    def ask_where_the_store_is_full(self, which: int, content: str, plan: Plan) -> None:
        """Filled to the last byte, with a system prompt, for as long as this takes."""
        chat = self._pick(which)
        before, room = chat.system_prompt, self.limits["max_store_bytes"] - sum(chat.bytes for chat in self.chats)
        room += len((before or "").encode())
        assert_problem(self._request("PATCH", chat, status=507, json={"system_prompt": "x" * (room + 1)}), 507)
        self._change(chat, {"system_prompt": "x" * room})
        for form in (None, plan):
            if not self._refusal(chat, question := Question(content), form):
                assert_problem(self._post(chat, question, form, 507), 507, "MAX_STORE_BYTES")
            for turn in [turn for turn in chat.turns if turn.role == "user"][-1:]:
                if form is None or chat.reply_to(turn):
                    self._ask(chat, Question(turn.content, turn.model, turn.options, turn.id, None), form)
        self._change(chat, {"system_prompt": before})

    # Replies

    @precondition(has_reply_to_start)
    @rule(which=CHOICES, model=MODELS, plan=PLANS)
    def start(self, which: int, model: str | None, plan: Plan) -> None:
        """The reply to the last question, or another one in place of one that failed."""
        owed = [chat for chat in self.chats if chat.is_owed]
        chat = owed[which % len(owed)]
        self._request("HEAD", chat, "/stream")
        params = {"model": model} if model else {}
        is_full = chat.turns[-1].role == "user" and len(chat.turns) == self.limits["max_messages"]
        if status := 503 if self._is_crowded() else 507 if is_full else None:
            assert_problem(self._request("GET", chat, "/stream", status=status, params=params), status)
            return
        if chat.turns[-1].status == "failed":
            chat.turns.pop()
        self.run(self._begin(chat, plan, self._reader("GET", chat, "/stream", params=params), model))

    async def _begin(
        self, chat: Chat, plan: Plan, opening: AbstractAsyncContextManager[Reader], model: str | None = None
    ) -> None:
        question = chat.last_question
        turn = Turn("", "assistant", model=model or question.model or chat.default_model, status="streaming")
        turn.end, turn.coming = plan.end, [] if plan.end == "refused" else list(plan.pieces)
        self.upstream.queue(script_of(turn, list(turn.coming)))
        async with opening as reader:
            turn.id = reader.response.headers["x-message-id"]
            if not question.id:
                question.id = (await self.relay.messages(chat.id))[-2]["id"]
            turn.question_id = question.id
            follower = Follower(reader, Seen(chat, turn, "", "", False), self.seen)
            await follower.start()
            self.replies += 1
            request = await self.upstream.called(self.asked_before + self.replies)
            await turn.gate.reached()
            turn.generation_ids = (None,) if turn.end == "refused" else (None, request.generation_id)
            if plan.stays:
                self._open_the_rest(chat, turn)
                await follower.end()
        assert request.headers["x-session-id"] == chat.id
        assert joined(request.body.pop("messages")) == upstream_sees(chat)
        own = {"model": turn.model, "stream": True, "stream_options": {"include_usage": True}}
        assert request.body == {**own, **options_of(chat)}
        chat.turns.append(turn)
        self._touch(chat)

    @precondition(has_reply_in_progress)
    @rule(which=CHOICES, pieces=st.integers(1, 5) | st.none(), reader=st.sampled_from(["new", "back", None]))
    def go_on(self, which: int, pieces: int | None, reader: str | None) -> None:
        """Some text arrives and nobody reads it, or all the rest: with a reader who is new or comes back, or none."""
        streaming = [chat for chat in self.chats if chat.is_streaming]
        chat = streaming[which % len(streaming)]
        turn = chat.turns[-1]
        if pieces is not None:
            self._let_arrive(chat, turn, min(pieces, len(turn.coming)))
        else:
            self.run(self._end_read(chat, turn, reader == "back") if reader else self._end_unread(chat, turn))
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

    async def _end_read(self, chat: Chat, turn: Turn, is_back: bool) -> None:
        place, headers = Seen(chat, turn, "", "", False), {}
        if is_back:  # a page that was loaded again
            place.content, place.reasoning = turn.content, turn.reasoning
            headers["Last-Event-ID"] = (await self.relay.messages(chat.id))[-1]["last_event_id"]
        async with self._following(place, headers=headers) as follower:
            await follower.catch_up()
            self._open_the_rest(chat, turn)
            await follower.end()

    async def _end_unread(self, chat: Chat, turn: Turn) -> None:
        self._open_the_rest(chat, turn)
        await self._until_shown(chat, turn)

    def _open_the_rest(self, chat: Chat, turn: Turn) -> None:
        while turn.coming:
            turn.grow()
        turn.finish()
        if turn.usage:
            chat.cost = (chat.cost or 0) + turn.usage["cost"]
        turn.gate.open_wide()

    @precondition(has_conversations)
    @rule(which=CHOICES, join=st.sampled_from(["true", "false"]))
    def read_what_exists_or_nothing(self, which: int, join: str) -> None:
        """Without a `Last-Event-ID`: a reply in progress is joined; where nothing is owed, nothing is streamed."""
        chat, params = self._pick(which), {"join": join}
        if chat.is_streaming:
            self.run(self._join(Seen(chat, chat.turns[-1], "", "", False), params=params))
        elif join == "true":
            self._request("GET", chat, "/stream", status=204, params=params)
        elif not chat.is_owed:
            assert_problem(self._request("GET", chat, "/stream", status=409, params=params), 409)

    async def _join(self, place: Seen, *, question: Question | None = None, **how: Any) -> None:
        async with self._following(place, question=question, **how) as follower:
            await (follower.catch_up() if place.turn.status == "streaming" else follower.end())

    @precondition(has_seen_events)
    @rule(which=CHOICES, how=st.sampled_from(["header", "last_event_id", "lastEventId"]), is_post=st.booleans())
    def resume(self, which: int, how: str, is_post: bool) -> None:
        """From an event that somebody has seen at any time; some clients repeat the POST that they began with."""
        event_id, place = [*self.seen.items()][-1 - which % len(self.seen)]
        request: dict[str, Any] = {"headers": {"Last-Event-ID": event_id}} if how == "header" else {}
        request |= {} if how == "header" else {"params": {how: event_id}}
        request |= {"content": b"{"} if is_post else {}
        if place.chat in self.chats and place.turn in place.chat.turns and not place.is_end:
            place = Seen(place.chat, place.turn, place.content, place.reasoning, False)
            self.run(self._join(place, **request))
            return
        status = 204 if any(chat.id == place.chat.id for chat in self.chats) else 404
        method, path = ("POST", "/messages") if is_post else ("GET", "/stream")
        self._request(method, place.chat, path, status=status, **request)

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
        assert (await self.relay.health()).items() >= {
            "status": "ok",
            "conversations": len(self.chats),
            "messages": sum(len(chat.turns) for chat in self.chats),
        }.items()
        await eventually(self._counts_its_replies)
        for chat in self.chats:
            messages = await self.relay.messages(chat.id)
            assert len(messages) == len(chat.turns)
            for message, turn in zip(messages, chat.turns, strict=True):
                assert_message(message, turn)
                if id := message["last_event_id"]:
                    seen = self.seen.setdefault(id, Seen(chat, turn, turn.content, turn.reasoning, False))
                    assert (seen.turn, seen.content, seen.reasoning) == (turn, turn.content, turn.reasoning)
        self.steps += 1
        if self.steps % 3 == 0:
            await self._list_pages(1 + self.steps % 2)

    async def _counts_its_replies(self) -> bool:
        """One that was removed may have to look first whether it has been."""
        in_progress = sum(chat.is_streaming for chat in self.chats)
        return bool((await self.relay.health())["replies_in_progress"] == in_progress)

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
    async def _following(self, place: Seen, *, question: Question | None = None, **how: Any) -> AsyncIterator[Follower]:
        opening = self._asking(place.chat, question) if question else None
        if opening is None and "content" in how:
            opening = self._reader("POST", place.chat, "/messages", **how)
        async with opening or self._reader("GET", place.chat, "/stream", **how) as reader:
            follower = Follower(reader, place, self.seen)
            await follower.start()
            yield follower

    @asynccontextmanager
    async def _reader(self, method: str, chat: Chat, path: str, **how: Any) -> AsyncIterator[Reader]:
        async with self.relay.client.stream(method, f"/conversations/{chat.id}{path}", **how) as response:
            if response.status_code != 200:
                raise AssertionError(f"{response.status_code} {await response.aread()!r}")
            yield Reader(response)


def upstream_sees(chat: Chat) -> list[dict[str, str]]:
    """The system prompt and every turn that has content, failed replies left out."""
    prompt = [{"role": "system", "content": chat.system_prompt}] if chat.system_prompt else []
    turns = [turn for turn in chat.turns if turn.status != "failed" and turn.content]
    return joined(prompt + [{"role": turn.role, "content": turn.content} for turn in turns])


def options_of(chat: Chat) -> dict[str, Any]:
    """The conversation's, with the last question's over them, less those that are null."""
    merged = {**(chat.options or {}), **(chat.last_question.options or {})}
    return {name: value for name, value in merged.items() if value is not None}


def joined(turns: list[dict[str, str]]) -> list[dict[str, str]]:
    """Neighbours of one role as one."""
    groups = groupby(turns, key=lambda turn: turn["role"])
    return [{"role": role, "content": "\n\n".join(turn["content"] for turn in group)} for role, group in groups]


def assert_conversation(conversation: dict[str, Any], chat: Chat) -> None:
    """Assert that the conversation is as the model has it."""
    conversation = dict(conversation)
    assert conversation.pop("updated_at") >= chat.created_at
    assert conversation == {
        "id": chat.id,
        "title": chat.shown_title,
        "system_prompt": chat.system_prompt,
        "default_model": chat.default_model,
        "options": chat.options,
        "cost": chat.cost,
        "created_at": chat.created_at,
        "message_count": len(chat.turns),
    }


def test_the_api_agrees_with_its_model_whatever_is_asked_in_whatever_order(pytestconfig: pytest.Config) -> None:
    examples = pytestconfig.getoption("--fuzz") or on_dicts(25, 10)
    opened = AsyncExitStack()
    with asyncio.Runner() as Api.runner:
        Api.upstream = Api.runner.run(opened.enter_async_context(ScriptedUpstream()))
        Api.relays = []
        for limits in (LIMITS, NARROW):
            starting = opened.enter_async_context(serving(Api.upstream, timers=Timers(retries=()), **limits))
            Api.relays.append((Api.runner.run(starting), limits))
        try:
            run_state_machine_as_test(Api, settings=settings(SETTINGS, max_examples=examples))
        finally:
            Api.runner.run(opened.aclose())
