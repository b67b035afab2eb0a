"""The conversations: load one, ask a rule for a change, have the engine commit the change.

Knows nothing of HTTP, SSE, tasks or OpenRouter. The rules are in `stores/rules.py`, and an engine keeps the
conversations. Several callers may change one conversation at a time: the engine commits a change only if the
conversation is still as the rule has seen it.
"""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
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
    NotFound,
    Question,
    Repeated,
    StoreError,
    StoreUnavailable,
)
from stores.reply import BegunReply, OwnReply, Reply, over
from stores.rules import NewConversation, Rules, imported
from stores.snapshot import Change, Snapshot, iso
from stores.sqlite.engine import Sqlite
from stores.steps import Steps

PAGE = 200  # conversations in one page of a search for old ones
LOCK_GRACE = 5.0  # seconds beyond SHUTDOWN_GRACE in which another process releases the file
EXPIRY_INTERVAL = 10.0  # seconds between two searches for old conversations
ROUNDS = 100  # attempts to commit a change before a conversation counts as too busy

_Changed = TypeVar("_Changed", Change, Change | None)
_Commit = Callable[[Change], Awaitable[Change | None]]

_GONE = Failure(503, "The relay that made this reply is gone: ask again.", retryable=True)
_RESTARTED = Failure(503, "The service was restarted: ask again.", retryable=True)
_TOO_BUSY = "The conversation is changed by too many at once: try again in a moment."

logger = logging.getLogger(__name__)


