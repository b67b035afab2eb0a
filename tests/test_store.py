"""The store's rules, each method by itself, and what must hold after any sequence of them."""

import contextlib
import gc
import json
import logging
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from itertools import count, pairwise
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from result import NO_REPORT, Ending, Failure, Finish, Report, Stopped
from settings import Settings
from store import Store
from stores.records import (
    Conversation,
    IdTaken,
    Kind,
    Message,
    NotFound,
    NothingOwed,
    Question,
    ReplyInProgress,
    StoreFull,
    byte_size,
)
from tests.support.engines import new_store_url, on_each_engine
from tests.support.relay import NOWHERE
from tests.support.stores import ask, begin
from tests.support.upstream import USAGE

pytestmark = on_each_engine

FINISHED, FAILED = Finish(), Failure(502, "Broken", retryable=True)


opened: list[Store] = []


@pytest.fixture(autouse=True)
async def _closed() -> AsyncIterator[None]:
    """Close the stores of the test."""
    yield
    while opened:
        await opened.pop().close()


async def store_of(**settings: Any) -> Store:
    """With these settings, else their defaults; closed when the test ends."""
    store = Store(Settings(**{"model_name": "m", "store_url": new_store_url(), **settings}))
    await store.open()
    opened.append(store)
    return store


@pytest.fixture
async def store() -> Store:
    """A store with room enough."""
    return await store_of(model_name="default/model")


async def asked(store: Store, question: str = "Why?", **conversation: Any) -> str:
    """The id of a new conversation with this question in it."""
    made = await store.create_conversation(**conversation)
    await store.add_user_message(made.id, Question(question))
    return made.id


async def answered(
    store: Store,
    conversation_id: str,
    text: str = "Because.",
    ending: Ending = FINISHED,
    report: Report = NO_REPORT,
) -> Message:
    """The reply that is owed, with this text, ended."""
    reply = (await begin(store, conversation_id)).reply
    if text:
        await store.extend_reply(reply, "content", text)
        await store.settle_reply(reply)
    message = await store.finish_reply(conversation_id, reply.id, ending, report)
    assert message is not None
    return message


async def contents(store: Store, conversation_id: str) -> list[str]:
    return [message.transcript.content for message in await store.messages(conversation_id)]


# Conversations


async def test_a_new_conversation_is_empty_and_has_the_default_model(store: Store) -> None:
    made = await store.create_conversation()
    assert made == Conversation(
        id=made.id,
        title=None,
        system_prompt=None,
        default_model="default/model",
        created_at=made.created_at,
        updated_at=made.created_at,
        message_count=0,
    )
    assert str(UUID(made.id)) == made.id and UUID(made.id).version == 4
    assert await store.conversation(made.id) == made
    assert await store.messages(made.id) == []


async def test_a_new_conversation_has_what_was_given(store: Store) -> None:
    made = await store.create_conversation(default_model="a/b", title="Title", system_prompt="Be brief.")
    assert (made.default_model, made.title, made.system_prompt) == ("a/b", "Title", "Be brief.")


ON_NOTHING: dict[str, Callable[[Store], Awaitable[object]]] = {
    "conversation": lambda store: store.conversation(NOWHERE),
    "update": lambda store: store.update_conversation(NOWHERE, {}),
    "delete": lambda store: store.delete_conversation(NOWHERE),
    "messages": lambda store: store.messages(NOWHERE),
    "message": lambda store: store.message(NOWHERE, NOWHERE),
    "add": lambda store: store.add_user_message(NOWHERE, Question("Hi")),
    "delete messages": lambda store: store.delete_messages_from(NOWHERE, NOWHERE),
    "check": lambda store: store.last_owed(NOWHERE),
    "begin": lambda store: store.begin_reply(NOWHERE),
}


@pytest.mark.parametrize("method", ON_NOTHING.values(), ids=ON_NOTHING)
async def test_a_conversation_that_is_not_there_is_not_found(
    store: Store, method: Callable[[Store], Awaitable[object]]
) -> None:
    await asked(store)
    with pytest.raises(NotFound, match="no conversation with this id"):
        await method(store)
    assert await store.counts() == (1, 1)


