"""The rules as functions: from a conversation, the limits and a moment to a change; no engine, no clock, no wait."""

from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from serving.settings import Settings
from stores.changes import Change, Sums, held, iso, moment
from stores.records import (
    Ending,
    Failure,
    IdTaken,
    Message,
    NotFound,
    NothingOwed,
    Question,
    Repeated,
    ReplyInProgress,
    StoreError,
    StoreFull,
)
from stores.rules import CONVERSATION_BYTES, LEAST_BESIDE, MESSAGE_BYTES, Rules
from stores.threads import Thread

NOW = 1_770_000_000_000_000
SETTINGS = Settings(model_name="m", max_messages=9, max_store_bytes=400)
ENDINGS = [Ending("complete", "stop", {"cost": 1}), Ending("stopped"), Ending("failed", error=Failure(502, "No", True))]

TEXTS = st.text(st.sampled_from("aé👋 \n\r\u2028"), max_size=100)
STEPS = st.one_of(
    st.tuples(st.just("ask"), TEXTS.filter(str.strip), st.integers(-1, 9)),
    st.tuples(st.just("ask and begin"), TEXTS.filter(str.strip), st.integers(-1, 9)),
    st.tuples(st.just("begin"), st.sampled_from([None, "other/model"])),
    st.tuples(st.just("text"), st.sampled_from(["content", "reasoning"]), TEXTS),
    st.tuples(st.just("finish"), st.sampled_from(ENDINGS)),
    st.tuples(st.just("truncate"), st.integers(0, 9)),
    st.tuples(st.just("title"), st.none() | TEXTS.filter(str.strip)),
    st.tuples(st.just("prompt"), st.none() | TEXTS),
    st.tuples(st.just("options"), st.none() | st.just({"temperature": 1})),
    st.tuples(st.just("delete")),
)
HISTORIES = st.lists(STEPS, max_size=25)


def rules(now: int = NOW, sums: Sums | None = None, **settings: Any) -> Rules:
    """At that moment, in a store that holds so much."""
    return Rules(replace(SETTINGS, **settings), sums or Sums(), now)


def created(rules: Rules | None = None, **given: Any) -> Change:
    nothing: dict[str, Any] = {"id": None, "default_model": None, "title": None, "system_prompt": None, "options": None}
    nothing |= {"messages": ()}
    return (rules or Rules(SETTINGS, Sums(), NOW)).created(**nothing | given)


def after(change: Change | None) -> Thread:
    """What the change leads to."""
    assert change and change.after
    return change.after


def change_of(thread: Thread, step: tuple[Any, ...], rules: Rules) -> Change | None:
    """What a rule makes of the conversation."""
    match step:
        case "ask", content, place:
            return rules.asked(thread, Question(content, after=after_place(thread, place)))
        case "ask and begin", content, place:
            return rules.asked_and_begun(thread, Question(content, after=after_place(thread, place)))
        case "begin", model:
            return rules.begun(thread, model)
        case "finish", ending:
            reply = thread.in_progress
            return rules.finished(thread, reply.id if reply else "none", ending)
        case "truncate", place:
            return rules.truncated(thread, [*thread.messages, "none"][min(place, len(thread.messages))])
        case "title", title:
            return rules.updated(thread, {"title": title})
        case "prompt", prompt:
            return rules.updated(thread, {"system_prompt": prompt})
        case "options", options:
            return rules.updated(thread, {"options": options})
        case ("delete",):
            return rules.deleted(thread)
    raise AssertionError(step)


def after_place(thread: Thread, place: int) -> Any:
    """Of a question: behind that message; before all; -1: behind all."""
    return ... if place < 0 else [None, *thread.messages, "none"][min(place, len(thread.messages) + 1)]


def seen(thread: Thread) -> object:
    """Everything that can be seen of it."""
    messages = [
        [getattr(message, entry.name) for entry in fields(Message) if entry.name != "transcript"]
        + [message.transcript.parts()]
        for message in thread.messages.values()
    ]
    return thread.conversation, thread.own_title, thread.first_line, list(thread.messages), messages


def total(thread: Thread | None) -> Sums:
    return held(thread) if thread else Sums()


def title_of(thread: Thread) -> str | None:
    first = next((message for message in thread.messages.values() if message.role == "user"), None)
    line = first.transcript.content.strip().splitlines()[0][:80].rstrip() if first else None
    return thread.own_title or line


