"""What routes and replies ask of conversations: load one, ask a rule, have the engine make the change.

Knows nothing of HTTP, SSE, tasks or OpenRouter. The rules are in `stores/rules.py`; where conversations live is an
engine's business. Several may change one conversation at a time: a change is made only to what the rule has seen.
"""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, Unpack
from urllib.parse import unquote

from logs import outline
from result import Ending, Failure, Report
from settings import Settings, SettingsError
from stores.engine import Engine, Slices
from stores.memory import Memory
from stores.records import (
    Conversation,
    Kind,
    Message,
    NewConversation,
    NotFound,
    Question,
    Repeated,
    StoreError,
    StoreUnavailable,
)
from stores.reply import OwnReply, Reply, over
from stores.rules import Rules, imported
from stores.snapshot import Change, Snapshot, iso
from stores.sqlite.engine import Sqlite
from stores.steps import Steps

PAGE = 200  # conversations that are looked at in one go
LOCK_GRACE = 5.0  # seconds beyond SHUTDOWN_GRACE, in which another process lets go of its file
EXPIRY_INTERVAL = 10.0  # seconds between two looks for conversations to delete
ROUNDS = 100  # of loading, asking and committing, before a conversation counts as too busy

_Rule = Callable[[Rules, Snapshot], Change]
_Changed = TypeVar("_Changed", Change, Change | None)
_Commit = Callable[[Change], Awaitable[Change | None]]

_GONE = Failure(503, "The relay that made this reply is gone: ask again.", retryable=True)
_RESTARTED = Failure(503, "The service was restarted: ask again.", retryable=True)
_TOO_BUSY = "The conversation is changed by too many at once: try again in a moment."

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BegunReply:
    """A reply that was begun just now, what it answers, (role, content) of each turn, and with which options."""

    reply: OwnReply
    turns: Iterable[tuple[str, str]]
    options: Mapping[str, Any]