async def test_the_end_of_a_reply_that_was_deleted_is_ignored(store: Store) -> None:
    conversation_id = await asked(store)
    reply = (await begin(store, conversation_id)).reply
    await store.delete_messages_from(conversation_id, reply.id)
    assert await store.finish_reply(conversation_id, reply.id, Finish()) is None
    assert await store.finish_reply(NOWHERE, reply.id, Finish()) is None
    with pytest.raises(NotFound, match="has ended, or was deleted"):
        await store.extend_reply(reply, "content", "late")


async def test_an_update_changes_what_it_names(store: Store) -> None:
    made = await store.create_conversation(default_model="a/b", title="Title", system_prompt="Be brief.")
    changed = await store.update_conversation(made.id, {"default_model": "c/d", "system_prompt": None})
    assert (changed.default_model, changed.title, changed.system_prompt) == ("c/d", "Title", None)
    same = await store.update_conversation(made.id, {})
    assert (same.default_model, same.title, same.system_prompt) == ("c/d", "Title", None)
    assert same == await store.conversation(made.id)
    assert made.created_at == same.created_at < changed.updated_at < same.updated_at


async def test_deleting_a_conversation_forgets_its_messages_and_tells_the_reply_in_progress(store: Store) -> None:
    conversation_id = await asked(store)
    await answered(store, conversation_id)
    assert await store.counts() == (1, 2)
    await store.delete_conversation(conversation_id)
    conversation_id = await asked(store)
    await store.begin_reply(conversation_id)
    await store.delete_conversation(conversation_id)
    assert await store.counts() == (0, 0)


# Titles


@pytest.mark.parametrize(
    ("content", "title"),
    [
        ("Why?", "Why?"),
        ("  Why is\nthe sky blue?", "Why is"),
        ("\r\n\n  Why?\r\nBecause.", "Why?"),
        ("x" * 81, "x" * 80),
        ("x" * 79 + " y", "x" * 79),
        ("é" * 100 + "\nb", "é" * 80),
    ],
)
async def test_a_title_that_was_never_set_is_the_first_line_of_the_first_message(
    store: Store, content: str, title: str
) -> None:
    conversation_id = await asked(store, content)
    await store.add_user_message(conversation_id, Question("Another"))
    assert (await store.conversation(conversation_id)).title == title


async def test_a_title_that_was_set_stays_until_it_is_set_to_none(store: Store) -> None:
    conversation_id = await asked(store, "First", title="Own")
    assert (await store.conversation(conversation_id)).title == "Own"
    assert (await store.update_conversation(conversation_id, {"title": "Other"})).title == "Other"
    assert (await store.update_conversation(conversation_id, {"title": None})).title == "First"


async def test_an_automatic_title_follows_the_first_message(store: Store) -> None:
    conversation_id = await asked(store, "First")
    second = await store.add_user_message(conversation_id, Question("Second"))
    await store.delete_messages_from(conversation_id, second.id)
    assert (await store.conversation(conversation_id)).title == "First"
    [first] = await store.messages(conversation_id)
    await store.delete_messages_from(conversation_id, first.id)
    assert (await store.conversation(conversation_id)).title is None
    await store.add_user_message(conversation_id, Question("Third"))
    assert (await store.conversation(conversation_id)).title == "Third"


async def test_an_empty_conversation_without_a_title_has_none(store: Store) -> None:
    made = await store.create_conversation(title="Own")
    assert (await store.update_conversation(made.id, {"title": None})).title is None


# Times, order and cursors


