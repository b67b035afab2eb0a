"""Which servers a relay takes, how it finds them, and what it says of those that it doesn't take."""

import asyncio
import contextlib
import re
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trustme

from settings import Settings, SettingsError
from store import Store
from stores.records import StoreUnavailable
from stores.valkey import server as starting
from tests.support.process import ROOT, process
from tests.support.relay import Relay, serving
from tests.support.replicas import Network, place, relays
from tests.support.servers import Server, free_port, server
from tests.support.upstream import ANSWER, Gate, ScriptedUpstream, gated
from tests.support.waiting import bounded, eventually

pytestmark = pytest.mark.engines("valkey")

DEPLOYMENT = (ROOT / "docs/deploy.md").read_text(encoding="utf-8")
PASSWORD = "s3cret-wörd"


@pytest.fixture(scope="module")
def name(request: pytest.FixtureRequest) -> str:
    """Of the server's program."""
    return str(request.config.getoption("--server"))


@pytest.fixture(scope="module")
def shared(name: str) -> Iterator[Server]:
    """A server of this module's own."""
    with server(name) as running:
        yield running


async def refusal(url: str) -> str:
    """The line that ends the start."""
    store = Store(Settings(store_url=url))
    with pytest.raises(SettingsError) as caught:
        await store.open()
    assert "\n" not in str(caught.value) and PASSWORD not in str(caught.value) and "s3cret" not in str(caught.value)
    return str(caught.value)


async def works(upstream: ScriptedUpstream, url: str) -> None:
    """A question is asked at one relay and answered through another."""
    async with relays(upstream, url) as (here, there):
        conversation_id = await here.ask()
        assert (await there.read(conversation_id)).content == ANSWER


# What a URL says


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("redis:", "name a host"),
        ("valkey://", "name a host"),
        ("valkey+other://host", "begin with"),
        ("valkey://u:s3cret@host/x", "number of a database"),
        ("valkey://u:s3cret@host/0/1", "number of a database"),
        ("valkey://u:s3cret@host:port", "be a URL"),
        ("valkey://u:s3cret@host?timeout=1", "no options but"),
        ("valkey://u:s3cret@host?prefix={a}", "a prefix of"),
        ("valkey://u:s3cret@a,b", "name one host"),
        ("valkey+sentinel://u:s3cret@a,b", "name of the service"),
        ("valkeys://u:s3cret@host?ssl_ca_certs=/no/such/file", "certificates"),
    ],
)
def test_a_url_that_cannot_be_used_is_told_without_the_password(url: str, reason: str) -> None:
    with pytest.raises(SettingsError, match=f"^STORE_URL must [^\n]*{reason}[^\n]*\\.$") as caught:
        Store(Settings(store_url=url))
    assert "s3cret" not in str(caught.value)


async def test_without_the_package_one_line_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "valkey.py").write_text("raise ModuleNotFoundError(name='valkey')")
    env = {"STORE_URL": "valkey://localhost", "PYTHONPATH": str(tmp_path)}
    async with process("python", "server.py", env=env, listening=False) as relay:
        assert await relay.exit() == 3
        assert relay.output == "STORE_URL needs one package more: pip install -r requirements-valkey.txt\n"


def test_the_package_is_imported_only_where_it_is_asked_for() -> None:
    code = "import sys; sys.argv = ['x']; import server; sys.exit('valkey' in sys.modules)"

    async def run() -> int:
        child = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
        return await child.wait()

    assert asyncio.run(run()) == 0


# What is refused


async def test_a_server_that_cannot_be_reached_ends_the_start_with_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stores.valkey.server.START_TIMEOUT", 2.5)
    assert await refusal(f"valkey://u:{PASSWORD}@127.0.0.1:1") == (
        "The server of STORE_URL can't be used: it can't be reached."
    )


async def test_a_process_that_cannot_use_its_server_exits_before_it_says_that_it_has_started(shared: Server) -> None:
    url = place(shared.url.replace("//", f"//u:{PASSWORD}@"))
    async with process("python", "server.py", env={"STORE_URL": url}, listening=False) as relay:
        assert await relay.exit() == 3
        *_, line = relay.output.splitlines()
        assert line == "The server of STORE_URL can't be used: it refuses the user or the password."
        assert "running on" not in relay.output and "s3cret" not in relay.output and "Traceback" not in relay.output