class Store:
    """Conversations, on any engine. Call `open()` before anything else, `close()` at the end."""

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
        self._unkept: dict[str, tuple[Ending, Report | None]] = {}  # by message, ends that the engine couldn't keep

    async def open(self) -> None:
        """Open the engine, and end the replies that an earlier process left in progress. Raises `SettingsError`."""
        if not self._is_open:
            orphans = await self._engine.open()
            await asyncio.gather(*(self.abandon_reply(*ids, _RESTARTED) for ids in orphans))
            if not self._engine.forgets:
                self._tasks.append(asyncio.create_task(self._sweep()))
            if self._settings.conversation_ttl:
                self._tasks.append(asyncio.create_task(self._expire(self._settings.conversation_ttl)))
        self._is_open = True

    async def close(self) -> None:
        """Close the engine, which keeps the last changes first."""
        self._is_open = False
        while self._tasks:
            self._tasks.pop().cancel()
        await self._engine.close()

    @property
    def is_reachable(self) -> bool:
        """Whether the engine answered the last time."""
        return self._engine.is_reachable

    async def counts(self) -> tuple[int, int]:
        """The number of conversations, and of messages."""
        return self._engine.totals.conversations, self._engine.totals.messages

    async def text_size(self) -> int:
        """The bytes of text in all conversations."""
        return self._engine.totals.text

    async def create_conversation(self, **fields: Unpack[NewConversation]) -> Conversation:
        """Create a conversation. Raises `Repeated`, `StoreFull`."""
        history: list[Message] = []
        if turns := fields.pop("messages", None):
            history = [turn async for turn in self.steps.over(imported(turns, self._engine.clock.now()))]
        for _ in range(ROUNDS):
            if (id := fields.get("id")) and (snapshot := await self._engine.snapshot(id, whole=False)):
                raise Repeated(snapshot.conversation)
            if change := await self._engine.commit(self._rules().create(history, **fields)):
                conversation = change.conversation
                logger.info("Created conversation %s with model %s", conversation.id, conversation.default_model)
                return conversation
        raise StoreUnavailable(_TOO_BUSY)

    async def list_conversations(self, limit: int, before: str | None = None) -> tuple[list[Conversation], str | None]:
        """A page, newest `updated_at` first, and the `before` of the next page, None after the last page."""
        return await self._engine.page(limit, before)

    async def conversation(self, conversation_id: str) -> Conversation:
        """One conversation. Raises `NotFound`."""
        conversation = await self._engine.conversation(conversation_id)
        if conversation is None:
            raise self._no_conversation()
        return conversation

    async def update_conversation(self, conversation_id: str, changes: Mapping[str, Any]) -> Conversation:
        """Set fields as `Rules.update` does. Raises `NotFound`, `StoreFull`."""
        change = await self._change(conversation_id, partial(Rules.update, changes=changes), whole=False)
        logger.info("Updated conversation %s", conversation_id)
        return change.conversation

    async def delete_conversation(self, conversation_id: str) -> None:
        """Delete the conversation and its messages. Raises `NotFound`."""
        await self._change(conversation_id, Rules.delete)
        logger.info("Deleted conversation %s", conversation_id)

    async def delete_expired(self, seconds: float) -> None:
        """Delete the conversations that haven't changed for so long, unless a reply is in progress."""
        before: str | None = iso(max(0, self._engine.clock.now() - int(seconds * 1_000_000)))
        rule = partial(Rules.expire, since=str(before))
        while before:
            page, before = await self.list_conversations(PAGE, before)
            async for conversation in self.steps.over(page):
                with suppress(NotFound):  # another request has deleted it
                    if await self._change(conversation.id, rule):
                        logger.info("Deleted conversation %s", conversation.id)

    async def messages(self, conversation_id: str) -> list[Message]:
        """All messages, oldest first. Raises `NotFound`."""
        return list((await self._snapshot(conversation_id)).messages.values())

    async def slices(self, conversation_id: str) -> Slices:
        """All messages, oldest first, a slice at a time, each with whether it is the last. Raises `NotFound`."""
        exists = False
        async for messages, is_last in self._engine.slices(conversation_id):
            exists = True
            yield messages, is_last
        if not exists:
            raise self._no_conversation()

    async def message(self, conversation_id: str, message_id: str) -> Message | None:
        """One message, None if it isn't there. Raises `NotFound` for the conversation."""
        snapshot = await self._snapshot(conversation_id, whole=False, since=message_id)
        return snapshot.messages.get(message_id)

    async def in_progress(self, conversation_id: str) -> Message | None:
        """The reply in progress, None if there is none. Raises `NotFound`."""
        return (await self._snapshot(conversation_id, whole=False)).in_progress

    async def reply_to(self, conversation_id: str, question: Question) -> Message | None:
        """The first reply to a question that was asked before, None without one. Raises `NotFound`, `IdTaken`."""
        snapshot = await self._snapshot(conversation_id, whole=False, since=question.id)
        try:
            snapshot.check_is_new(question)
        except Repeated as repeated:
            return snapshot.first_reply(repeated.found.id)
        return None

    async def check_is_new(self, conversation_id: str, question: Question) -> None:
        """Raise `Repeated` if the question was asked before, `IdTaken` if its id is another's, or `NotFound`."""
        (await self._snapshot(conversation_id, whole=False, since=question.id)).check_is_new(question)

    async def add_user_message(self, conversation_id: str, question: Question) -> Message:
        """Add a question. Raises what `check_is_new` raises, `ReplyInProgress`, `StoreFull`."""
        rule, cuts = partial(Rules.add_question, question=question), question.after is not ...
        change = await self._change(conversation_id, rule, whole=cuts, since=question.id)
        logger.info("Added user message to conversation %s", conversation_id)
        return change.added[0]

    async def ask(self, conversation_id: str, question: Question) -> BegunReply | Message:
        """Add a question and begin the reply to it; the reply if it was asked before. Raises as `add_user_message`."""
        begun = await self._begin(conversation_id, partial(Rules.add_question_and_begin_reply, question=question))
        if isinstance(begun, BegunReply):
            logger.info("Added user message to conversation %s", conversation_id)
        return begun

    async def delete_messages_from(self, conversation_id: str, message_id: str) -> None:
        """Delete that message and every later one. Raises `NotFound`."""
        change = await self._change(conversation_id, partial(Rules.truncate, message_id=message_id))
        logger.info("Deleted %d messages from conversation %s", len(change.removed), conversation_id)

    async def last_owed(self, conversation_id: str) -> Message:
        """The message that `begin_reply` would answer, replace or join. Raises `NotFound`, `NothingOwed`."""
        return (await self._snapshot(conversation_id, whole=False)).check_owed()

    async def begin_reply(self, conversation_id: str, model: str | None = None) -> BegunReply | Message:
        """Begin the owed reply, or return the one in progress. Raises `NotFound`, `NothingOwed`, `StoreFull`."""
        return await self._begin(conversation_id, partial(Rules.begin_reply, model=model))

    async def extend_reply(self, reply: OwnReply, kind: Kind, text: str) -> None:
        """Add the text that fits; readers get it once it is kept. Raises `NotFound` (deleted), `StoreFull`."""
        engine = self._engine
        if len(text) * 4 <= self._settings.max_store_bytes - engine.totals.text:
            return await engine.extend(reply, kind, text)
        fitting = (rules := self._rules()).fitting(text)
        await engine.extend(reply, kind, fitting)
        if fitting != text:
            raise rules.no_room()

    async def settle_reply(self, reply: OwnReply) -> StoreError | None:
        """Wait until the engine has kept all text that it took; the error if some of it is lost."""
        return await self._engine.settle(reply)

    def report_reply(self, reply: OwnReply) -> None:
        """Send other relays the report of a reply: they may have to end it."""
        self._engine.report(reply)

    async def follow_reply(self, reply: Reply, is_wanted: Callable[[], bool]) -> bool:
        """Follow a reply of another relay: True at its end, False once unwanted. Raises `StoreUnavailable`."""
        return await self._engine.follow(reply, is_wanted)

    async def finish_reply(
        self, conversation_id: str, message_id: str, ending: Ending, report: Report | None = None
    ) -> Message | None:
        """End a settled reply, unless it has ended: its message, None if it is deleted. Raises `StoreFull`."""
        return await self._finished(conversation_id, message_id, ending, report, self._engine.commit)

    async def abandon_reply(
        self, conversation_id: str, message_id: str, ending: Ending, report: Report | None = None
    ) -> Message | None:
        """End a reply though the engine may keep its end later. Raises `StoreUnavailable` if it can't show it."""
        try:
            return await self._finished(conversation_id, message_id, ending, report, self._engine.abandon)
        except StoreUnavailable:
            self._unkept[message_id] = ending, report
            self._engine.leave(message_id)
            raise

    async def _sweep(self) -> None:
        """End the replies that no relay makes."""
        async for conversation_id, message_id in self._engine.orphans():
            try:
                ending = self._unkept.get(message_id, (_GONE, None))
                await self._finished(conversation_id, message_id, *ending, self._engine.commit)
                self._unkept.pop(message_id, None)
            except StoreError:
                continue  # the engine yields it again
            except Exception as error:  # the sweep must go on for other replies
                logger.error("reply %s could not be ended\n%s", message_id, outline(error))
            else:
                ended = "Ended reply %s of conversation %s, which nobody made any more"
                logger.warning(ended, message_id, conversation_id)

    async def _expire(self, seconds: float) -> None:
        """Delete old conversations every `EXPIRY_INTERVAL`."""
        while True:
            try:
                await self.delete_expired(seconds)
            except Exception as error:  # the next search may succeed
                logger.error("expired conversations could not be deleted\n%s", outline(error))
            await asyncio.sleep(EXPIRY_INTERVAL)

    async def _finished(
        self, conversation_id: str, message_id: str, ending: Ending, report: Report | None, commit: _Commit
    ) -> Message | None:
        rule = partial(Rules.finish, message_id=message_id, ending=ending, report=report)
        try:
            change = await self._change(conversation_id, rule, whole=False, since=message_id, commit=commit)
            return change.added[-1] if change else await self.message(conversation_id, message_id)
        except NotFound:
            return None

    async def _begin(self, conversation_id: str, rule: Callable[[Rules, Snapshot], Change]) -> BegunReply | Message:
        try:
            change = await self._change(conversation_id, rule)
        except Repeated as repeated:
            message: Message = repeated.found
            return message
        assert change.began and change.after
        reply = self._engine.replies.get(change.began.id)
        if reply is None:  # another request has ended it already
            reply = OwnReply(conversation_id, change.began)
            reply.refuse(over())
        return BegunReply(reply, change.after.turns(), change.after.options())

    async def _snapshot(self, conversation_id: str, *, whole: bool = True, since: str | None = None) -> Snapshot:
        snapshot = await self._engine.snapshot(conversation_id, whole=whole, since=since)
        if snapshot is None:
            raise self._no_conversation()
        return snapshot

    def _no_conversation(self) -> NotFound:
        hint = " They are kept in memory: a restart forgets them." if self._engine.forgets else ""
        return NotFound(f"There is no conversation with this id.{hint}")

    async def _change(
        self,
        conversation_id: str,
        rule: Callable[[Rules, Snapshot], _Changed],
        *,
        whole: bool = True,
        since: str | None = None,
        commit: _Commit | None = None,
    ) -> _Changed:
        """Commit the rule's change; ask the rule again if another change came first. Raises what the rule raises."""
        for _ in range(ROUNDS):
            snapshot = await self._snapshot(conversation_id, whole=whole, since=since)
            change = rule(self._rules(), snapshot)
            if change is None:
                return change
            if committed := await (commit or self._engine.commit)(change):
                return committed
        raise StoreUnavailable(_TOO_BUSY)

    def _rules(self) -> Rules:
        return Rules(self._settings, self._engine.totals, self._engine.clock.now())


def engine_for(settings: Settings) -> Engine:
    """The engine that STORE_URL names. Raises `SettingsError`."""
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
