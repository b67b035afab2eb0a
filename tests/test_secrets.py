"""What may never reach a response or a log line, searched for in all that the service said under a campaign of faults.

Everything secret carries a mark. The service is a process of its own at LOG_LEVEL=DEBUG, started in both ways and with
both log formats; its whole output and every response are searched.
"""

import asyncio
import itertools
import json
import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from settings import Settings, SettingsError
from tests.support.process import ROOT, RelayProcess, process
from tests.support.relay import Relay
from tests.support.scripts import Script, answer, event, hanging, raw, says, status, steps
from tests.support.upstream import ScriptedUpstream, UpstreamRequest, Wire
from tests.support.waiting import eventually
from upstream.errors import UpstreamRefused
from upstream.refusals import refusal

KEY = "sk-or-v1-MARKkey0123456789abcdef"
TOKEN = "MARKtoken-0123456789"
USER_ID = "user_MARKuser0123456789"
RAW = "MARKraw: quota of MARKaccount exceeded"
FLAGGED = "MARKflagged input"
THROWN = "MARKthrown"
QUESTION = "MARKquestion"
ANSWER = "MARKanswer"
REASONING = "MARKreasoning"
TITLED = f"A title\n{QUESTION}"
PROMPT = "MARKprompt"
REFUSED = "MARKrefused body"

OPTION = "MARKoption"
SOURCE, PAGE = "MARKsource", "MARKpage"

TEXTS = (QUESTION, ANSWER, REASONING, OPTION, SOURCE)
"""What messages and streams are there to carry, and nothing else is."""
CITED = {"url": f"https://example.com/{SOURCE}", "title": SOURCE, "content": PAGE}
MARK = re.compile(r"MARK\w+")

COMMANDS = {
    "python": ("python", "server.py"),
    "uvicorn": ("uvicorn", "server:app", "--log-level", "debug"),
}
everywhere = pytest.mark.parametrize(("command", "log_format"), list(itertools.product(COMMANDS, ("text", "json"))))


# What upstream says. Nothing of it but the text may be seen.

METADATA = {"raw": RAW, "flagged_input": FLAGGED, "provider_name": "DeepInfra", "reasons": ["violence"]}
ECHOES = (
    f"No auth for Bearer {KEY}",
    f"Incorrect API key provided: {KEY[:16]}******",
    f"User {USER_ID} has no credit",
    f"Provider returned error: {RAW}",
    f"Your input was flagged: {FLAGGED}",
    f"{{'key': '{KEY}', 'user': '{USER_ID}'}}" + " " * 300 + KEY,
)


def error(message: str = ECHOES[0], code: object = 400) -> dict[str, object]:
    """An error as OpenRouter describes it."""
    return {"code": code, "message": message, "metadata": METADATA}


def erring(data: Mapping[str, object], *texts: str) -> Script:
    """An event inside a stream."""
    return steps(says(*texts), event(dict(data) | {"user_id": USER_ID}), Wire.end)


def sending(octets: bytes, *texts: str) -> Script:
    """Bytes that are no answer, on which the client's library throws: with them in the exception's text."""
    return steps(says(*texts), raw(octets), Wire.close)


FAULTS: list[Script] = [
    answer(ANSWER, 1, REASONING),
    erring({"choices": [{"delta": {"annotations": [{"type": "url_citation", "url_citation": CITED}]}}]}),
    *(status(code, {"error": error(echo), "user_id": USER_ID}) for echo in ECHOES for code in (401, 429)),
    *(erring({"choices": [], "error": error(echo)}) for echo in ECHOES),
    erring({"choices": [], "error": error(code=502)}, ANSWER),
    erring({"choices": [{"delta": {}, "finish_reason": "error", "error": error()}]}),
    erring({"choices": [], "error": ECHOES[0]}),
    erring({"choices": [], "error": {"code": KEY, "type": USER_ID, "metadata": {"error_type": RAW}}}),
    status(500, f"<html>{KEY} {USER_ID}</html>", {"Content-Type": "text/html"}),
    status(200, f"<html>{KEY} {USER_ID}</html>", {"Content-Type": "text/html"}),
    status(200, {"error": error(), "user_id": USER_ID}),
    status(403, {"error": KEY}),
    status(302, KEY, {"Location": f"/{KEY}"}),
    sending(f"{THROWN} {KEY}\r\n\r\n".encode()),
    sending(f"HTTP/1.1 200 {THROWN}\r\n{THROWN} {KEY}\r\n\r\n".encode()),
    erring({"error": 0, "choices": [{"delta": {"content": ["MARKcontent"]}, "finish_reason": {"x": "MARKfinish"}}]}),
    sending(f"{THROWN} {KEY}\r\n".encode(), ANSWER),
    sending(f"6\r\ndata: \r\n5\r\n[{THROWN}".encode(), ANSWER),
]
ENDED = (0, -signal.SIGTERM)  # uvicorn raises the signal again
NO_JSON = "MARKjson {"


