"""Log lines: each tells which request it belongs to, in both forms, and a traceback tells no text."""

import json
import logging
import re
import sys
from collections.abc import Callable

import pytest

from logs import JsonFormatter, TextFormatter
from tests.support.process import process
from tests.support.upstream import ANSWER, ScriptedUpstream, answer, status

Line = tuple[str, str, str, str | None]
"""Logger, level, message, request id."""


def text_line(line: str) -> Line:
    match = re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} - (\S+) - (\w+) - (.*?)(?: \[([\w.-]+)\])?", line)
    assert match, line
    return match[1], match[2], match[3], match[4]


def json_line(line: str) -> Line:
    entry = json.loads(line)
    assert (
        {"time", "level", "logger", "message"} <= entry.keys() <= {"time", "level", "logger", "message", "request_id"}
    )
    return entry["logger"], entry["level"], entry["message"], entry.get("request_id")


@pytest.mark.parametrize(("form", "parsed"), [("text", text_line), ("json", json_line)], ids=["text", "json"])
async def test_every_line_of_a_request_and_of_the_reply_it_started_has_its_id(
    upstream: ScriptedUpstream, form: str, parsed: Callable[[str], Line]
) -> None:
    upstream.queue(status(500))
    upstream.play(answer())
    env = {"OPENROUTER_API_KEY": "key", "OPENROUTER_BASE_URL": upstream.base_url, "LOG_FORMAT": form}
    async with process("python", "server.py", env=env | {"LOG_LEVEL": "DEBUG"}) as relay:
        relay.client.headers["X-Request-ID"] = "made"
        conversation = (await relay.conversation())["id"]
        relay.client.headers["X-Request-ID"] = "asked"
        await relay.say(conversation)
        relay.client.headers["X-Request-ID"] = "streamed"
        transcript = await relay.read(conversation)
        assert transcript.content == ANSWER
        reply = transcript.start["message_id"]
        await relay.idle()
        relay.terminate()
        assert await relay.exit() == 0
        lines = [parsed(line) for line in relay.output.splitlines()]
    told = [line for line in lines if line[3] and line[1] != "DEBUG" and "uvicorn" not in line[0]]
    created, asked, streaming, tried, completed = told
    assert created == ("store", "INFO", f"Created conversation {conversation} with model openrouter/auto", "made")
    assert asked == ("store", "INFO", f"Added user message to conversation {conversation}", "asked")
    said = f"Streaming response for conversation {conversation} with model openrouter/auto"
    assert streaming == ("replies", "INFO", said, "streamed")
    assert (tried[0], tried[1], tried[3]) == ("openrouter", "WARNING", "streamed")
    assert completed[2].startswith(f"Completed streaming for conversation {conversation}: reply {reply}, ")
    assert completed[3] == "streamed"
    assert not {"made", "asked", "streamed"} & {this_id for name, *_, this_id in lines if name.startswith("uvicorn")}


def test_a_traceback_tells_where_and_what_but_no_text() -> None:
    """Of a third party's line, too: uvicorn's and asyncio's have the exception with them."""
    try:
        try:
            raise KeyError("SECRET")
        except KeyError as error:
            raise ValueError("SECRET") from error
    except ValueError:
        record = logging.LogRecord("uvicorn.error", logging.ERROR, __file__, 1, "It broke", (), sys.exc_info())
    text, entry = TextFormatter().format(record), json.loads(JsonFormatter().format(record))
    for told in (text, entry["traceback"]):
        assert "SECRET" not in told.replace('"SECRET"', "")  # the source's own line is not the exception's text
        assert re.findall(r"^\w+Error$", told, re.MULTILINE) == ["KeyError", "ValueError"]
        assert "test_logs.py" in told
