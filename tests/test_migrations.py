"""Files of older versions are brought up to date, and what is in them is read; nothing of it is lost."""

import contextlib
import json
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from result import Failure, Finish, Report
from settings import Settings
from store import Store
from stores.records import Message, Question, Transcript, decode, encode
from stores.sqlite.file import VERSION
from tests.support.process import ROOT

FIRST = (ROOT / "tests/data/version-1.sql").read_text(encoding="utf-8")
SOURCES = [{"type": "url_citation", "url": "https://e.example/é", "title": None, "start_index": 0, "end_index": 3}]


@pytest.fixture
def first(tmp_path: Path) -> Path:
    """A file as version 1 left it when its process was killed in the middle of a reply."""
    with contextlib.closing(sqlite3.connect(path := tmp_path / "chat.db")) as file:
        file.executescript(FIRST)
    return path


@contextlib.asynccontextmanager
async def opened(path: Path) -> AsyncIterator[Store]:
    store = Store(Settings(store_url=f"sqlite:///{path}", shutdown_grace=0))
    await store.open()
    try:
        yield store
    finally:
        await store.close()


def version(path: Path) -> int:
    with contextlib.closing(sqlite3.connect(path)) as file:
        found: int = file.execute("PRAGMA user_version").fetchone()[0]
    return found


async def test_a_file_of_the_first_version_is_brought_up_to_date_and_read(first: Path) -> None:
    async with opened(first) as store:
        assert await store.counts() == (3, 6)
        kept = await store.conversation("kept")
        question, complete, _, failed = await store.messages("kept")
    assert version(first) == VERSION
    assert (kept.title, kept.system_prompt, kept.default_model) == ("Of the first version", "Be brief. é 😀", "a/one")
    assert (kept.updated_at, kept.options, kept.cost) == ("2026-11-26T12:25:50.972653Z", None, 0.75)
    assert (question.id, question.transcript.content, question.model, question.options) == (
        "q-1",
        "What is kept?",
        "b/two",
        None,
    )
    assert (complete.transcript.reasoning, complete.transcript.content) == ("Hm, ", "All of it. é")
    assert (complete.finish_reason, complete.question_id) == ("stop", "q-1")
    assert complete.report == Report("gen-1", usage=complete.report.usage)
    assert json.loads(complete.report.usage or "") == {"total_tokens": 17, "cost": 0.5}
    assert failed.error == Failure(429, "Wait.", True, 20.0)


async def test_a_reply_that_the_first_version_left_in_progress_has_failed_with_its_text(first: Path) -> None:
    async with opened(first) as store:
        _, reply = await store.messages("in-progress")
    assert (reply.status, reply.transcript.content, reply.error and reply.error.code) == ("failed", "Yes, I am ", 503)


async def test_an_upgraded_file_goes_on_with_what_is_new(first: Path) -> None:
    report = Report("gen-3", "m-20260801", "Demo", usage='{"cost": 0.5}', annotations=json.dumps(SOURCES))
    async with opened(first) as store:
        await store.update_conversation("kept", {"options": {"seed": 1, "top_p": None}})
        owed = await store.ask("kept", Question("And now?", options={"stop": ["é"]}, id="q-3"))
        assert owed.options == {"seed": 1, "stop": ["é"]}
        await store.finish_reply("kept", owed.reply.id, Finish("stop"), report)
        before = await store.messages("kept"), await store.conversation("kept"), await store.text_size()
    async with opened(first) as store:
        after = await store.messages("kept"), await store.conversation("kept"), await store.text_size()
        assert (await store.reply_to("kept", Question("And now?", options={"stop": ["é"]}, id="q-3"))) is not None
    question, reply = after[0][-2:]
    assert (json.loads(question.options or ""), reply.report) == ({"stop": ["é"]}, report)
    assert json.loads(after[1].options or "") == {"seed": 1, "top_p": None}
    assert (after[1], after[1].cost, after[2]) == (before[1], 1.25, before[2])
    assert [(m.id, m.options, m.report) for m in after[0]] == [(m.id, m.options, m.report) for m in before[0]]


def test_a_message_is_written_under_the_names_that_other_versions_read() -> None:
    """What is known of a message lies flat beside its id, objects as JSON in a string."""
    message = Message(
        id="a-1",
        role="assistant",
        transcript=Transcript("Half"),
        timestamp="t",
        status="failed",
        error=Failure(429, "Wait.", True, 20.0),
        report=Report("gen-1", "m-20260801", "Demo", usage='{"cost": 0.5}', annotations="[]"),
    )
    head, text = encode(message)
    assert json.loads(head) == {
        "id": "a-1",
        "role": "assistant",
        "timestamp": "t",
        "status": "failed",
        "error": {"code": 429, "message": "Wait.", "retryable": True, "retry_after": 20.0},
        "generation_id": "gen-1",
        "served_model": "m-20260801",
        "provider": "Demo",
        "usage": '{"cost": 0.5}',
        "annotations": "[]",
    }
    assert decode(json.loads(head) | {"of_a_newer_version": 1}, text) == message