class Store:
    """Conversations, wherever they live. `open()` before anything else, `close()` after it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._engine = engine_for(settings)
        self.engine = self._engine.name
        """The name of the engine that keeps the conversations."""
        self.is_shared = self._engine.is_shared
        """Whether other relays may make replies."""
        self.steps = Steps()
        self._is_open = False
        self._tasks: list[asyncio.Task[None]] = []
        self._left: dict[str, tuple[Ending, Report | None]] = {}  # of replies whose end couldn't be told

    async def open(self) -> None:
        """End the replies that a process before this one left in progress. Raises `SettingsError`."""
        if not self._is_open:
            left = await self._engine.open()
            await asyncio.gather(*(self.abandon_reply(*ids, _RESTARTED) for ids in left))
            if not self._engine.forgets:
                self._tasks.append(asyncio.create_task(self._sweep()))
            if self._settings.conversation_ttl:
                self._tasks.append(asyncio.create_task(self._expire(self._settings.conversation_ttl)))
        self._is_open = True

    async def close(self) -> None:
        """Keep what is to be kept."""
        self._is_open = False
        while self._tasks:
            self._tasks.pop().cancel()
        await self._engine.close()

    @property
    def is_reachable(self) -> bool:
        """Whether that answered when it was last asked."""
        return self._engine.is_reachable

    async def counts(self) -> tuple[int, int]:
        """How many conversations and messages there are."""
        return self._engine.totals.conversations, self._engine.totals.messages

    async def text_size(self) -> int:
        """Bytes of text in all of them."""
        return self._engine.totals.text

    async def create_conversation(self, **fields: Unpack[NewConversation]) -> Conversation:
        """A new conversation. Raises `Repeated`, `StoreFull`."""
        history: list[Message] = []
        if turns := fields.pop("messages", None):
            history = [turn async for turn in self.steps.over(imported(turns, self._engine.clock.now()))]
        for _ in range(ROUNDS):
            if (id := fields.get("id")) and (snapshot := await self._engine.snapshot(id, whole=False)):
                raise Repeated(snapshot.conversation)
            if change := await self._engine.commit(self._rules().create(history, **fields)):
                conversation = _conversation(change)
                logger.info("Created conversation %s with model %s", conversation.id, conversation.default_model)
                return conversation
        raise StoreUnavailable(_TOO_BUSY)

    async def list_conversations(self, limit: int, before: str | None = None) -> tuple[list[Conversation], str | None]:
        """A page, newest `updated_at` first, and the `before` of the next page, None after the last."""
        return await self._engine.page(limit, before)

    async def conversation(self, conversation_id: str) -> Conversation:
        """Raises `NotFound`."""
        conversation = await self._engine.conversation(conversation_id)
        if conversation is None:
            raise self._no_conversation()
        return conversation

    async def update_conversation(self, conversation_id: str, changes: Mapping[str, Any]) -> Conversation:
        """Set any of `default_model`, `title`, `system_prompt`, `options`; without a title it has an automatic one.

        Raises `NotFound`, `StoreFull`.
        """
        change = await self._change(conversation_id, partial(Rules.update, changes=changes), whole=False)
        logger.info("Updated conversation %s", conversation_id)
        return _conversation(change)

    async def delete_conversation(self, conversation_id: str) -> None:
        """Forget it and its messages. Raises `NotFound`."""
        await self._change(conversation_id, Rules.delete)
        logger.info("Deleted conversation %s", conversation_id)

    async def delete_expired(self, seconds: float) -> None:
        """Forget every conversation in which nothing has happened for so long, and no reply is in progress."""
        before: str | None = iso(max(0, self._engine.clock.now() - int(seconds * 1_000_000)))
        since = str(before)

        while before:
            page, before = await self.list_conversations(PAGE, before)
            async for conversation in self.steps.over(page):
                await self._delete_if_expired(conversation.id, since)

    async def messages(self, conversation_id: str) -> list[Message]:
        """All messages, oldest first. Raises `NotFound`."""
        return list((await self._snapshot(conversation_id)).messages.values())

    async def slices(self, conversation_id: str) -> Slices:
        """All messages, oldest first, some at a time, with whether these were the last. Raises `NotFound`."""
        is_there = False
        async for messages, is_last in self._engine.slices(conversation_id):
            is_there = True
            yield messages, is_last
        if not is_there:
            raise self._no_conversation()

    async def message(self, conversation_id: str, message_id: str) -> Message | None:
        """One message, None if it isn't there. Raises `NotFound` for the conversation."""
        snapshot = await self._snapshot(conversation_id, whole=False, since=message_id)
        return snapshot.messages.get(message_id)

    async def in_progress(self, conversation_id: str) -> Message | None:
        """The reply in progress, None if there is none. Raises `NotFound`."""
        return (await self._snapshot(conversation_id, whole=False)).in_progress

    async def reply_to(self, conversation_id: str, question: Question) -> Message | None:
        """The first reply behind a question that was asked before, None if there is none.

        Raises `NotFound`, `IdTaken`.
        """
        snapshot = await self._snapshot(conversation_id, whole=False, since=question.id)
        try:
            snapshot.check_is_new(question)
        except Repeated as repeated:
            return snapshot.first_reply(repeated.found.id)
        return None

    async def check_is_new(self, conversation_id: str, question: Question) -> None:
        """Raises `Repeated` where the question is there already, `IdTaken` where its id is another's; `NotFound`."""
        (await self._snapshot(conversation_id, whole=False, since=question.id)).check_is_new(question)

    async def add_user_message(self, conversation_id: str, question: Question) -> Message:
        """Add a question. Raises what `check_is_new` raises, `ReplyInProgress`, `StoreFull`."""
        rule, cuts = partial(Rules.add_question, question=question), question.after is not ...
        change = await self._change(conversation_id, rule, whole=cuts, since=question.id)
        logger.info("Added user message to conversation %s", conversation_id)
        return change.added[0]

    async def ask(self, conversation_id: str, question: Question) -> BegunReply | Message:
        """Add a question and begin the reply to it; both or neither.

        A question that was asked before gets its first reply, or begins the one that is owed. Raises what
        `add_user_message` raises but `Repeated`.
        """
        begun = await self._begin(conversation_id, partial(Rules.add_question_and_begin_reply, question=question))
        if isinstance(begun, BegunReply):
            logger.info("Added user message to conversation %s", conversation_id)
        return begun

    async def delete_messages_from(self, conversation_id: str, message_id: str) -> None:
        """Forget that message and every later one. Raises `NotFound`."""
        change = await self._change(conversation_id, partial(Rules.truncate, message_id=message_id))
        logger.info("Deleted %d messages from conversation %s", len(change.removed), conversation_id)

    async def last_owed(self, conversation_id: str) -> Message:
        """The message that `begin_reply` would answer, replace or join. Raises `NotFound`, `NothingOwed`."""
        return (await self._snapshot(conversation_id, whole=False)).check_owed()

    async def begin_reply(self, conversation_id: str, model: str | None = None) -> BegunReply | Message:
        """Begin the reply that is owed, or tell which one is in progress. A failed reply is replaced.

        Raises `NotFound`, `NothingOwed`, `StoreFull`.
        """
        return await self._begin(conversation_id, partial(Rules.begin_reply, model=model))

    async def extend_reply(self, reply: OwnReply, kind: Kind, text: str) -> None:
        """Add text to a reply, as much as there is room for. Readers get it once it is kept.

        Raises `NotFound` once the reply has been deleted, and `StoreFull` where there isn't room for all of it.
        """
        engine = self._engine
        if len(text) * 4 <= self._settings.max_store_bytes - engine.totals.text:
            return await engine.extend(reply, kind, text)
        fitting = (rules := self._rules()).fitting(text)
        await engine.extend(reply, kind, fitting)
        if fitting != text:
            raise rules.no_room()

    async def settle_reply(self, reply: OwnReply) -> StoreError | None:
        """Wait until all text that was taken is kept; the error if some of it is lost."""
        return await self._engine.settle(reply)

    def report_reply(self, reply: OwnReply) -> None:
        """Tell other relays what upstream reports of a reply: they may end it."""
        self._engine.report(reply)

    async def follow_reply(self, reply: Reply, is_wanted: Callable[[], bool]) -> bool:
        """Add to a reply in progress what another relay makes of it: True when it has ended, False once unwanted.

        Raises `StoreUnavailable` when nothing has been heard for long.
        """
        return await self._engine.follow(reply, is_wanted)

    async def finish_reply(
        self, conversation_id: str, message_id: str, ending: Ending, report: Report | None = None
    ) -> Message | None:
        """Give the reply its final state, if it hasn't one yet; None if it has been deleted meanwhile.

        Its text is what was kept: `settle_reply` comes first. Raises `StoreFull`.
        """
        return await self._finished(conversation_id, message_id, ending, report, self._engine.commit)

    async def abandon_reply(
        self, conversation_id: str, message_id: str, ending: Ending, report: Report | None = None
    ) -> Message | None:
        """Show how the reply has ended though that can't be kept now; None if it has been deleted meanwhile.

        Raises `StoreUnavailable` where even that isn't known; its end is kept when that is possible.
        """
        try:
            return await self._finished(conversation_id, message_id, ending, report, self._engine.abandon)
        except StoreUnavailable:
            self._left[message_id] = ending, report
            self._engine.leave(message_id)
            raise

    async def _sweep(self) -> None:
        """End the replies that nobody makes."""
        async for conversation_id, message_id in self._engine.orphans():
            try:
                ending = self._left.get(message_id, (_GONE, None))
                await self._finished(conversation_id, message_id, *ending, self._engine.commit)
                self._left.pop(message_id, None)
            except StoreError:
                continue  # it is told again
            except Exception as error:  # no reply would ever be ended any more
                logger.error("reply %s could not be ended\n%s", message_id, outline(error))
            logger.warning("Ended reply %s of conversation %s, which nobody made any more", message_id, conversation_id)

    async def _expire(self, seconds: float) -> None:
        """Delete expired conversations again and again."""
        while True:
            try:
                await self.delete_expired(seconds)
            except Exception as error:  # the next look may be luckier
                logger.error("expired conversations could not be deleted\n%s", outline(error))
            await asyncio.sleep(EXPIRY_INTERVAL)

    async def _delete_if_expired(self, conversation_id: str, since: str) -> None:
        with suppress(NotFound):  # somebody else has deleted it
            if await self._change(conversation_id, partial(Rules.expire, since=since)):
                logger.info("Deleted conversation %s", conversation_id)

    async def _finished(
        self, conversation_id: str, message_id: str, ending: Ending, report: Report | None, commit: _Commit
    ) -> Message | None:
        rule = partial(Rules.finish, message_id=message_id, ending=ending, report=report)
        try:
            change = await self._change(conversation_id, rule, whole=False, since=message_id, commit=commit)
            return change.added[-1] if change else await self.message(conversation_id, message_id)
        except NotFound:
            return None

    async def _begin(self, conversation_id: str, rule: _Rule) -> BegunReply | Message:
        try:
            change = await self._change(conversation_id, rule)
        except Repeated as repeated:
            found: Message = repeated.found
            return found
        assert change.began and change.after
        reply = self._engine.replies.get(change.began.id)
        if reply is None:  # others have ended it already
            reply = OwnReply(conversation_id, change.began)
            reply.refuse(over())
        return BegunReply(reply, change.after.turns(), change.after.options())

    async def _snapshot(self, conversation_id: str, *, whole: bool = True, since: str | None = None) -> Snapshot:
        snapshot = await self._engine.snapshot(conversation_id, whole=whole, since=since)
        if snapshot is None:
            raise self._no_conversation()
        return snapshot

    def _no_conversation(self) -> NotFound:
        what_if = " They are kept in memory: a restart forgets them." if self._engine.forgets else ""
        return NotFound(f"There is no conversation with this id.{what_if}")

    async def _change(
        self,
        conversation_id: str,
        rule: Callable[[Rules, Snapshot], _Changed],
        *,
        whole: bool = True,
        since: str | None = None,
        commit: _Commit | None = None,
    ) -> _Changed:
        """The change that the rule makes, committed; the rule is asked again as long as others are quicker.

        Raises `NotFound`, and what the rule raises.
        """
        for _ in range(ROUNDS):
            snapshot = await self._engine.snapshot(conversation_id, whole=whole, since=since)
            if snapshot is None:
                raise self._no_conversation()
            change = rule(Rules(self._settings, self._engine.totals, self._engine.clock.now()), snapshot)
            if change is None:
                return change
            if made := await (commit or self._engine.commit)(change):
                return made
        raise StoreUnavailable(_TOO_BUSY)

    def _rules(self) -> Rules:
        return Rules(self._settings, self._engine.totals, self._engine.clock.now())


def _conversation(change: Change) -> Conversation:
    assert change.after is not None
    return change.after.conversation


def engine_for(settings: Settings) -> Engine:
    """Raises `SettingsError`."""
    url = settings.store_url
    if not url:
        return Memory()
    if re.match(r"(valkey|redis)s?(\+\w+)?:", url):
        return _shared(url)
    if file := re.fullmatch(r"sqlite:///(?!:memory:|.*%00)([^?#]*[^?#/])", url):
        return Sqlite(Path(unquote(file[1])), settings.shutdown_grace + LOCK_GRACE)
    raise SettingsError(
        "STORE_URL must be empty, or sqlite:///chat.db, or with an absolute path sqlite:////data/chat.db, "
        "or the URL of a server: valkey://host:6379, or another of docs/settings.md."
    )


def _shared(url: str) -> Engine:
    try:
        from stores.valkey.engine import Valkey
    except ModuleNotFoundError as error:
        if error.name != "valkey":
            raise
        raise SettingsError("STORE_URL needs one package more: pip install -r requirements-valkey.txt") from None
    return Valkey(url)
