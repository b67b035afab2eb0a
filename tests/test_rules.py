"""The rules as functions: from a conversation, the limits and a moment to a change; no engine, no clock, no wait."""

import json
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from result import Ending, Failure, Finish, Report, Stopped
from settings import Settings
from stores.records import (
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
from stores.rules import CONVERSATION_BYTES, LEAST_BESIDE, MESSAGE_BYTES, Rules, imported
from stores.snapshot import Change, Snapshot, Totals, iso, moment, totals_of

NOW = 1_770_000_000_000_000
SETTINGS = Settings(model_name="m", max_messages=9, max_store_bytes=400)
ENDINGS: list[Ending] = [Finish("stop"), Stopped(), Failure(502, "No", True)]

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


def rules(now: int = NOW, totals: Totals | None = None, **settings: Any) -> Rules:
    """At that moment, in a store that holds so much."""
    return Rules(replace(SETTINGS, **settings), totals or Totals(), now)


def created(rules: Rules | None = None, **given: Any) -> Change:
    nothing: dict[str, Any] = {"id": None, "default_model": None, "title": None, "system_prompt": None, "options": None}
    history = [*imported(given.pop("messages", ()), NOW)]
    return (rules or Rules(SETTINGS, Totals(), NOW)).create(history, **nothing | given)


def after(change: Change | None) -> Snapshot:
    """What the change leads to."""
    assert change and change.after
    return change.after


def change_of(snapshot: Snapshot, step: tuple[Any, ...], rules: Rules) -> Change | None:
    """What a rule makes of the conversation."""
    match step:
        case "ask", content, place:
            return rules.add_question(snapshot, Question(content, after=after_place(snapshot, place)))
        case "ask and begin", content, place:
            return rules.add_question_and_begin_reply(snapshot, Question(content, after=after_place(snapshot, place)))
        case "begin", model:
            return rules.begin_reply(snapshot, model)
        case "finish", ending:
            reply = snapshot.in_progress
            return rules.finish(snapshot, reply.id if reply else "none", ending)
        case "truncate", place:
            return rules.truncate(snapshot, [*snapshot.messages, "none"][min(place, len(snapshot.messages))])
        case "title", title:
            return rules.update(snapshot, {"title": title})
        case "prompt", prompt:
            return rules.update(snapshot, {"system_prompt": prompt})
        case "options", options:
            return rules.update(snapshot, {"options": options})
        case ("delete",):
            return rules.delete(snapshot)
    raise AssertionError(step)


def after_place(snapshot: Snapshot, place: int) -> Any:
    """Of a question: behind that message; before all; -1: behind all."""
    return ... if place < 0 else [None, *snapshot.messages, "none"][min(place, len(snapshot.messages) + 1)]


def seen(snapshot: Snapshot) -> object:
    """Everything that can be seen of it."""
    messages = [
        [getattr(message, entry.name) for entry in fields(Message) if entry.name != "transcript"]
        + [message.transcript.parts()]
        for message in snapshot.messages.values()
    ]
    return snapshot.conversation, snapshot.own_title, snapshot.first_line, list(snapshot.messages), messages


def total(snapshot: Snapshot | None) -> Totals:
    return totals_of(snapshot) if snapshot else Totals()


def title_of(snapshot: Snapshot) -> str | None:
    first = next((message for message in snapshot.messages.values() if message.role == "user"), None)
    line = first.transcript.content.strip().splitlines()[0][:80].rstrip() if first else None
    return snapshot.own_title or line


def check(snapshot: Snapshot | None, change: Change) -> None:
    """Whatever the rule, the change must be this."""
    assert change.before is snapshot
    difference = total(change.after)
    difference.add(total(snapshot), -1)
    assert change.totals == difference
    before = list(snapshot.messages.values()) if snapshot else []
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
    assert snapshot is None or conversation.updated_at > snapshot.conversation.updated_at
    was, now = snapshot.in_progress if snapshot else None, change.after.in_progress
    assert change.ended is (was if was is not now else None)
    assert change.began is (now if was is not now else None)


@given(HISTORIES, st.sampled_from([400, 5_000]))
def test_every_change_is_a_splice_whose_sums_are_exact_and_the_conversation_before_it_stays_as_it_was(
    history: list[tuple[Any, ...]], room: int
) -> None:
    totals, now, snapshot = Totals(), NOW, None
    for step in [None, *history]:
        at = rules(now, replace(totals), max_store_bytes=room)
        if step and step[0] == "text" and snapshot:
            extend(snapshot, step[1], at.fitting(step[2]), totals)
            continue
        before = seen(snapshot) if snapshot else None
        try:
            change = change_of(snapshot, step, at) if snapshot and step else created(at)
        except StoreError as error:
            assert snapshot and seen(snapshot) == before
            assert not isinstance(error, StoreFull) or "MAX_" in str(error)
            continue
        assert (seen(snapshot) if snapshot else None) == before
        if change is None:
            continue
        check(snapshot, change)
        totals.add(change.totals)
        assert totals.text <= room and totals == total(change.after)
        assert change.after is None or len(change.after.messages) <= SETTINGS.max_messages
        snapshot, now = change.after, change.at + 1


def extend(snapshot: Snapshot, kind: Any, text: str, totals: Totals) -> None:
    """As an engine does it."""
    if reply := snapshot.in_progress:
        before = reply.transcript.size
        reply.transcript.append(kind, text)
        totals.text += reply.transcript.size - before


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
    created(rules(totals=Totals(conversations=2), max_conversations=3))
    with pytest.raises(StoreFull, match="MAX_CONVERSATIONS is 3"):
        created(rules(totals=Totals(conversations=3), max_conversations=3))


# Questions


def with_turns(*contents: str) -> Snapshot:
    """A conversation with these questions and replies in turns."""
    roles = ("user", "assistant")
    turns = [{"role": roles[number % 2], "content": content} for number, content in enumerate(contents)]
    return after(created(messages=turns))


def asked(snapshot: Snapshot, *, id: str | None = None, now: int = NOW + 100, **settings: Any) -> Snapshot:
    return after(rules(now, **settings).add_question(snapshot, Question("Why?", id=id)))


def test_a_question_that_is_there_already_is_found_however_full_everything_is() -> None:
    snapshot = asked(with_turns(), id="q-1")
    full = rules(NOW + 200, Totals(99, 99, 99_999_999), max_messages=1)
    for rule in (
        (full.add_question, full.add_question_and_begin_reply) if snapshot.in_progress else (full.add_question,)
    ):
        with pytest.raises(Repeated) as repeated:
            rule(snapshot, Question("Why?", id="q-1"))
        assert repeated.value.found is snapshot.messages["q-1"]


def test_a_question_asked_again_brings_its_first_reply_or_begins_the_one_that_is_owed() -> None:
    snapshot = asked(with_turns("One", "Two"), id="q-1")
    question = Question("Why?", id="q-1", after=None)
    change = rules(NOW + 200).add_question_and_begin_reply(snapshot, question)
    assert (change.removed, change.began) == ([], after(change).last)
    for now in (after(change), asked(after(finished(after(change))), now=NOW + 400)):
        with pytest.raises(Repeated) as repeated:
            rules(NOW + 500).add_question_and_begin_reply(now, question)
        assert repeated.value.found.role == "assistant" and repeated.value.found in now.messages.values()


def finished(snapshot: Snapshot) -> Change | None:
    assert snapshot.last
    return rules(NOW + 300).finish(snapshot, snapshot.last.id, Finish())


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
    snapshot = asked(with_turns("One", "Two"), id="q-1")
    for rule in (rules().add_question, rules().add_question_and_begin_reply):
        with pytest.raises(IdTaken):
            rule(snapshot, question)
    reply = list(snapshot.messages)[1]
    with pytest.raises(IdTaken):
        rules().add_question(snapshot, Question("Two", id=reply))


@given(st.integers(0, 4))
def test_after_keeps_what_is_before_it_and_removes_the_rest(place: int) -> None:
    snapshot = with_turns("1", "2", "3", "4")
    change = rules(NOW + 100).add_question(snapshot, Question("New", after=[None, *snapshot.messages][place]))
    check(snapshot, change)
    contents = [message.transcript.content for message in after(change).messages.values()]
    assert contents == [*map(str, range(1, place + 1)), "New"]


def test_after_removes_a_reply_in_progress_but_not_the_one_that_it_names() -> None:
    snapshot = after(rules(NOW + 100).begin_reply(with_turns("One")))
    question, reply = snapshot.messages
    with pytest.raises(ReplyInProgress, match="`after`"):
        rules(NOW + 200).add_question(snapshot, Question("New", after=reply))
    with pytest.raises(ReplyInProgress, match="is in progress"):
        rules(NOW + 200).add_question(snapshot, Question("New"))
    with pytest.raises(NotFound):
        rules(NOW + 200).add_question(snapshot, Question("New", after="none"))
    change = rules(NOW + 200).add_question(snapshot, Question("New", after=question))
    check(snapshot, change)
    assert change.ended is snapshot.messages[reply]


# Replies


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_reply_is_owed_to_a_question_and_in_place_of_a_failed_one(ending: Ending) -> None:
    snapshot = after(rules(NOW + 100).begin_reply(with_turns("One")))
    reply = snapshot.in_progress
    assert reply
    ended = after(rules(NOW + 200).finish(snapshot, reply.id, ending))
    if not isinstance(ending, Failure):
        with pytest.raises(NothingOwed):
            rules(NOW + 300).begin_reply(ended)
        return
    change = rules(NOW + 300).begin_reply(ended)
    check(ended, change)
    assert [message.id for message in change.removed] == [reply.id] and change.began


def test_one_that_is_in_progress_is_not_begun_again() -> None:
    snapshot = after(rules(NOW + 100).begin_reply(with_turns("One")))
    with pytest.raises(Repeated) as repeated:
        rules(NOW + 200).begin_reply(snapshot)
    assert repeated.value.found is snapshot.last


def test_a_reply_ends_once_and_only_where_it_is() -> None:
    snapshot = after(rules(NOW + 100).begin_reply(with_turns("One")))
    assert snapshot.last
    assert rules(NOW + 200).finish(snapshot, "other", Stopped()) is None
    ended = after(rules(NOW + 200).finish(snapshot, snapshot.last.id, Stopped()))
    assert rules(NOW + 300).finish(ended, snapshot.last.id, Finish()) is None
    assert snapshot.last.status == "streaming"


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
    snapshot, now = with_turns("One"), NOW
    for number, cost in enumerate(costs):
        begun = after(rules(now := now + 100, max_messages=99).begin_reply(snapshot))
        assert begun.last
        report = Report(usage=None if cost is None else json.dumps({"cost": cost}))
        ended = after(rules(now := now + 100).finish(begun, begun.last.id, Stopped(), report))
        snapshot = after(rules(now := now + 100, max_messages=99).add_question(ended, Question(f"{number}")))
    assert (snapshot.conversation.cost, type(snapshot.conversation.cost)) == (total, type(total))


def test_nothing_is_owed_in_an_empty_conversation() -> None:
    with pytest.raises(NothingOwed, match="empty"):
        rules().begin_reply(with_turns())


# Limits


def test_a_conversation_takes_as_many_messages_as_allowed_and_a_failed_reply_gives_its_place() -> None:
    snapshot = with_turns(*"12345678")
    asked(snapshot)
    with pytest.raises(StoreFull, match="MAX_MESSAGES is 9"):
        rules(NOW + 100).add_question_and_begin_reply(snapshot, Question("Why?"))
    with pytest.raises(StoreFull, match="MAX_MESSAGES is 9"):
        asked(asked(snapshot))
    snapshot = after(rules(NOW + 100, max_messages=2).begin_reply(with_turns("One")))
    assert snapshot.last
    failed = after(rules(NOW + 200).finish(snapshot, snapshot.last.id, ENDINGS[2]))
    rules(NOW + 300, max_messages=2).begin_reply(failed)
    rules(NOW + 300, max_messages=2).add_question(failed, Question("Why?", after=None))


@given(st.integers(0, 400), TEXTS.filter(str.strip))
def test_text_fits_to_the_last_byte(totals_of: int, text: str) -> None:
    size = len(text.encode())
    full = rules(NOW + 100, Totals(1, 0, totals_of))
    snapshot = with_turns()
    if totals_of + size <= 400:
        assert full.add_question(snapshot, Question(text)).totals.text == size
    else:
        with pytest.raises(StoreFull, match="MAX_STORE_BYTES is 400"):
            full.add_question(snapshot, Question(text))


def test_a_question_with_its_reply_leaves_room_for_the_replys_first_byte() -> None:
    snapshot, question = with_turns(), Question("Why?")
    rules(NOW + 100, Totals(1, 0, 396)).add_question(snapshot, question)
    rules(NOW + 100, Totals(1, 0, 395)).add_question_and_begin_reply(snapshot, question)
    with pytest.raises(StoreFull, match="MAX_STORE_BYTES is 400"):
        rules(NOW + 100, Totals(1, 0, 396)).add_question_and_begin_reply(snapshot, question)


@given(st.integers(380, 420), TEXTS)
def test_as_much_of_a_replys_text_is_taken_as_fits_and_no_character_is_cut(totals_of: int, text: str) -> None:
    assume(totals_of <= 400)
    fitting = rules(totals=Totals(text=totals_of)).fitting(text)
    room = 400 - totals_of
    assert text.startswith(fitting) and len(fitting.encode()) <= room
    assert fitting == text or len((fitting + text[len(fitting)]).encode()) > room


def test_deleting_cutting_and_ending_need_no_room() -> None:
    snapshot = after(rules(NOW + 100).begin_reply(with_turns("One", "Two", "Three")))
    full = rules(NOW + 200, Totals(99, 99_999, 99_999), max_messages=1)
    assert snapshot.last
    full.delete(snapshot)
    full.truncate(snapshot, next(iter(snapshot.messages)))
    full.finish(snapshot, snapshot.last.id, ENDINGS[0])
    full.update(snapshot, {"title": None})


def test_what_is_kept_beside_text_is_counted_too() -> None:
    most = LEAST_BESIDE // MESSAGE_BYTES
    snapshot = with_turns()
    rules(NOW + 100, Totals(0, most - 1, 0)).add_question(snapshot, Question("1"))
    with pytest.raises(StoreFull, match="MAX_STORE_BYTES"):
        rules(NOW + 100, Totals(0, most, 0)).add_question(snapshot, Question("1"))
    with pytest.raises(StoreFull, match="MAX_STORE_BYTES"):
        created(rules(totals=Totals(LEAST_BESIDE // CONVERSATION_BYTES, 0, 0), max_conversations=1_000_000))


# Expiry


def test_what_is_older_expires_but_not_while_a_reply_is_in_progress() -> None:
    snapshot = with_turns("One")
    at = moment(snapshot.conversation.updated_at)
    assert rules().expire(snapshot, iso(at)) is None
    change = rules().expire(snapshot, iso(at + 1))
    assert change and change.after is None
    check(snapshot, change)
    begun = after(rules(NOW + 100).begin_reply(snapshot))
    assert rules().expire(begun, iso(NOW + 10_000)) is None