def check(thread: Thread | None, change: Change) -> None:
    """Whatever the rule, the change must be this."""
    assert change.before is thread
    difference = total(change.after)
    difference.add(total(thread), -1)
    assert change.sums == difference
    before = list(thread.messages.values()) if thread else []
    assert [*before[change.kept :]] == [*change.removed]
    if change.after is None:
        assert (change.kept, change.added) == (0, ())
        return
    assert list(change.after.messages.values()) == [*before[: change.kept], *change.added]
    assert list(change.after.messages) == [message.id for message in change.after.messages.values()]
    conversation = change.after.conversation
    assert conversation.message_count == len(change.after.messages)
    assert conversation.title == title_of(change.after)
    assert (conversation.updated_at, conversation.id) == (iso(change.at), change.conversation_id)
    assert thread is None or conversation.updated_at > thread.conversation.updated_at
    was, now = thread.in_progress if thread else None, change.after.in_progress
    assert change.ended is (was if was is not now else None)
    assert change.began is (now if was is not now else None)


@given(HISTORIES, st.sampled_from([400, 5_000]))
def test_every_change_is_a_splice_whose_sums_are_exact_and_the_conversation_before_it_stays_as_it_was(
    history: list[tuple[Any, ...]], room: int
) -> None:
    sums, now, thread = Sums(), NOW, None
    for step in [None, *history]:
        at = rules(now, replace(sums), max_store_bytes=room)
        if step and step[0] == "text" and thread:
            extend(thread, step[1], at.fitting(step[2]), sums)
            continue
        before = seen(thread) if thread else None
        try:
            change = change_of(thread, step, at) if thread and step else created(at)
        except StoreError as error:
            assert thread and seen(thread) == before
            assert not isinstance(error, StoreFull) or "MAX_" in str(error)
            continue
        assert (seen(thread) if thread else None) == before
        if change is None:
            continue
        check(thread, change)
        sums.add(change.sums)
        assert sums.text <= room and sums == total(change.after)
        assert change.after is None or len(change.after.messages) <= SETTINGS.max_messages
        thread, now = change.after, change.at + 1


def extend(thread: Thread, kind: Any, text: str, sums: Sums) -> None:
    """As an engine does it."""
    if reply := thread.in_progress:
        before = reply.transcript.size
        reply.transcript.append(kind, text)
        sums.text += reply.transcript.size - before


# New conversations


@given(st.lists(st.tuples(st.sampled_from(["user", "assistant"]), TEXTS.filter(str.strip)), max_size=9))
def test_an_import_has_its_turns_in_their_order_each_at_a_moment_of_its_own(turns: list[tuple[str, str]]) -> None:
    given = [{"role": role, "content": content} for role, content in turns]
    change = created(rules(max_store_bytes=10_000), messages=given)
    check(None, change)
    messages = list(after(change).messages.values())
    assert [(message.role, message.transcript.content) for message in messages] == turns
    times = [after(change).conversation.created_at, *(message.timestamp for message in messages)]
    assert times == sorted(set(times)) and moment(times[-1]) == change.at


def test_what_is_not_given_is_what_the_settings_say() -> None:
    conversation = after(created()).conversation
    assert (conversation.default_model, conversation.title, conversation.system_prompt) == ("m", None, None)
    conversation = after(created(id="own", default_model="a/b", title="T", system_prompt="P")).conversation
    given = (conversation.id, conversation.default_model, conversation.title, conversation.system_prompt)
    assert given == ("own", "a/b", "T", "P")


def test_as_many_conversations_as_allowed_are_made() -> None:
    created(rules(sums=Sums(conversations=2), max_conversations=3))
    with pytest.raises(StoreFull, match="MAX_CONVERSATIONS is 3"):
        created(rules(sums=Sums(conversations=3), max_conversations=3))


# Questions


def with_turns(*contents: str) -> Thread:
    """A conversation with these questions and replies in turns."""
    roles = ("user", "assistant")
    turns = [{"role": roles[number % 2], "content": content} for number, content in enumerate(contents)]
    return after(created(messages=turns))


def asked(thread: Thread, *, id: str | None = None, now: int = NOW + 100, **settings: Any) -> Thread:
    return after(rules(now, **settings).asked(thread, Question("Why?", id=id)))


def test_a_question_that_is_there_already_is_found_however_full_everything_is() -> None:
    thread = asked(with_turns(), id="q-1")
    full = rules(NOW + 200, Sums(99, 99, 99_999_999), max_messages=1)
    for rule in (full.asked, full.asked_and_begun) if thread.in_progress else (full.asked,):
        with pytest.raises(Repeated) as repeated:
            rule(thread, Question("Why?", id="q-1"))
        assert repeated.value.found is thread.messages["q-1"]