async def test_a_replica_is_refused(name: str, shared: Server) -> None:
    with server(name, "--replicaof", "127.0.0.1", str(shared.port)) as replica:
        await eventually(lambda: b"master_link_status:up" in replica.said("INFO", "replication"))
        assert "is a replica" in await refusal(replica.url)


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-random"])
async def test_a_server_that_would_evict_conversations_is_refused(name: str, policy: str) -> None:
    with server(name, "--maxmemory", "100mb", "--maxmemory-policy", policy) as evicting:
        assert f"maxmemory-policy is {policy}" in await refusal(evicting.url)


@pytest.mark.parametrize("policy", ["noeviction", "volatile-lru"])
async def test_other_policies_are_taken(name: str, policy: str, upstream: ScriptedUpstream) -> None:
    with server(name, "--maxmemory", "100mb", "--maxmemory-policy", policy) as limited:
        await works(upstream, limited.url)


async def test_a_server_that_writes_nothing_to_disk_is_warned_of(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with server(name, "--appendonly", "no") as forgetful:
        store = Store(Settings(store_url=forgetful.url))
        await store.open()
        await store.close()
    assert "appendonly is off" in caplog.text


async def test_an_old_server_is_refused() -> None:
    async with pretending(OLD) as url:
        assert "too old (6.2.14)" in await refusal(url)


async def test_keys_of_a_newer_version_are_refused(shared: Server) -> None:
    shared.said("SET", "{newer}:format", "2")
    assert "newer version" in await refusal(f"{shared.url}?prefix=newer")


async def test_what_an_account_is_not_allowed_is_named(shared: Server) -> None:
    shared.said("ACL", "SETUSER", "weak", "on", ">s3cret", "~*", "+@all", "-eval")
    assert "isn't allowed to use EVAL" in await refusal(shared.url.replace("//", "//weak:s3cret@"))


async def test_a_server_that_restarts_meanwhile_is_asked_again(shared: Server, upstream: ScriptedUpstream) -> None:
    network = Network(shared.port)
    async with network.laid() as far:
        network.lose(b"\nINFO")
        await works(upstream, place(far))


async def test_a_server_that_still_loads_what_it_has_is_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    """What it says of `appendonly` isn't so yet."""
    async with pretending(LOADING, OLD) as url:
        assert "too old" in await refusal(url)
    assert "appendonly" not in caplog.text


OLD = b"redis_version:6.2.14\r\nrole:master\r\n"
LOADING = b"redis_version:7.0.15\r\nrole:master\r\nloading:1\r\naof_enabled:0\r\n"


@contextlib.asynccontextmanager
async def pretending(*infos: bytes) -> AsyncIterator[str]:
    """Something that says these to INFO, one after the other, and OK to all else."""

    waiting, left = list(infos), asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while count := await reader.readline():
                words = [await _word(reader) for _ in range(int(count[1:]))]
                said = waiting.pop(0) if words[0] == b"INFO" else b""
                writer.write(b"$%d\r\n%s\r\n" % (len(said), said) if said else b"+OK\r\n")
        writer.close()
        await writer.wait_closed()
        if not waiting:
            left.set()

    listening = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with listening:
        yield f"valkey://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        await bounded(left.wait())


async def _word(reader: asyncio.StreamReader) -> bytes:
    length = int((await reader.readline())[1:])
    return (await reader.readexactly(length + 2))[:-2]


# How it is found


async def test_a_password_is_used(name: str, upstream: ScriptedUpstream) -> None:
    with server(name, "--requirepass", "s3cret/:@") as guarded:
        assert "refuses the user or the password" in await refusal(guarded.url)
        await works(upstream, guarded.url.replace("//", "//:s3cret%2F%3A%40@"))


async def test_the_rights_that_the_docs_name_are_enough(shared: Server, upstream: ScriptedUpstream) -> None:
    [rights] = [line for line in DEPLOYMENT.splitlines() if line.startswith("ACL SETUSER relay ")]
    said = shared.said(*rights.replace("PASSWORD", "s3cret").split())
    assert said == b"+OK\r\n"
    await works(upstream, shared.url.replace("//", "//relay:s3cret@"))


async def test_two_prefixes_are_two_stores(shared: Server, upstream: ScriptedUpstream) -> None:
    async with (
        serving(upstream, store_url=place(shared.url)) as one,
        serving(upstream, store_url=place(shared.url)) as other,
    ):
        conversation_id = await one.ask()
        assert (await other.client.get(f"/conversations/{conversation_id}")).status_code == 404
        assert (await other.health())["conversations"] == 0


async def test_another_database_is_another_store(shared: Server, upstream: ScriptedUpstream) -> None:
    await works(upstream, f"{shared.url}/3")
    async with serving(upstream, store_url=f"{shared.url}/4") as relay:
        assert (await relay.health())["conversations"] == 0


@pytest.mark.not_on("valkey")  # PyPI's build has no TLS
async def test_tls_takes_a_certificate_of_that_name_alone(
    name: str, upstream: ScriptedUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stores.valkey.server.START_TIMEOUT", 4.0)
    certify(tmp_path, "localhost")
    trustme.CA().cert_pem.write_to_path(tmp_path / "others.pem")
    with relaying_tls(name, tmp_path) as port:
        trusted = f"?ssl_ca_certs={tmp_path}/ca.pem"
        await works(upstream, f"valkeys://localhost:{port}{trusted}")
        for url in (f"//127.0.0.1:{port}{trusted}", f"//localhost:{port}?ssl_ca_certs={tmp_path}/others.pem"):
            assert "certificate" in await refusal(f"rediss:{url}")


@pytest.mark.not_on("valkey")  # PyPI's build has no TLS
async def test_tls_is_spoken_with_sentinels_too(name: str, upstream: ScriptedUpstream, tmp_path: Path) -> None:
    certify(tmp_path, "localhost", "127.0.0.1")
    with relaying_tls(name, tmp_path) as port:
        own_port = free_port()
        options = [*tls_files(tmp_path), "--tls-replication", "yes", "--tls-port", str(own_port)]
        with server(name, "--sentinel", *options, config=SENTINEL.format(port)):
            url = f"valkeys+sentinel://localhost:{own_port}/chats?ssl_ca_certs={tmp_path}/ca.pem"
            await works(upstream, url)


def certify(folder: Path, *names: str) -> None:
    """An authority, and a certificate for these names, in files."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    certificate = authority.issue_cert(*names)
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(folder / "cert.pem")


def tls_files(folder: Path) -> list[str]:
    """The options of a server with that certificate, which asks for none."""
    files = ["--tls-cert-file", f"{folder}/cert.pem", "--tls-key-file", f"{folder}/key.pem"]
    return [*files, "--tls-ca-cert-file", f"{folder}/ca.pem", "--tls-auth-clients", "no"]


@contextlib.contextmanager
def relaying_tls(name: str, folder: Path) -> Iterator[int]:
    """A server with TLS on a port of its own."""
    port = free_port()
    with server(name, "--tls-port", str(port), *tls_files(folder)):
        yield port


async def test_a_cluster_is_asked_where_the_keys_are(name: str, upstream: ScriptedUpstream) -> None:
    buses = [str(free_port()), str(free_port())]  # else a port that may be taken, 10,000 above the other
    nodes = [("--cluster-enabled", "yes", "--cluster-port", bus) for bus in buses]
    with server(name, *nodes[0]) as one, server(name, *nodes[1]) as other:
        one.said("CLUSTER", "ADDSLOTSRANGE", "0", "8000")
        other.said("CLUSTER", "ADDSLOTSRANGE", "8001", "16383")
        one.said("CLUSTER", "MEET", "127.0.0.1", str(other.port), buses[1])
        for node in (one, other):
            await eventually(lambda node=node: b"cluster_state:ok" in node.said("CLUSTER", "INFO"))  # type: ignore[misc]
        for prefix in ("relay", "a"):  # of which each has its keys on another node
            await works(upstream, f"valkey+cluster://127.0.0.1:{one.port}?prefix={prefix}")
        sizes = [node.said("DBSIZE") for node in (one, other)]
        assert b":0\r\n" not in sizes


async def test_sentinels_know_the_primary_and_its_successor(name: str, upstream: ScriptedUpstream) -> None:
    async with pair(name) as (primary, replica):
        with sentinel(name, primary) as watching:
            async with relays(upstream, f"valkey+sentinel://127.0.0.1:1,127.0.0.1:{watching.port}/chats") as both:
                conversation_id = await both[0].ask()
                await both[1].read(conversation_id)
                await eventually(lambda: _has_all(primary, replica))
                primary.kill()
                await eventually(lambda: _answers(both, conversation_id))
                assert _is_primary(replica)
                assert (await both[1].read(await both[0].ask())).content == ANSWER


@pytest.mark.row("a planned failover (Sentinel)", "the whole reply", "the whole reply", "upstream was asked once")
async def test_a_planned_failover_cuts_nobody_off(name: str, upstream: ScriptedUpstream) -> None:
    upstream.play(gated(gate := Gate(), "one ", "two ", "three"))
    async with pair(name) as (primary, replica):
        with sentinel(name, primary) as watching:
            async with relays(upstream, f"valkey+sentinel://127.0.0.1:{watching.port}/chats") as (here, there):
                conversation_id = await here.ask()
                async with here.stream(conversation_id) as mine, there.stream(conversation_id) as theirs:
                    gate.open()
                    await mine.until("one "), await theirs.until("one ")
                    await eventually(lambda: watching.said("SENTINEL", "FAILOVER", "chats") == b"+OK\r\n")
                    gate.open()
                    await eventually(lambda: _is_primary(replica))
                    await mine.until("two "), await theirs.until("two ")
                    gate.open_wide()
                    for reader in (mine, theirs):
                        whole = await reader.whole()
                        assert (whole.content, whole.last["status"]) == ("one two three", "complete")
    assert len(upstream.requests) == 1


@pytest.mark.parametrize("asks", [False, True], ids=["the servers alone", "the Sentinels, too"])
async def test_sentinels_are_given_the_password_if_they_ask_for_it(
    name: str, asks: bool, upstream: ScriptedUpstream
) -> None:
    with server(name, "--requirepass", "s3cret") as primary:
        more = "sentinel auth-pass chats s3cret\n" + ("requirepass s3cret\n" if asks else "")
        with sentinel(name, primary, more) as watching:
            await works(upstream, f"valkey+sentinel://:s3cret@127.0.0.1:{watching.port}/chats")
            wrong = await refusal(f"valkey+sentinel://:{PASSWORD}@127.0.0.1:{watching.port}/chats")
            assert "refuses the user or the password" in wrong


async def test_a_service_that_sentinels_do_not_know_is_refused(
    name: str, shared: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stores.valkey.server.START_TIMEOUT", 2.5)
    with sentinel(name, shared) as watching:
        assert "can't be reached" in await refusal(f"valkey+sentinel://127.0.0.1:{watching.port}/others")


@contextlib.asynccontextmanager
async def pair(name: str) -> AsyncIterator[tuple[Server, Server]]:
    """A primary and its replica, which has what it has."""
    with server(name) as primary, server(name, "--replicaof", "127.0.0.1", str(primary.port)) as replica:
        await eventually(lambda: b"master_link_status:up" in replica.said("INFO", "replication"))
        yield primary, replica


def _is_primary(one: Server) -> bool:
    """Now; a Sentinel closes all connections of a server to which it gives a role."""
    with contextlib.suppress(OSError):
        return one.said("ROLE").startswith(b"*3\r\n$6\r\nmaster")
    return False


def _has_all(primary: Server, replica: Server) -> bool:
    offsets = [re.findall(rb"master_repl_offset:(\d+)", one.said("INFO", "replication")) for one in (primary, replica)]
    return offsets[0] == offsets[1]


async def _answers(both: list[Relay], conversation_id: str) -> bool:
    responses = [await relay.client.get(f"/conversations/{conversation_id}") for relay in both]
    return all(response.status_code == 200 for response in responses)


@contextlib.contextmanager
def sentinel(name: str, primary: Server, more: str = "") -> Iterator[Server]:
    """One Sentinel, which is enough to agree with itself."""
    with server(name, "--sentinel", config=SENTINEL.format(primary.port) + more) as watching:
        yield watching


SENTINEL = """
sentinel monitor chats 127.0.0.1 {} 1
sentinel down-after-milliseconds chats 1000
sentinel failover-timeout chats 5000
"""


async def test_a_first_sign_of_life_that_is_not_heard_is_given_again() -> None:
    """A server that answered just now may be slow for a moment, and a relay that has started can be asked."""
    answers = iter([StoreUnavailable("not now"), None])

    async def beat() -> None:
        if error := next(answers):
            raise error

    await starting.first(beat)
    assert list(answers) == []


async def test_a_signal_ends_a_relay_that_waits_for_its_server() -> None:
    asked = asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            asked.set()
            while await reader.read(1000):
                pass

    silent = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    env = {"STORE_URL": f"valkey://127.0.0.1:{silent.sockets[0].getsockname()[1]}"}
    async with silent, process("python", "server.py", env=env, listening=False) as relay:
        await bounded(asked.wait())
        began = time.monotonic()
        relay.terminate()
        assert await relay.exit() == 0
        assert time.monotonic() - began < 5 < starting.START_TIMEOUT
        assert "Traceback" not in relay.output
