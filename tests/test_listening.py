"""Where it listens: addresses and ports that can't be had, told before anything says that it has started."""

import asyncio
import os
import re
import socket
import sys
from collections.abc import Callable, Iterator

import httpx
import pytest
import uvloop

from serving.process import listen
from settings import SettingsError
from tests.support.process import ROOT, process
from tests.support.relay import client
from tests.support.waiting import bounded, eventually

WITHOUT_PRIVILEGES = ("setpriv", "--bounding-set=-all") if os.geteuid() == 0 else ()
PYTHON = (sys.executable, str(ROOT / "server.py"))


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which somebody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


async def refusal(*arguments: str, **env: str) -> str:
    """The one line with which `python server.py` ends."""
    async with process(*WITHOUT_PRIVILEGES, *PYTHON, *arguments, env=env, listening=False) as relay:
        assert await relay.exit() == 3
        [line] = relay.output.splitlines()  # no "startup complete" before it
        return line


@pytest.mark.parametrize("arguments", [(), ("--demo",)], ids=["run", "demo"])
async def test_a_port_in_use_is_told_in_a_line_with_a_way_out(taken: int, arguments: tuple[str, ...]) -> None:
    line = await refusal(*arguments, PORT=str(taken))
    assert re.fullmatch(rf"PORT must be a free port: {taken} is taken .+ Choose another, such as \d+\.", line)


@pytest.mark.parametrize("host", ["x86_64-conda-linux-gnu", "nowhere.invalid"])
async def test_a_host_that_cannot_be_resolved_is_told_in_a_line(host: str) -> None:
    """conda's compilers export such a HOST."""
    assert re.fullmatch(rf"HOST must be .+ {host} can't be resolved\.", await refusal(HOST=host))


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1", "[2001:db8::1]", "ff02::1"])
async def test_an_address_of_somebody_else_is_told_in_a_line(host: str) -> None:
    assert re.fullmatch(r"HOST must be an address .+", line := await refusal(HOST=host)) and host in line


async def test_a_port_for_the_privileged_is_told_in_a_line() -> None:
    assert re.fullmatch(r"PORT must be .+: 80 isn't\. Choose another, such as 8001\.", await refusal(PORT="80"))


async def test_port_0_is_any_free_one_and_the_log_says_which() -> None:
    async with process("python", "server.py", env={"PORT": "0"}, listening=False) as relay:
        await eventually(lambda: "Uvicorn running on" in relay.output)
        [url] = re.findall(r"Uvicorn running on (http://127\.0\.0\.1:[1-9]\d*) ", relay.output)
        assert relay.output.index("startup complete") < relay.output.index(url)
        async with client(url) as connections:
            assert (await connections.get("/health")).status_code == 200


async def test_the_usual_host_and_a_name_that_is_this_machine_are_listened_on() -> None:
    async with process("python", "server.py", env={"HOST": "localhost"}) as relay:
        port = httpx.URL(relay.url).port
        assert f"Uvicorn running on http://localhost:{port} (Press CTRL+C to quit)" in relay.output


# The sockets


def resolve_to(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Let every name have these addresses."""

    def getaddrinfo(_: str, port: int, **__: object) -> list[tuple[object, ...]]:
        families = [socket.AF_INET6 if ":" in address else socket.AF_INET for address in addresses]
        return [
            (family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port, *(0, 0)[: 2 * (":" in address)]))
            for family, address in zip(families, addresses, strict=True)
        ]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def names(sockets: list[socket.socket]) -> list[tuple[str, int]]:
    """Where they listen; they are closed."""
    told = [one.getsockname()[:2] for one in sockets]
    for one in sockets:
        one.close()
    return told


def test_all_addresses_of_a_name_are_listened_on_at_one_port(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_to(monkeypatch, "::1", "127.0.0.1", "127.0.0.1")
    (first, port), second = names(listen("localhost", 0))
    assert (first, second) == ("::1", ("127.0.0.1", port)) and port


def test_an_address_that_the_machine_lacks_is_left_out_where_the_name_has_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`localhost` is `::1`, too, where IPv6 is turned off."""
    resolve_to(monkeypatch, "2001:db8::1", "127.0.0.1")
    assert [address for address, _ in names(listen("localhost", 0))] == ["127.0.0.1"]


def test_one_address_that_is_taken_is_enough_to_refuse_and_nothing_stays_open(
    monkeypatch: pytest.MonkeyPatch, taken: int
) -> None:
    resolve_to(monkeypatch, "127.0.0.2", "127.0.0.1")
    for _ in range(2):
        with pytest.raises(SettingsError, match="PORT"):
            listen("localhost", taken)
    socket.create_server(("127.0.0.2", taken)).close()


def test_a_port_is_had_again_at_once_after_an_end() -> None:
    """Connections that the process closed are in TIME_WAIT."""
    [listening] = listen("127.0.0.1", 0)
    port: int = listening.getsockname()[1]
    with socket.create_connection(("127.0.0.1", port)) as connection, listening:
        listening.accept()[0].close()
        assert connection.recv(1) == b""
    assert names(listen("127.0.0.1", port)) == [("127.0.0.1", port)]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_small_writes_leave_at_once(host: str, new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """Else a token would wait 40 ms for the acknowledgement of the one before."""

    async def option() -> object:
        accepted: asyncio.Future[object] = asyncio.get_running_loop().create_future()

        def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            one = writer.get_extra_info("socket")
            accepted.set_result(one.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        [listening] = listen(host, 0)
        async with await asyncio.start_server(accept, sock=listening):
            _, writer = await asyncio.open_connection(host, listening.getsockname()[1])
            try:
                return await bounded(accepted)
            finally:
                writer.close()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        assert runner.run(option())