async def told_by_the_question(request: UpstreamRequest, wire: Wire) -> None:
    """The fault whose number ends the question: so they can all run at once."""
    number = int(request.body["messages"][-1]["content"].rpartition(" ")[2])
    await FAULTS[number](request, wire)


# The campaign


@dataclass
class Told:
    """All that the service has told its clients."""

    responses: list[tuple[str, str]] = field(default_factory=list)
    """Path, and the response with its headers."""

    async def add(self, response: httpx.Response) -> None:
        """Take a response, which is read to its end."""
        text = (await response.aread()).decode()
        head = "\n".join(f"{name}: {value}" for name, value in response.headers.items())
        self.responses.append((response.request.url.path, f"{head}\n\n{text}"))

    def marks(self, *, with_texts: bool) -> set[str]:
        """The marks in responses that may carry a message's text, or in all the others."""
        return {
            mark
            for path, text in self.responses
            if path.endswith(("/messages", "/stream")) == with_texts
            for mark in MARK.findall(text)
        }


def environ(upstream: ScriptedUpstream, log_format: str) -> dict[str, str]:
    return {
        "OPENROUTER_API_KEY": KEY,
        "OPENROUTER_BASE_URL": upstream.base_url,
        "AUTH_TOKEN": TOKEN,
        "LOG_LEVEL": "DEBUG",
        "LOG_FORMAT": log_format,
        "SHUTDOWN_GRACE": "1",
    }


def authorize(relay: Relay) -> Told:
    """Send the token from now on, and take down every response."""
    told = Told()
    relay.client.headers["Authorization"] = f"Bearer {TOKEN}"
    relay.client.event_hooks = {"response": [told.add]}
    return told


async def ask_for_fault(relay: Relay, number: int) -> None:
    """A conversation that meets it: started, joined, resumed, read, and renamed."""
    conversation_id = (await relay.conversation(system_prompt=PROMPT))["id"]
    path = f"/conversations/{conversation_id}"
    await relay.say(conversation_id, f"{TITLED} {number}", options={"user": OPTION})
    await asyncio.gather(*(relay.client.get(f"{path}/stream") for _ in range(2)))
    message_id = (await relay.messages(conversation_id))[-1]["id"]
    await relay.client.get(f"{path}/stream", headers={"Last-Event-ID": f"{message_id}:0"})
    await relay.client.patch(path, json={"system_prompt": None})


async def ask_wrongly(relay: Relay) -> None:
    """What the service refuses, each with a mark in it."""
    conversation_id = await relay.ask(TITLED)
    path = f"/conversations/{conversation_id}/messages"
    bad = json.dumps({"content": "Hi", "options": {REFUSED: 1, "n": REFUSED, "tools": [{"type": "function"}]}})
    too_long = json.dumps({"content": REFUSED + "x" * 300_000})
    for body in (
        REFUSED,
        f'{{"content": "{REFUSED}',
        json.dumps({"content": [REFUSED]}),
        f'["{REFUSED}"]',
        too_long,
        bad,
    ):
        assert (await relay.client.post(path, content=body)).status_code == 415
        headers = {"Content-Type": "application/json"}
        assert (await relay.client.post(path, content=body, headers=headers)).status_code in (400, 413, 422)
    for authorization in ("Bearer MARKwrong", "Basic MARKwrong"):
        assert (await relay.client.get("/models", headers={"Authorization": authorization})).status_code == 401
    assert (await relay.client.get("/", headers={"Host": "evil.example"})).status_code == 403


async def leave_in_the_middle(relay: RelayProcess, upstream: ScriptedUpstream) -> None:
    """A reader that drops, and the end of the process while its reply goes on."""
    upstream.play(hanging(ANSWER))
    relay.client.event_hooks = {}
    async with relay.stream(await relay.ask(TITLED)) as reader:
        await reader.until(ANSWER)
    relay.terminate()
    assert await relay.exit() in ENDED


@everywhere
@pytest.mark.bound(60)
async def test_no_secret_and_no_text_reaches_a_log_or_a_wrong_response(
    upstream: ScriptedUpstream, command: str, log_format: str
) -> None:
    upstream.play(told_by_the_question)
    async with process(*COMMANDS[command], env=environ(upstream, log_format)) as relay:
        told = authorize(relay)
        await asyncio.gather(*(ask_for_fault(relay, number) for number in range(len(FAULTS))), ask_wrongly(relay))
        for models in (status(500, {"error": error(), "user_id": USER_ID}), sending(f"{THROWN}\r\n\r\n".encode())):
            upstream.models = models
            assert (await relay.client.get("/models")).status_code == 502
        for path in ("/", "/health", "/conversations", "/openapi.json", "/docs", "/metrics", "/nowhere"):
            await relay.client.get(path)
        await leave_in_the_middle(relay, upstream)
        assert set(MARK.findall(relay.output)) == set()
        assert len(re.findall("(Completed|Failed) streaming", relay.output)) > len(FAULTS)
    assert told.marks(with_texts=True) == set(TEXTS)
    assert told.marks(with_texts=False) == {PROMPT}


