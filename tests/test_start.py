"""Starting and stopping: the commands, the settings, `.env`, signals, and curl as a user runs it."""

import asyncio
import contextlib
import os
import re
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, STDOUT
from collections.abc import AsyncIterator
from dataclasses import fields
from pathlib import Path

import pytest

from demo import hint
from server import create_app, exiting_with_one_line, load_settings
from settings import Settings, SettingsError
from store import Store
from tests.support.problems import assert_problem
from tests.support.process import ROOT, process
from tests.support.relay import Relay
from tests.support.sse import Block, Parser
from tests.support.upstream import ANSWER, Gate, ScriptedUpstream, gated
from tests.support.waiting import bounded, eventually

COMMANDS = [("python", "server.py"), ("uvicorn", "server:app")]
FROM_ANYWHERE = [("python", str(ROOT / "server.py")), ("uvicorn", "--app-dir", str(ROOT), "server:app")]
NO_PROXY = {"PATH": os.environ["PATH"]}
QUICKLY = 6.0
"""Seconds, on a machine with more to do."""


@contextlib.asynccontextmanager
async def curl(*arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """curl with a pipe from its output; killed at the end."""
    child = await asyncio.create_subprocess_exec(
        "curl", "-sS", *arguments, stdin=DEVNULL, stdout=PIPE, stderr=STDOUT, env=NO_PROXY
    )
    try:
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.communicate()


async def output_of(*arguments: str) -> bytes:
    """What curl prints; it must succeed."""
    async with curl(*arguments) as child:
        output, _ = await bounded(child.communicate())
        assert child.returncode == 0, output
        return output


def blocks(octets: bytes) -> list[Block]:
    """The whole blocks in what a reader got."""
    return Parser().feed(octets)


def content(octets: bytes) -> str:
    return "".join(block.content for block in blocks(octets))


# Start and stop


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_with_nothing_in_progress_ends_it_at_once_and_in_order(
    upstream: ScriptedUpstream, command: tuple[str, ...], number: signal.Signals
) -> None:
    env = {"OPENROUTER_API_KEY": "test-key", "OPENROUTER_BASE_URL": upstream.base_url}
    async with process(*command, env=env) as relay:
        assert (await relay.read(await relay.ask())).content == ANSWER
        (relay.terminate if number is signal.SIGTERM else relay.interrupt)()
        is_server = command[0] == "python"
        assert await relay.exit(QUICKLY) in ((0,) if is_server else (0, -number))  # uvicorn raises the signal again
        for word in ("Traceback", "Error", "ERROR", "never awaited", "was destroyed"):
            assert word not in relay.output


@pytest.mark.parametrize("command", FROM_ANYWHERE)
async def test_without_a_key_it_starts_and_says_what_is_missing(command: tuple[str, ...], tmp_path: Path) -> None:
    async with process(*command, cwd=tmp_path) as relay:
        assert (await relay.health())["status"] == "ok"
        error = (await relay.read(await relay.ask())).last["error"]
        assert "OPENROUTER_API_KEY" in error["message"] and "OPENROUTER_API_KEY" in relay.output


async def test_it_works_below_a_path_that_a_proxy_takes_away() -> None:
    async with process("uvicorn", "server:app", "--root-path", "/relay") as relay:
        assert (await relay.client.post("/conversations")).headers["Location"].startswith("/relay/conversations/")
        assert (await relay.client.get("/health", headers={"Host": "10.0.0.1"})).status_code == 200
        assert_problem(await relay.client.get("/models", headers={"Host": "10.0.0.1"}), 403)


# One process


async def test_python_starts_one_process_whatever_web_concurrency_says_and_says_so() -> None:
    async with process("python", "server.py", env={"WEB_CONCURRENCY": "4"}) as relay:
        assert "WEB_CONCURRENCY means nothing to `python server.py`" in relay.output
        ids = {(await relay.conversation())["id"] for _ in range(8)}
        assert relay.children == []
        for _ in range(8):
            listing = await output_of(f"{relay.url}/conversations")  # a connection of its own
            assert all(id in listing.decode() for id in ids)


async def test_uvicorn_with_several_processes_is_refused_with_the_reason() -> None:
    async with process("uvicorn", "server:app", env={"WEB_CONCURRENCY": "4"}, listening=False) as relay:
        await relay.exit(25)  # uvicorn's supervisor exits with 0 whatever its children say
        assert "one process" in relay.output and "WEB_CONCURRENCY" in relay.output
        assert "Traceback" not in relay.output


# Settings


URLS = ["localhost:1234", "ftp://host", "http://", "http://user@host", "http://host?x=1", "http://[bad"]
WRONG = {
    "OPENROUTER_API_KEY": ["clé", "a\nb", "a\x00b"],
    "OPENROUTER_BASE_URL": [
        *URLS,
        "http://host:abc",
        "http://host:99999",
        "http://a b",
        "http://a\nb",
        "http://192.168.1.300/v1",
        "http://xn--/v1",
        "http://xn--zzzzzz.example/v1",
        "http://host/\x01",
        "http://[v1.x]/",
        "http://host/" + "x" * 70_000,
    ],
    "MODEL_NAME": ["modèle", "x" * 201, "a\nb"],
    "APP_TITLE": ["a\nb", "\udcff"],
    "APP_URL": ["http://a\r\nX-Injected: 1", "\udcff"],
    "HOST": ["a\nb", "a..b", "127.0.0.1:8001", "http://127.0.0.1", "256.1.1.1"],
    "PORT": ["x", "-1", "65536", "1.5", "80 81"],
    "CORS_ORIGINS": ["localhost:5173", "http://a, b", "http://a/path", "http://user@a", "http://*.example.com"],
    "ALLOWED_HOSTS": ["http://a", "relay.example:80", "10.0.0.1:8001", "a b", "a/b"],
    "AUTH_TOKEN": ["tökën", "a\nb"],
    "LOG_LEVEL": ["LOUD", "10", "NOTSET"],
    "LOG_FORMAT": ["xml"],
    "STORE_URL": [
        "chat.db",
        "sqlite:",
        "sqlite://",
        "sqlite:///",
        "sqlite://chat.db",
        "sqlite:///folder/",
        "sqlite:///chat.db?mode=ro",
        "sqlite:///:memory:",
        "sqlite:///a%00b",
        "mysql://user:secret-password@host/db",
    ],
    "CONVERSATION_TTL": ["-1", "soon", "nan", "inf"],
    "REPLY_TIMEOUT": ["0", "-1", "soon", "nan", "inf", "1 s"],
    "SHUTDOWN_GRACE": ["-1", "soon", "nan", "inf"],
    "MAX_TOKENS": ["-1", "1.5", "many", "1" * 5000],
} | {
    f"MAX_{what}": ["0", "-1", "1.5", "many", "1e3", "inf", "1" * 5000]
    for what in ("BODY_BYTES", "MESSAGE_CHARS", "MESSAGES", "CONVERSATIONS", "STORE_BYTES", "REPLIES", "REPLY_CHARS")
}


SECRETS = ("OPENROUTER_API_KEY", "AUTH_TOKEN")


def test_a_port_that_is_no_number_is_told_what_a_port_may_be() -> None:
    with pytest.raises(SettingsError, match=r"^PORT must be a port from 0 to 65535\.$"):
        Settings.from_environ({"PORT": "80x"})


def test_every_setting_has_values_that_it_does_not_take() -> None:
    assert set(WRONG) == {entry.name.upper() for entry in fields(Settings)}


@pytest.mark.parametrize(
    ("variable", "value"),
    [pytest.param(variable, value, id=f"{variable}={value[:20]!r}") for variable in WRONG for value in WRONG[variable]],
)
def test_a_value_that_cannot_be_read_stops_the_start_with_one_line_that_names_the_variable(
    variable: str,
    value: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.environ", {variable: value})
    with pytest.raises(SystemExit) as exit, exiting_with_one_line():
        Store(load_settings())  # which reads STORE_URL
    output, errors = capsys.readouterr()
    assert (exit.value.code not in (None, 0), output) == (True, "")
    assert re.fullmatch(rf"{variable} must be [^\n]+\.\n", errors)
    assert variable not in SECRETS or value not in errors
    assert "secret-password" not in errors


@pytest.mark.parametrize("command", COMMANDS)
async def test_the_process_prints_that_line_and_nothing_else(command: tuple[str, ...]) -> None:
    async with process(*command, env={"MAX_REPLIES": "many"}, listening=False) as relay:
        assert await relay.exit() != 0
        assert re.fullmatch(r"MAX_REPLIES must be [^\n]+\.\n", relay.output)


@pytest.mark.parametrize(
    ("variable", "value"),
    [("ALL_PROXY", "socks5://localhost:1080"), ("HTTPS_PROXY", "ftp://x"), ("SSL_CERT_FILE", "/no")],
)
def test_a_proxy_or_certificate_that_cannot_be_used_is_told_in_one_line(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.environ", {variable: value})
    with pytest.raises(SystemExit), exiting_with_one_line():
        create_app(load_settings())
    assert re.fullmatch(rf"{variable} must [^\n]+\.\n", capsys.readouterr().err)


OPENROUTER = {"OPENROUTER_BASE_URL": "https://openrouter.example/api/v1"}
CLASH = {
    "HTTP_PROXY": "http://127.0.0.1:7890",
    "HTTPS_PROXY": "http://127.0.0.1:7890",
    "ALL_PROXY": "socks5://127.0.0.1:7890",
}
"""What Clash and its relatives export."""


@pytest.mark.parametrize(
    "env",
    [
        pytest.param(CLASH, id="clash"),
        pytest.param({name.lower(): value for name, value in CLASH.items()}, id="lower case"),
        pytest.param(CLASH | {"HTTPS_PROXY": "", "NO_PROXY": "openrouter.example"}, id="directly"),
        pytest.param(CLASH | {"HTTPS_PROXY": "", "OPENROUTER_BASE_URL": "http://localhost:11434/v1"}, id="loopback"),
        pytest.param({"HTTP_PROXY": "socks5h://x:1", "FTP_PROXY": "::", "GRPC_PROXY": "%"}, id="of other schemes"),
    ],
)
def test_proxies_that_do_not_apply_do_not_stop_the_start(env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.environ", OPENROUTER | env)
    create_app(load_settings())


LISTS = [
    "localhost,127.0.0.1,::1,fe80::/10",
    "localhost, 127.0.0.0/8, 10.0.0.0/8, fd00::/8, .svc, .cluster.local, kubernetes.default",
    "[::1],[fe80::/10],*.example:443,:80,::1/129,http://x,1.2.3/33",
    ",, ,",
    "*",
]


@pytest.mark.parametrize("no_proxy", LISTS)
def test_whatever_stands_in_no_proxy_does_not_stop_the_start(no_proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runtimes inject such lists into containers."""
    monkeypatch.setattr("os.environ", OPENROUTER | CLASH | {"NO_PROXY": no_proxy, "no_proxy": no_proxy})
    create_app(load_settings())


async def test_of_several_proxies_that_of_the_scheme_is_used(upstream: ScriptedUpstream) -> None:
    """The upstream of the test is the proxy: it sees the whole URL."""
    proxies = {"HTTP_PROXY": f"http://127.0.0.1:{upstream.port}", "ALL_PROXY": "socks5://127.0.0.1:9"}
    env = {"OPENROUTER_BASE_URL": "http://openrouter.example/api/v1", "OPENROUTER_API_KEY": "k"}
    async with process("python", "server.py", env=env | proxies | {"NO_PROXY": "localhost,::1,fe80::/10"}) as relay:
        await relay.read(await relay.ask())
        assert (await upstream.called()).path == "http://openrouter.example/api/v1/chat/completions"


async def test_an_ipv6_address_to_listen_on_may_have_brackets() -> None:
    async with process("python", "server.py", env={"HOST": "[::1]"}, listening=False) as relay:
        await eventually(lambda: "Uvicorn running on http://[::1]" in relay.output)


def test_a_value_that_is_empty_counts_as_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.environ", dict.fromkeys(WRONG, " "))
    assert load_settings() == Settings()


def test_a_list_is_read_with_spaces_and_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.environ", {"CORS_ORIGINS": "http://a, http://b:1/ ,,", "ALLOWED_HOSTS": "a,b"})
    settings = load_settings()
    assert (settings.cors_origins, settings.allowed_hosts) == (("http://a", "http://b:1"), ("a", "b"))


# .env


@pytest.mark.parametrize("command", FROM_ANYWHERE)
async def test_a_dotenv_file_of_the_current_directory_is_read_and_the_environment_wins(
    command: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text("MODEL_NAME=test/file\nMAX_CONVERSATIONS=1\n# a comment\nexport APP_TITLE='Größe'\n")
    async with process(*command, env={"MODEL_NAME": "test/environment"}, cwd=tmp_path) as relay:
        assert (await relay.conversation())["default_model"] == "test/environment"
        assert_problem(await relay.client.post("/conversations"), 507, "MAX_CONVERSATIONS", "1")


def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dotenv: bytes) -> Settings:
    (tmp_path / ".env").write_bytes(dotenv)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.environ", {"MODEL_NAME": "test/environment"})
    return load_settings()


def test_a_dotenv_file_may_have_the_line_ends_of_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = loaded(tmp_path, monkeypatch, b"PORT=81\r\nMODEL_NAME=test/file\r\nAPP_TITLE=A title\r\n")
    assert (settings.port, settings.model_name, settings.app_title) == (81, "test/environment", "A title")


def test_a_dotenv_file_may_begin_with_a_byte_order_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Editors and shells of Windows write it; without care it becomes a part of the first name."""
    assert loaded(tmp_path, monkeypatch, b"\xef\xbb\xbfPORT=81\n").port == 81


def test_a_bad_value_in_a_dotenv_file_is_told_as_one_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit), exiting_with_one_line():
        loaded(tmp_path, monkeypatch, b"PORT=abc\n")
    assert re.fullmatch(r"PORT must be [^\n]+\.\n", capsys.readouterr().err)


@pytest.mark.parametrize("dotenv", [b"APP_TITLE=Gr\xf6\xdfe\n", "PORT=81\n".encode("utf-16")])
def test_a_dotenv_file_that_is_not_utf_8_is_told_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], dotenv: bytes
) -> None:
    with pytest.raises(SystemExit), exiting_with_one_line():
        loaded(tmp_path, monkeypatch, dotenv)
    assert re.fullmatch(r"\.env [^\n]+\n", capsys.readouterr().err)


WITHOUT_PRIVILEGES = ("setpriv", "--bounding-set=-all") if os.geteuid() == 0 else ()


@pytest.mark.parametrize("is_folder", [False, True], ids=["file", "folder"])
async def test_a_dotenv_file_without_permission_is_told_in_a_line(tmp_path: Path, is_folder: bool) -> None:
    """It may have the token in it: to start without it would be worse."""
    (tmp_path / ".env").write_text("PORT=0\n")
    closed = tmp_path if is_folder else tmp_path / ".env"
    shell = f"chmod 0 {closed} && exec {sys.executable} {ROOT / 'server.py'}"
    try:
        async with process(*WITHOUT_PRIVILEGES, "sh", "-c", shell, cwd=tmp_path, listening=False) as relay:
            assert await relay.exit() == 3
            assert relay.output == ".env can't be read (Permission denied).\n"
    finally:
        closed.chmod(0o700)


async def test_a_folder_that_is_gone_does_not_stop_the_start(tmp_path: Path) -> None:
    shell = f"mkdir gone && cd gone && rmdir ../gone && exec {sys.executable} {ROOT / 'server.py'}"
    async with process("sh", "-c", shell, cwd=tmp_path) as relay:
        assert (await relay.health())["status"] == "ok"


# The demo


async def test_the_demo_says_what_to_do_next_once_it_has_started() -> None:
    async with process("python", "server.py", "--demo") as relay:
        port = relay.url.rpartition(":")[2]
        started, _, hint = relay.output.partition("Uvicorn running on")
        assert "startup complete" in started and "Answers" not in started
        assert f"VITE_RELAY_URL=http://localhost:{port} make react" in hint
        assert f"http://localhost:{port}/docs" in hint


def test_the_page_finds_the_usual_port_by_itself() -> None:
    assert "`make react`" in hint(8001) and "http://localhost:8001/docs" in hint(8001)


async def test_any_page_of_this_machine_may_call_the_demo_and_no_other() -> None:
    """Vite takes 5174 where 5173 is taken."""
    async with process("python", "server.py", "--demo", env={"CORS_ORIGINS": "https://chat.example"}) as relay:
        preflight = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
        for origin in ("http://localhost:5174", "http://127.0.0.1:3000", "http://[::1]:8080", "https://chat.example"):
            asked = await relay.client.options("/conversations", headers=preflight | {"Origin": origin})
            posted = await relay.client.post("/conversations", json={}, headers={"Origin": origin})
            assert (asked.status_code, posted.status_code) == (200, 201)
            for response in (asked, posted):
                assert response.headers["access-control-allow-origin"] == origin
        for origin in ("https://evil.example", "http://localhost.evil.example", "http://192.168.1.5:5173", "null"):
            headers = {"Origin": origin}
            assert_problem(await relay.client.post("/conversations", json={}, headers=headers), 403, "CORS_ORIGINS")


# curl


async def test_the_lines_that_the_demo_prints_stream_an_answer() -> None:
    async with process("python", "server.py", "--demo") as relay:
        lines = re.findall(r"^  (.*curl .*)$", relay.output, re.MULTILINE)
        assert len(lines) == 3
        shell = await asyncio.create_subprocess_exec(
            "sh", "-c", "\n".join(["set -eu", *lines]), stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL, env=NO_PROXY
        )
        assert shell.stdout is not None
        question = await bounded(shell.stdout.readuntil(b"}"))
        assert b'"content":"Why is the sky blue?"' in question
        beginning = await bounded(shell.stdout.readuntil(b'{"content": "'))
        assert beginning.startswith(b"event: start\n")
        assert (await relay.health())["replies_in_progress"] == 1  # it streams: the end isn't there yet
        rest = await bounded(shell.stdout.read(), 20)
        assert await shell.wait() == 0
        text = beginning + rest
        assert content(text).startswith("You asked: Why is the sky blue?")
        assert blocks(text)[-1].json["status"] == "complete"
        relay.interrupt()
        assert await relay.exit(QUICKLY) == 0
        assert "Traceback" not in relay.output


async def test_curl_cut_in_the_middle_is_taken_up_again_with_the_last_id(
    upstream: ScriptedUpstream, relay: Relay
) -> None:
    pieces = ["Grüße ", "👋🏽 ", "und\u2028mehr ", "bis ", "zum Ende"]
    upstream.play(gated(gate := Gate(), *pieces))
    url = f"{relay.url}/conversations/{await relay.ask()}/stream"
    got = b""
    async with curl("-N", url) as child:
        assert child.stdout is not None
        for piece in pieces[:2]:
            gate.open()
            while not content(got).endswith(piece):
                got += await bounded(child.stdout.read(7))
        child.kill()
    last_id, seen = [block.id for block in blocks(got)][-1], content(got)
    async with curl("-N", "-H", f"Last-Event-ID: {last_id}", url) as child:
        assert child.stdout is not None
        rest = await bounded(child.stdout.readuntil(b"\n\n"))
        gate.open_wide()
        rest += await bounded(child.stdout.read())
        assert await child.wait() == 0
    assert (seen, seen + content(rest)) == ("".join(pieces[:2]), "".join(pieces))
    end = blocks(rest)[-1]
    assert (end.json["status"], len(upstream.requests)) == ("complete", 1)
    status = await output_of("-N", "-w", "%{http_code}", "-H", f"Last-Event-ID: {end.id}", url)
    assert status == b"204"


# Pauses

HURRIED = """
import server
from openrouter import Timers

server.Timers = lambda: Timers(read=1.0, delta=1.5)
server.main()
"""


async def test_a_process_that_was_paused_goes_on_with_what_has_arrived(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    """SIGSTOP longer than every timer, as a laptop's lid or a snapshot has it."""
    upstream.play(gated(gate := Gate(), "one ", "two"))
    file = tmp_path / "hurried.py"
    file.write_text(HURRIED)
    env = {"OPENROUTER_API_KEY": "key", "OPENROUTER_BASE_URL": upstream.base_url, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    async with process("python", str(file), env=env) as relay, relay.stream(await relay.ask()) as reader:
        gate.open()
        await reader.until("one ")
        os.kill(relay.pid, signal.SIGSTOP)
        gate.open_wide()
        await asyncio.sleep(2.5)  # time is the subject
        os.kill(relay.pid, signal.SIGCONT)
        assert ((await reader.whole()).content, reader.transcript.last["status"]) == ("one two", "complete")