@pytest.mark.engines("memory", "sqlite")  # whose clock is the server's
@pytest.mark.parametrize("step", [0, -1_000_000, 1], ids=["stands still", "runs backwards", "runs slowly"])
async def test_times_grow_strictly_whatever_the_clock_does(
    store: Store, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    clock = count(1_770_000_000_000_000_000, step)
    monkeypatch.setattr(time, "time_ns", lambda: next(clock))
    made = [await store.create_conversation() for _ in range(50)]
    times = [entry.created_at for entry in made]
    assert times == sorted(set(times)) and times[0] == "2026-02-02T02:40:00.000000Z"


async def test_updated_at_moves_with_a_change_a_message_and_a_replys_start_and_end(store: Store) -> None:
    made = await store.create_conversation()
    times = [made.updated_at]

    async def note() -> None:
        times.append((await store.conversation(made.id)).updated_at)

    await store.update_conversation(made.id, {})
    await note()
    message = await store.add_user_message(made.id, Question("Hi"))
    await note()
    assert times[-1] == message.timestamp
    reply = (await begin(store, made.id)).reply
    await note()
    assert times[-1] == reply.message.timestamp
    await store.finish_reply(made.id, reply.id, Finish())
    await note()
    assert times == sorted(set(times))


async def test_updated_at_stays_when_text_arrives_and_when_nothing_changes(store: Store) -> None:
    conversation_id = await asked(store)
    reply = (await begin(store, conversation_id)).reply
    before = await store.conversation(conversation_id)
    await store.extend_reply(reply, "content", "Hello")
    await store.begin_reply(conversation_id)
    await store.messages(conversation_id)
    assert await store.conversation(conversation_id) == before


async def pages(store: Store, limit: int) -> list[list[str]]:
    found: list[list[str]] = []
    before: str | None = None
    while before or not found:
        page, before = await store.list_conversations(limit, before)
        found.append([entry.id for entry in page])
    return found


@given(st.integers(1, 7), st.integers(0, 12), st.lists(st.integers(0, 11)))
@example(3, 3, [])
@example(3, 6, [0, 3])
async def test_pages_list_every_conversation_once_the_one_that_changed_last_first(
    limit: int, size: int, changes: list[int]
) -> None:
    store = await store_of()
    order = [(await store.create_conversation()).id for _ in range(size)]
    for change in changes if size else []:
        changed = order.pop(change % size)
        await store.update_conversation(changed, {})
        order.append(changed)
    newest_first = order[::-1]
    expected = [newest_first[start : start + limit] for start in range(0, size, limit)] or [[]]
    assert await pages(store, limit) == expected


@given(st.integers(1, 4), st.lists(st.tuples(st.sampled_from(["change", "delete", "make"]), st.integers(0, 9))))
async def test_updates_between_pages_neither_repeat_a_conversation_nor_hide_one_that_stayed(
    limit: int, changes: list[tuple[str, int]]
) -> None:
    store = await store_of()
    first = [(await store.create_conversation()).id for _ in range(10)]
    stayed, seen, before = set(first), list[str](), None
    while before or not seen:
        page, before = await store.list_conversations(limit, before)
        seen += [entry.id for entry in page]
        if not changes:
            continue
        what, which = changes.pop()
        if what == "make":
            await store.create_conversation()
        elif first[which] in stayed:
            stayed.discard(first[which])
            await (
                store.update_conversation(first[which], {})
                if what == "change"
                else store.delete_conversation(first[which])
            )
    assert len(seen) == len(set(seen))
    assert stayed <= set(seen) <= set(first)


async def test_a_page_that_is_just_full_is_the_last(store: Store) -> None:
    made = [await store.create_conversation() for _ in range(2)]
    assert await store.list_conversations(2) == (made[::-1], None)
    page, before = await store.list_conversations(1)
    assert (page, before) == ([made[1]], made[1].updated_at)
    assert await store.list_conversations(1, before) == ([made[0]], None)
    assert await store.list_conversations(1, made[0].updated_at) == ([], None)


# Messages


async def test_a_users_message_is_complete_at_once(store: Store) -> None:
    made = await store.create_conversation()
    message = await store.add_user_message(made.id, Question("Hi", "a/b"))
    assert message == Message(
        id=message.id, role="user", transcript=message.transcript, model="a/b", timestamp=message.timestamp
    )
    assert (message.transcript.content, message.transcript.reasoning) == ("Hi", "")
    assert await store.messages(made.id) == [message]
    assert await store.message(made.id, message.id) == message
    assert await store.message(made.id, NOWHERE) is None
    assert (await store.conversation(made.id)).message_count == 1


async def test_no_message_is_taken_while_a_reply_is_in_progress(store: Store) -> None:
    conversation_id = await asked(store)
    reply = (await begin(store, conversation_id)).reply
    with pytest.raises(ReplyInProgress, match="A reply is in progress"):
        await store.add_user_message(conversation_id, Question("And?"))
    await store.finish_reply(conversation_id, reply.id, Stopped())
    await store.add_user_message(conversation_id, Question("And?"))
    assert await contents(store, conversation_id) == ["Why?", "", "And?"]


async def test_deleting_a_message_deletes_every_later_one(store: Store) -> None:
    conversation_id = await asked(store, "One")
    await answered(store, conversation_id, "Two")
    third = await store.add_user_message(conversation_id, Question("Three"))
    await store.begin_reply(conversation_id)
    with pytest.raises(NotFound, match="no message with this id"):
        await store.delete_messages_from(conversation_id, NOWHERE)
    await store.delete_messages_from(conversation_id, third.id)
    assert await contents(store, conversation_id) == ["One", "Two"]
    second = (await store.messages(conversation_id))[1]
    await store.delete_messages_from(conversation_id, second.id)
    assert (await store.conversation(conversation_id)).message_count == 1
    assert await store.counts() == (1, 1)


async def test_a_message_of_another_conversation_is_not_found(store: Store) -> None:
    one, other = await asked(store), await asked(store)
    [message] = await store.messages(other)
    assert await store.message(one, message.id) is None
    with pytest.raises(NotFound, match="no message with this id"):
        await store.delete_messages_from(one, message.id)


# Replies


async def test_a_reply_begins_with_what_goes_upstream(store: Store) -> None:
    conversation_id = await asked(store, "Why?", system_prompt="Be brief.")
    owed = await begin(store, conversation_id)
    reply = owed.reply.message
    assert [*owed.turns] == [("system", "Be brief."), ("user", "Why?")]
    assert (reply.role, reply.status, reply.model) == ("assistant", "streaming", "default/model")
    assert (await store.conversation(conversation_id)).message_count == 2


async def test_a_reply_in_progress_is_the_one_that_is_owed(store: Store) -> None:
    conversation_id = await asked(store)
    reply = (await begin(store, conversation_id, "a/b")).reply
    assert await store.begin_reply(conversation_id, "c/d") == reply.message
    assert await store.counts() == (1, 2)


async def assert_nothing_owed(store: Store, conversation_id: str, words: str) -> None:
    """Assert that no reply can begin there, and that asking beforehand says so, too."""
    before = await store.messages(conversation_id)
    for refused in (store.begin_reply(conversation_id), store.last_owed(conversation_id)):
        with pytest.raises(NothingOwed, match=words):
            await refused
    assert await store.messages(conversation_id) == before


@pytest.mark.parametrize("ending", [Finish(), Stopped()])
async def test_nothing_is_owed_where_there_is_no_question_or_an_answer(store: Store, ending: Ending) -> None:
    made = await store.create_conversation()
    await assert_nothing_owed(store, made.id, "empty")
    await store.add_user_message(made.id, Question("Hi"))
    await answered(store, made.id, ending=ending)
    await assert_nothing_owed(store, made.id, "answered already")


async def test_asking_what_is_owed_changes_nothing(store: Store) -> None:
    conversation_id = await asked(store)
    await store.last_owed(conversation_id)
    await answered(store, conversation_id, ending=FAILED)
    await store.last_owed(conversation_id)
    assert [message.status for message in await store.messages(conversation_id)] == ["complete", "failed"]
    await store.begin_reply(conversation_id)
    await store.last_owed(conversation_id)
    assert (await store.conversation(conversation_id)).message_count == 2


async def test_the_model_is_the_one_asked_for_else_the_last_questions_else_the_conversations(store: Store) -> None:
    made = await store.create_conversation(default_model="of/conversation")
    await store.add_user_message(made.id, Question("Hi", "of/message"))
    reply = (await begin(store, made.id, "of/request")).reply
    assert reply.message.model == "of/request"
    await store.delete_messages_from(made.id, reply.id)
    assert (await answered(store, made.id)).model == "of/message"
    await store.add_user_message(made.id, Question("Hi"))
    assert (await begin(store, made.id)).reply.message.model == "of/conversation"


async def test_a_reply_keeps_what_arrived_and_how_it_ended(store: Store) -> None:
    conversation_id = await asked(store)
    reply = (await begin(store, conversation_id)).reply
    pieces: list[tuple[Kind, str]] = [
        ("reasoning", "Hm. "),
        ("content", "Bec"),
        ("content", "ause."),
        ("reasoning", "!"),
    ]
    for kind, text in pieces:
        await store.extend_reply(reply, kind, text)
    await store.settle_reply(reply)
    report = Report("gen-1", usage='{"total_tokens": 3}')
    message = await store.finish_reply(conversation_id, reply.id, Finish("stop"), report)
    assert message is not None and message == await store.message(conversation_id, reply.id)
    assert (message.status, message.finish_reason, message.report) == ("complete", "stop", report)
    assert (message.error, message.timestamp) == (None, reply.message.timestamp)
    assert (message.transcript.content, message.transcript.reasoning) == ("Because.", "Hm. !")


async def test_a_failed_reply_is_replaced(store: Store) -> None:
    conversation_id = await asked(store)
    failed = await answered(store, conversation_id, "Beca", FAILED)
    assert (failed.status, failed.error) == ("failed", FAILED)
    owed = await begin(store, conversation_id)
    assert owed.reply.id != failed.id
    assert [*owed.turns] == [("user", "Why?")]
    assert [m.id for m in await store.messages(conversation_id)][1:] == [owed.reply.id]
    assert await store.counts() == (1, 2)


async def test_a_question_that_is_asked_has_its_reply_begun(store: Store) -> None:
    conversation_id = (await store.create_conversation(default_model="a/b")).id
    owed = await ask(store, conversation_id, Question("Why?", "c/d"))
    assert (owed.reply.message.status, owed.reply.message.model, [*owed.turns]) == (
        "streaming",
        "c/d",
        [("user", "Why?")],
    )
    assert [message.role for message in await store.messages(conversation_id)] == ["user", "assistant"]
    with pytest.raises(ReplyInProgress):
        await store.ask(conversation_id, Question("And?"))


async def test_a_question_that_is_asked_again_has_its_first_reply_or_begins_the_one_that_is_owed(store: Store) -> None:
    conversation_id = (await store.create_conversation()).id
    first, second = Question("Why?", id="q1"), Question("And?", id="q2")
    begun = await ask(store, conversation_id, first)
    assert await store.ask(conversation_id, first) == begun.reply.message
    await store.finish_reply(conversation_id, begun.reply.id, FAILED)
    failed = (await store.messages(conversation_id))[1]
    await store.add_user_message(conversation_id, second)
    assert await store.ask(conversation_id, replace(first, after=None)) == failed
    assert await store.reply_to(conversation_id, second) is None
    owed = await ask(store, conversation_id, second)
    assert (owed.reply.message.question_id, [*owed.turns]) == ("q2", [("user", "Why?"), ("user", "And?")])
    assert await store.reply_to(conversation_id, second) == owed.reply.message
    for refusing in (store.ask, store.reply_to):
        with pytest.raises(IdTaken):
            await refusing(conversation_id, Question("Other", id="q1"))


@pytest.mark.parametrize("most", [{"max_messages": 1}, {"max_store_bytes": 4}], ids=["messages", "bytes"])
async def test_a_question_whose_reply_has_no_room_is_not_kept(most: dict[str, int]) -> None:
    store = await store_of(**most)
    made = await store.create_conversation()
    conversation_id = made.id
    for _ in range(3):  # nor is room lost by it
        with pytest.raises(StoreFull):
            await store.ask(conversation_id, Question("Why?"))
    assert await store.counts() == (1, 0)
    assert await store.conversation(conversation_id) == made
    await store.add_user_message(conversation_id, Question("Why?"))


@pytest.mark.parametrize("late", [Stopped(), FAILED])
async def test_an_ending_that_comes_second_changes_nothing(store: Store, late: Ending) -> None:
    conversation_id = await asked(store)
    first = await answered(store, conversation_id, "Because.")
    assert await store.finish_reply(conversation_id, first.id, late) == first
    assert (await store.messages(conversation_id))[-1] == first


async def test_the_history_leaves_out_failed_replies_and_those_without_content(store: Store) -> None:
    conversation_id = await asked(store, "One")
    await answered(store, conversation_id, "failed", FAILED)
    await store.add_user_message(conversation_id, Question("Two"))
    await answered(store, conversation_id, "", Stopped())
    await store.add_user_message(conversation_id, Question("Three"))
    thought = (await begin(store, conversation_id)).reply
    await store.extend_reply(thought, "reasoning", "only thought")
    await store.settle_reply(thought)
    await store.finish_reply(conversation_id, thought.id, Finish("length"))
    await store.add_user_message(conversation_id, Question("Four"))
    await answered(store, conversation_id, "Half of", Stopped())
    await store.add_user_message(conversation_id, Question("Five"))
    assert [*(await begin(store, conversation_id)).turns] == [
        ("user", "One"),
        ("user", "Two"),
        ("user", "Three"),
        ("user", "Four"),
        ("assistant", "Half of"),
        ("user", "Five"),
    ]


# Limits


async def test_no_more_conversations_are_made_than_the_limit() -> None:
    store = await store_of(max_conversations=2)
    first, _ = await store.create_conversation(), await store.create_conversation()
    with pytest.raises(StoreFull, match=r"MAX_CONVERSATIONS is 2\): delete conversations"):
        await store.create_conversation()
    await store.delete_conversation(first.id)
    await store.create_conversation()


async def test_a_full_conversation_takes_no_message_and_no_reply() -> None:
    store = await store_of(max_messages=2)
    conversation_id = await asked(store)
    await store.add_user_message(conversation_id, Question("And?"))
    for refused in (store.add_user_message(conversation_id, Question("No")), store.begin_reply(conversation_id)):
        with pytest.raises(StoreFull, match=r"MAX_MESSAGES is 2\): delete messages"):
            await refused
    assert await contents(store, conversation_id) == ["Why?", "And?"]
    await asked(store)


async def test_a_failed_reply_in_a_full_conversation_can_be_replaced() -> None:
    store = await store_of(max_messages=2)
    conversation_id = await asked(store)
    await answered(store, conversation_id, "x", FAILED)
    with pytest.raises(StoreFull):
        await store.add_user_message(conversation_id, Question("No"))
    await answered(store, conversation_id, "y")
    assert await contents(store, conversation_id) == ["Why?", "y"]


async def test_a_full_store_takes_no_more_text_and_what_it_has_stays() -> None:
    """20 bytes of UTF-8: "é" is two of them."""
    store = await store_of(max_store_bytes=20)
    made = await store.create_conversation(title="four", system_prompt="éé")
    await store.add_user_message(made.id, Question("four"))
    reply = (await begin(store, made.id)).reply
    await store.extend_reply(reply, "reasoning", "four")
    for refused in (
        store.create_conversation(title="fivee"),
        store.update_conversation(made.id, {"system_prompt": "é" * 4 + "x"}),
    ):
        with pytest.raises(StoreFull, match=r"MAX_STORE_BYTES is 20\): delete conversations, or raise MAX_STORE_BYTES"):
            await refused
    assert (await store.conversation(made.id)).system_prompt == "éé"
    await store.extend_reply(reply, "content", "x")
    with pytest.raises(StoreFull, match="MAX_STORE_BYTES is 20"):
        await store.extend_reply(reply, "content", "éé")  # of which one fits, and a half
    await store.extend_reply(reply, "content", "x")
    await store.settle_reply(reply)
    message = await store.finish_reply(made.id, reply.id, Finish())
    assert message is not None and message.transcript.content == "xéx"
    with pytest.raises(StoreFull):
        await store.add_user_message(made.id, Question("x"))
    assert await store.counts() == (1, 2)
    await store.create_conversation()
    assert (await store.update_conversation(made.id, {"title": None})).title == "four"


async def test_a_full_store_begins_no_reply() -> None:
    store = await store_of(max_store_bytes=4)
    conversation_id = await asked(store, "four")
    with pytest.raises(StoreFull, match="MAX_STORE_BYTES is 4"):
        await store.begin_reply(conversation_id)
    assert await contents(store, conversation_id) == ["four"]


async def test_a_failed_reply_that_filled_the_store_can_be_replaced() -> None:
    """The text it takes away makes the room."""
    store = await store_of(max_store_bytes=8)
    conversation_id = await asked(store, "four")
    await answered(store, conversation_id, "more", FAILED)
    await answered(store, conversation_id, "less")
    assert await contents(store, conversation_id) == ["four", "less"]


async def small_question(store: Store, conversation_id: str) -> None:
    await store.add_user_message(conversation_id, Question("x", f"test/{uuid4()}" + "x" * 150))


async def small_answer(store: Store, conversation_id: str) -> None:
    await store.add_user_message(conversation_id, Question("x"))
    report = Report(f"gen-{uuid4()}", usage=json.dumps(USAGE))
    await answered(store, conversation_id, "x", Finish("stop"), report)


async def small_failure(store: Store, conversation_id: str) -> None:
    await store.add_user_message(conversation_id, Question("x"))
    failure = Failure(502, f"Upstream failed: {uuid4()}" + "x" * 300, retryable=True)
    await answered(store, conversation_id, "x", failure)


async def empty_conversation(store: Store, _: str) -> None:
    await store.create_conversation()


@pytest.mark.engines("memory", "sqlite")  # which keeps them elsewhere
@pytest.mark.parametrize("step", [small_question, small_answer, small_failure, empty_conversation])
async def test_many_small_things_are_counted_as_what_they_keep(
    step: Callable[[Store, str], Awaitable[None]], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not as the one character that each has: by MAX_STORE_BYTES a container's memory is planned."""
    caplog.set_level(logging.CRITICAL, "store")  # pytest keeps every line
    most = 512 * 1024
    monkeypatch.setattr("stores.rules.LEAST_BESIDE", most)
    store = await store_of(max_store_bytes=most, max_conversations=100_000, max_messages=100_000)
    conversation_id = (await store.create_conversation()).id
    tracemalloc.start()
    try:
        with pytest.raises(StoreFull, match="MAX_STORE_BYTES"):
            while True:
                await step(store, conversation_id)
        assert 0.5 * most < tracemalloc.get_traced_memory()[0] < 1.1 * most + 50_000  # the engine itself
        while (page := await store.list_conversations(200))[0]:
            for conversation in page[0]:
                await store.delete_conversation(conversation.id)
        conversation_id = (await store.create_conversation()).id
        await small_question(store, conversation_id)
        gc.collect()  # futures and their results hold each other
        assert tracemalloc.get_traced_memory()[0] < 0.2 * most
    finally:
        tracemalloc.stop()


async def test_text_takes_no_more_memory_than_its_bytes(caplog: pytest.LogCaptureFixture) -> None:
    """An emoji would make Python keep four bytes for each character of a string."""
    caplog.set_level(logging.CRITICAL, "store")
    store = await store_of()
    conversation_id = (await store.create_conversation()).id
    text = "x" * 50_000 + "😀"
    tracemalloc.start()
    try:
        for _ in range(10):
            await store.add_user_message(conversation_id, Question(text))
            await answered(store, conversation_id, text)
        assert tracemalloc.get_traced_memory()[0] < 1.1 * 20 * len(text.encode())
    finally:
        tracemalloc.stop()
    assert await contents(store, conversation_id) == [text] * 20


async def test_a_failed_reply_can_be_replaced_however_much_is_kept_beside_text(monkeypatch: pytest.MonkeyPatch) -> None:
    store = await store_of(max_store_bytes=10_000)
    conversation_id = await asked(store)
    await answered(store, conversation_id, "more", FAILED)
    monkeypatch.setattr("stores.rules.LEAST_BESIDE", 0)
    store._settings = Settings(max_store_bytes=1_000)
    await answered(store, conversation_id, "less")
    assert await contents(store, conversation_id) == ["Why?", "less"]


ROOM = 200
TEXT = st.text(st.sampled_from("aé€😀\n"), min_size=1, max_size=30).filter(str.strip)
OPERATIONS = ["make", "update", "delete", "add", "cut", "begin", "extend", "think", "finish", "fail"]
ENDINGS: dict[str, Ending] = {"finish": Finish(), "fail": FAILED}


async def operate(store: Store, what: str, which: int, text: str) -> None:
    """One operation on one of the conversations, if there are any."""
    listed, _ = await store.list_conversations(200)
    if what == "make":
        await store.create_conversation(title=text if which % 2 else None, system_prompt=text)
    elif listed:
        await operate_on(store, listed[which % len(listed)].id, what, which, text)


async def operate_on(store: Store, conversation_id: str, what: str, which: int, text: str) -> None:
    """One operation on this conversation, if it makes sense."""
    messages = await store.messages(conversation_id)
    streaming = [message for message in messages if message.status == "streaming"]
    if what == "update":
        changes: list[dict[str, Any]] = [
            {"title": text},
            {"title": None},
            {"system_prompt": text},
            {"system_prompt": None, "title": text},
        ]
        await store.update_conversation(conversation_id, changes[which % 4])
    elif what == "delete":
        await store.delete_conversation(conversation_id)
    elif what == "add":
        await store.add_user_message(conversation_id, Question(text))
    elif what == "cut" and messages:
        await store.delete_messages_from(conversation_id, messages[which % len(messages)].id)
    elif what == "begin":
        await store.begin_reply(conversation_id)
    elif what in ("extend", "think") and streaming:
        kind: Kind = "content" if what == "extend" else "reasoning"
        await store.extend_reply(reply := store._engine.replies[streaming[0].id], kind, text)
        await store.settle_reply(reply)
    elif what in ENDINGS and streaming:
        await store.finish_reply(conversation_id, streaming[0].id, ENDINGS[what])


async def kept(store: Store) -> int:
    """Bytes of the text that can be read, titles apart."""
    listed, _ = await store.list_conversations(200)
    size = sum(byte_size(entry.system_prompt) for entry in listed)
    for entry in listed:
        for message in await store.messages(entry.id):
            size += byte_size(message.transcript.content) + byte_size(message.transcript.reasoning)
    return size


@given(st.lists(st.tuples(st.sampled_from(OPERATIONS), st.integers(0, 11), TEXT), max_size=60))
async def test_after_anything_that_happened_a_store_that_is_emptied_has_exactly_its_room(
    operations: list[tuple[str, int, str]],
) -> None:
    store = await store_of(max_conversations=4, max_messages=6, max_store_bytes=ROOM)
    for operation in operations:
        with contextlib.suppress(StoreFull, NothingOwed, ReplyInProgress):
            await operate(store, *operation)
        await assert_consistent(store)
    for entry in (await store.list_conversations(200))[0]:
        await store.delete_conversation(entry.id)
    assert await store.counts() == (0, 0)
    with pytest.raises(StoreFull):
        await store.create_conversation(system_prompt="x" * (ROOM + 1))
    await store.create_conversation(system_prompt="x" * ROOM)


async def assert_consistent(store: Store) -> None:
    """Assert what holds for a store at any time."""
    listed, _ = await store.list_conversations(200)
    assert await kept(store) <= ROOM
    assert await store.counts() == (len(listed), sum(entry.message_count for entry in listed))
    times = [entry.updated_at for entry in listed]
    assert times == sorted(set(times), reverse=True) and len(listed) <= 4
    for entry in listed:
        messages = await store.messages(entry.id)
        assert len(messages) == entry.message_count <= 6
        assert all(m.status != "streaming" for m in messages[:-1])
        assert all(earlier.timestamp < later.timestamp for earlier, later in pairwise(messages))
        assert all(entry.created_at <= m.timestamp <= entry.updated_at for m in messages)