def test_a_question_asked_again_brings_its_first_reply_or_begins_the_one_that_is_owed() -> None:
    thread = asked(with_turns("One", "Two"), id="q-1")
    question = Question("Why?", id="q-1", after=None)
    change = rules(NOW + 200).asked_and_begun(thread, question)
    assert (change.removed, change.began) == ([], after(change).last)
    for now in (after(change), asked(after(finished(after(change))), now=NOW + 400)):
        with pytest.raises(Repeated) as repeated:
            rules(NOW + 500).asked_and_begun(now, question)
        assert repeated.value.found.role == "assistant" and repeated.value.found in now.messages.values()


def finished(thread: Thread) -> Change | None:
    assert thread.last
    return rules(NOW + 300).finished(thread, thread.last.id, Ending("complete"))


@pytest.mark.parametrize(
    "question",
    [
        Question("Other", id="q-1"),
        Question("Why?", model="other/model", id="q-1"),
        Question("Why?", model="", id="q-1"),
        Question("Why?", options={"temperature": 1}, id="q-1"),
        Question("Other", id="q-1", after=None),
    ],
)
def test_an_id_means_one_question_also_where_it_would_be_removed(question: Question) -> None:
    thread = asked(with_turns("One", "Two"), id="q-1")
    for rule in (rules().asked, rules().asked_and_begun):
        with pytest.raises(IdTaken):
            rule(thread, question)
    reply = list(thread.messages)[1]
    with pytest.raises(IdTaken):
        rules().asked(thread, Question("Two", id=reply))


@given(st.integers(0, 4))
def test_after_keeps_what_is_before_it_and_removes_the_rest(place: int) -> None:
    thread = with_turns("1", "2", "3", "4")
    change = rules(NOW + 100).asked(thread, Question("New", after=[None, *thread.messages][place]))
    check(thread, change)
    contents = [message.transcript.content for message in after(change).messages.values()]
    assert contents == [*map(str, range(1, place + 1)), "New"]


def test_after_removes_a_reply_in_progress_but_not_the_one_that_it_names() -> None:
    thread = after(rules(NOW + 100).begun(with_turns("One")))
    question, reply = thread.messages
    with pytest.raises(ReplyInProgress, match="`after`"):
        rules(NOW + 200).asked(thread, Question("New", after=reply))
    with pytest.raises(ReplyInProgress, match="is in progress"):
        rules(NOW + 200).asked(thread, Question("New"))
    with pytest.raises(NotFound):
        rules(NOW + 200).asked(thread, Question("New", after="none"))
    change = rules(NOW + 200).asked(thread, Question("New", after=question))
    check(thread, change)
    assert change.ended is thread.messages[reply]


# Replies


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_reply_is_owed_to_a_question_and_in_place_of_a_failed_one(ending: Ending) -> None:
    thread = after(rules(NOW + 100).begun(with_turns("One")))
    reply = thread.in_progress
    assert reply
    ended = after(rules(NOW + 200).finished(thread, reply.id, ending))
    if ending.status != "failed":
        with pytest.raises(NothingOwed):
            rules(NOW + 300).begun(ended)
        return
    change = rules(NOW + 300).begun(ended)
    check(ended, change)
    assert [message.id for message in change.removed] == [reply.id] and change.began


def test_one_that_is_in_progress_is_not_begun_again() -> None:
    thread = after(rules(NOW + 100).begun(with_turns("One")))
    with pytest.raises(Repeated) as repeated:
        rules(NOW + 200).begun(thread)
    assert repeated.value.found is thread.last


def test_a_reply_ends_once_and_only_where_it_is() -> None:
    thread = after(rules(NOW + 100).begun(with_turns("One")))
    assert thread.last
    assert rules(NOW + 200).finished(thread, "other", Ending("stopped")) is None
    ended = after(rules(NOW + 200).finished(thread, thread.last.id, Ending("stopped")))
    assert rules(NOW + 300).finished(ended, thread.last.id, Ending("complete")) is None
    assert thread.last.status == "streaming"