async def test_a_token_in_the_query_where_it_does_not_belong_is_not_logged(upstream: ScriptedUpstream) -> None:
    """EventSource can't send headers, so somebody will try."""
    for command in COMMANDS.values():
        async with process(*command, env=environ(upstream, "text")) as relay:
            assert (await relay.client.get("/conversations", params={"token": TOKEN})).status_code == 401
            relay.terminate()
            assert await relay.exit() in ENDED
            assert TOKEN not in relay.output


async def test_a_request_cannot_write_a_log_line_of_its_own(upstream: ScriptedUpstream) -> None:
    forged = "2026-11-23 00:00:00,000 - server - ERROR - forged"
    for command in COMMANDS.values():
        async with process(*command, env=environ(upstream, "text")) as relay:
            for path in (f"/x%0a{forged}", f"/x%0d%0a{forged}", f"/x%e2%80%a8{forged}", f"/x%1b[2J%c2%9b2J{forged}"):
                await relay.client.get(path.replace(" ", "%20"), headers={"Authorization": f"Bearer {TOKEN}"})
            relay.terminate()
            assert await relay.exit() in ENDED
            assert "%0a" in relay.output or "\\n" in relay.output
            assert not [line for line in relay.output.splitlines() if line.startswith(forged)]
            assert not set("\x1b\x9b") & set(relay.output)


# Crashes. A module that is the service with a mistake in it stands in for those that nobody knows yet.

CRASHING = f'''
"""The service, with a mistake wherever the question says so."""

import asyncio

import server
from openrouter import OpenRouter
from store import Store

WORDS = "{THROWN} {KEY} {QUESTION}"


def mistake(*_, **__):
    try:
        raise KeyError(WORDS)
    except KeyError as error:
        raise RuntimeError(WORDS) from error


async def stream(self, prompt):
    mistake()
    yield


async def unseen():
    mistake()


async def counts(self):
    asyncio.get_running_loop().call_soon(mistake)
    asyncio.create_task(unseen())
    return 0, 0


OpenRouter.stream = stream
Store.counts = counts
Store.list_conversations = mistake
Store.delete_conversation = mistake
app = server.app if __name__ != "__main__" else None
if __name__ == "__main__":
    server.main()
'''


@everywhere
async def test_a_crash_says_where_and_not_with_which_words(
    upstream: ScriptedUpstream, command: str, log_format: str, tmp_path: Path
) -> None:
    file = tmp_path / "crashing.py"
    file.write_text(CRASHING)
    argv = ("python", str(file)) if command == "python" else ("uvicorn", "crashing:app", "--log-level", "debug")
    env = environ(upstream, log_format) | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    async with process(*argv, env=env) as relay:
        told = authorize(relay)
        path = f"/conversations/{await relay.ask(TITLED)}"
        assert (await relay.client.get("/conversations")).status_code == 500
        assert (await relay.client.delete(path)).status_code == 500
        assert '"code": 500' in (await relay.client.get(f"{path}/stream")).text
        assert (await relay.client.get("/health")).status_code == 200
        await eventually(lambda: relay.output.count("in mistake") == 10)  # each of five crashes has a cause
        relay.terminate()
        assert await relay.exit() in ENDED
        assert set(MARK.findall(relay.output)) == set()
    assert told.marks(with_texts=False) == set()
    assert told.marks(with_texts=True) <= {QUESTION}


# Settings and exceptions


def test_settings_do_not_show_their_secrets() -> None:
    settings = Settings(openrouter_api_key=KEY, auth_token=TOKEN)
    assert (settings.openrouter_api_key, settings.auth_token) == (KEY, TOKEN)
    for shown in (repr(settings), str(settings), f"{settings}"):
        assert not MARK.findall(shown)


@pytest.mark.parametrize("variable", ["OPENROUTER_API_KEY", "AUTH_TOKEN", "OPENROUTER_BASE_URL", "PORT", "HOST"])
def test_a_setting_that_cannot_be_read_is_named_and_not_quoted(variable: str) -> None:
    with pytest.raises(SettingsError, match=f"^{variable} must be .*") as raised:
        Settings.from_environ({variable: "MARKvalue\tü"})
    assert not MARK.findall(str(raised.value))


@pytest.mark.parametrize("code", [None, 400, 401, 429, 500])
@pytest.mark.parametrize("echo", ECHOES)
def test_the_text_of_a_refusal_has_nothing_of_the_account(code: int | None, echo: str) -> None:
    refused: UpstreamRefused = refusal(code, {"error": error(echo), "user_id": USER_ID}, None, KEY)
    assert not MARK.findall(f"{refused} {refused!r} {refused.failure}")