@pytest.mark.parametrize(
    ("costs", "total"),
    [
        ([0], 0.0),
        ([0.25, 1], 1.25),
        ([None, 0.5, {}], 0.5),
        ([10**400, 0.5, -(10**30), 1e300, True, "1"], 0.5),
        ([None], None),
        ([10**400], None),
    ],
)
def test_what_replies_cost_is_added_up_as_a_float_that_any_engine_keeps(costs: list[Any], total: float | None) -> None:
    thread, now = with_turns("One"), NOW
    for number, cost in enumerate(costs):
        begun = after(rules(now := now + 100, max_messages=99).begun(thread))
        assert begun.last
        usage = None if cost is None else {"cost": cost}
        ended = after(rules(now := now + 100).finished(begun, begun.last.id, Ending("stopped", usage=usage)))
        thread = after(rules(now := now + 100, max_messages=99).asked(ended, Question(f"{number}")))
    assert (thread.conversation.cost, type(thread.conversation.cost)) == (total, type(total))


def test_nothing_is_owed_in_an_empty_conversation() -> None:
    with pytest.raises(NothingOwed, match="empty"):
        rules().begun(with_turns())


# Limits


def test_a_conversation_takes_as_many_messages_as_allowed_and_a_failed_reply_gives_its_place() -> None:
    thread = with_turns(*"12345678")
    asked(thread)
    with pytest.raises(StoreFull, match="MAX_MESSAGES is 9"):
        rules(NOW + 100).asked_and_begun(thread, Question("Why?"))
    with pytest.raises(StoreFull, match="MAX_MESSAGES is 9"):
        asked(asked(thread))
    thread = after(rules(NOW + 100, max_messages=2).begun(with_turns("One")))
    assert thread.last
    failed = after(rules(NOW + 200).finished(thread, thread.last.id, ENDINGS[2]))
    rules(NOW + 300, max_messages=2).begun(failed)
    rules(NOW + 300, max_messages=2).asked(failed, Question("Why?", after=None))


@given(st.integers(0, 400), TEXTS.filter(str.strip))
def test_text_fits_to_the_last_byte(held: int, text: str) -> None:
    size = len(text.encode())
    full = rules(NOW + 100, Sums(1, 0, held))
    thread = with_turns()
    if held + size <= 400:
        assert full.asked(thread, Question(text)).sums.text == size
    else:
        with pytest.raises(StoreFull, match="MAX_STORE_BYTES is 400"):
            full.asked(thread, Question(text))


def test_a_question_with_its_reply_leaves_room_for_the_replys_first_byte() -> None:
    thread, question = with_turns(), Question("Why?")
    rules(NOW + 100, Sums(1, 0, 396)).asked(thread, question)
    rules(NOW + 100, Sums(1, 0, 395)).asked_and_begun(thread, question)
    with pytest.raises(StoreFull, match="MAX_STORE_BYTES is 400"):
        rules(NOW + 100, Sums(1, 0, 396)).asked_and_begun(thread, question)


@given(st.integers(380, 420), TEXTS)
def test_as_much_of_a_replys_text_is_taken_as_fits_and_no_character_is_cut(held: int, text: str) -> None:
    assume(held <= 400)
    fitting = rules(sums=Sums(text=held)).fitting(text)
    room = 400 - held
    assert text.startswith(fitting) and len(fitting.encode()) <= room
    assert fitting == text or len((fitting + text[len(fitting)]).encode()) > room


def test_deleting_cutting_and_ending_need_no_room() -> None:
    thread = after(rules(NOW + 100).begun(with_turns("One", "Two", "Three")))
    full = rules(NOW + 200, Sums(99, 99_999, 99_999), max_messages=1)
    assert thread.last
    full.deleted(thread)
    full.truncated(thread, next(iter(thread.messages)))
    full.finished(thread, thread.last.id, ENDINGS[0])
    full.updated(thread, {"title": None})


def test_what_is_kept_beside_text_is_counted_too() -> None:
    most = LEAST_BESIDE // MESSAGE_BYTES
    thread = with_turns()
    rules(NOW + 100, Sums(0, most - 1, 0)).asked(thread, Question("1"))
    with pytest.raises(StoreFull, match="MAX_STORE_BYTES"):
        rules(NOW + 100, Sums(0, most, 0)).asked(thread, Question("1"))
    with pytest.raises(StoreFull, match="MAX_STORE_BYTES"):
        created(rules(sums=Sums(LEAST_BESIDE // CONVERSATION_BYTES, 0, 0), max_conversations=1_000_000))


# Expiry


def test_what_is_older_expires_but_not_while_a_reply_is_in_progress() -> None:
    thread = with_turns("One")
    at = moment(thread.conversation.updated_at)
    assert rules().expired(thread, iso(at)) is None
    change = rules().expired(thread, iso(at + 1))
    assert change and change.after is None
    check(thread, change)
    begun = after(rules(NOW + 100).begun(thread))
    assert rules().expired(begun, iso(NOW + 10_000)) is None
