"""The image is what the Dockerfile promises, and runs as a cluster would run it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from settings import VERSION
from tests.container.engine import Container, Engine, Image
from tests.support.process import ROOT
from tests.support.relay import Relay, client
from tests.support.servers import free_port, server, usual_program
from tests.support.waiting import eventually

MOST_BYTES = 12_000_000
"""That the image may add to its base."""

STARTING = 60.0
"""Seconds, on a busy machine; most of them are the engine's."""

pytestmark = pytest.mark.bound(120)


def test_the_image_says_how_it_is_run(image: Image) -> None:
    config = image.config
    assert config["Entrypoint"] == ["python", "server.py"] and not config["Cmd"]
    assert config["User"] == "10001:10001"  # a number: runAsNonRoot can't tell by a name
    assert config["StopSignal"] == "SIGTERM"
    assert config["Healthcheck"]["Test"][:3] == ["CMD", "python", "-c"]
    assert config["ExposedPorts"] == {"8001/tcp": {}}
    assert {"HOST=0.0.0.0", "PORT=8001"} <= set(config["Env"])
    assert config["Labels"]["org.opencontainers.image.title"] == "chat-relay"
    assert config["Labels"]["org.opencontainers.image.version"] == VERSION


FOLDERS = ("api", "serving", "stores", "upstream")


def test_it_adds_the_relay_its_packages_and_nothing_else_to_its_base(image: Image, base: Image) -> None:
    added = files(image.root) - files(base.root)
    assert {path.split("/", 1)[0] for path in added} == {"app", "venv"}
    assert {path for path in added if path.startswith("app/") and "__pycache__" not in path} == {
        "app/openapi.json",
        "app/pyproject.toml",
        "app/LICENSE",
        *(f"app/{module.name}" for module in ROOT.glob("*.py")),
        *(
            f"app/{file.relative_to(ROOT)}"
            for folder in FOLDERS
            for file in (ROOT / folder).rglob("*")
            if file.suffix in (".py", ".lua")
        ),
    }
    packages = {path.name.split("-")[0] for path in site_packages(image).glob("*.dist-info")}
    assert {"starlette", "uvicorn", "httpx", "sse_starlette", "python_dotenv", "uvloop"} <= packages
    assert not {"pip", "setuptools", "wheel", "watchfiles", "websockets", "PyYAML", "pyyaml"} & packages


def test_it_adds_less_than_12_mb(image: Image, base: Image) -> None:
    added = sum((image.root / path).lstat().st_size for path in files(image.root) - files(base.root))
    print(f"\nadded to the base: {added / 1e6:.1f} MB")
    assert added < MOST_BYTES


def test_all_its_code_is_compiled_and_nobody_can_change_it(image: Image) -> None:
    for folder in (image.root / "app", site_packages(image)):
        for source in folder.rglob("*.py"):
            assert list(source.parent.glob(f"__pycache__/{source.stem}.cpython-*.pyc")), source
    for path in [*(image.root / "app").rglob("*"), *(image.root / "venv").rglob("*")]:
        assert path.is_symlink() or (path.stat().st_uid == 0 and not path.stat().st_mode & 0o022), path


async def test_it_runs_on_a_read_only_root_without_any_privilege(engine: Engine, image: Image) -> None:
    async with started(engine, image) as (container, relay):
        answer = await relay.read(await relay.ask("Who are you?"))
        assert answer.content.startswith("You asked: Who are you?") and answer.last["status"] == "complete"
        process = container.process
        status = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines())
        assert status["Uid"].split() == ["10001"] * 4 and status["Gid"].split() == ["10001"] * 4
        assert status["NSpid"].split()[-1] == "1"
        assert int(status["CapBnd"], 16) == 0 and status["NoNewPrivs"] == "1"
        [root] = [line for line in (process / "mounts").read_text().splitlines() if line.split()[1] == "/"]
        assert "ro" in root.split()[3].split(",")
        assert "LISTENING ON 0.0.0.0 WITHOUT A TOKEN" in container.output


async def test_an_answer_in_progress_at_its_stop_signal_is_finished(engine: Engine, image: Image) -> None:
    async with started(engine, image) as (container, relay):
        assert await asyncio.to_thread(container.is_healthy)
        async with relay.stream(await relay.ask("Will you finish?")) as reader:
            await reader.until("You asked")
            stopping = asyncio.create_task(asyncio.to_thread(container.stop))
            await eventually(lambda: drains(relay))
            assert not await asyncio.to_thread(container.is_healthy)
            answer = await reader.whole()
        assert answer.last["status"] == "complete" and answer.content.endswith("or with trouble.")
        await stopping
        assert container.exit_code == 0, container.output


async def test_with_nothing_in_progress_it_exits_at_once(engine: Engine, image: Image) -> None:
    async with started(engine, image) as (container, _):
        before = asyncio.get_running_loop().time()
        await asyncio.to_thread(container.stop)
        assert container.exit_code == 0, container.output
        assert asyncio.get_running_loop().time() - before < 5


async def test_a_killed_container_with_a_volume_forgets_nothing(engine: Engine, image: Image) -> None:
    options = ("--volume=chats:/data", "--env=STORE_URL=sqlite:////data/chat.db")
    async with started(engine, image, *options) as (_, relay):
        conversation_id = await relay.ask("Will you remember?")
        async with relay.stream(conversation_id) as reader:
            seen = await reader.until("You asked")
    async with started(engine, image, *options) as (_, relay):  # the first one was killed
        [question, reply] = await relay.messages(conversation_id)
        assert (question["content"], reply["status"], reply["error"]["code"]) == ("Will you remember?", "failed", 503)
        assert reply["content"].startswith("You asked") and seen
        answer = await relay.read(conversation_id)
        assert answer.last["status"] == "complete"


async def test_an_image_with_the_locks_for_a_shared_server_shares_one(engine: Engine, base: Image) -> None:
    locks = "requirements.lock requirements-valkey.lock"
    image = engine.build("localhost/chat-relay-valkey", PYTHON_IMAGE=base.name, LOCKS=locks)
    with server(usual_program()) as shared:
        option = f"--env=STORE_URL={shared.url}"
        async with started(engine, image, option) as (_, one), started(engine, image, option) as (_, other):
            assert (await one.health())["engine"] == "valkey"
            answer = await other.read(await one.ask("Are you two?"))
            assert answer.last["status"] == "complete"


async def test_a_setting_that_cannot_be_read_ends_it_with_one_line(engine: Engine, image: Image) -> None:
    with engine.container(image, options=("--env=SHUTDOWN_GRACE=soon",)) as container:
        await eventually(lambda: container.has_exited, STARTING)
        assert container.exit_code == 3
        [line] = container.output.splitlines()
        assert line.startswith("SHUTDOWN_GRACE must be a")


@contextlib.asynccontextmanager
async def started(engine: Engine, image: Image, *options: str) -> AsyncIterator[tuple[Container, Relay]]:
    """The image's entry point with the stand-in, on a free port."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with engine.container(image, "--demo", options=(f"--env=PORT={port}", *options)) as container:
        async with client(url) as connections:
            relay = Relay(url, connections)
            await eventually(lambda: answers(relay), STARTING)
            yield container, relay


async def answers(relay: Relay) -> bool:
    """Whether it listens and is well."""
    try:
        return (await relay.client.get("/health")).status_code == 200
    except httpx.TransportError:
        return False


async def drains(relay: Relay) -> bool:
    """Whether it has been told to stop."""
    return bool((await relay.health())["status"] == "draining")


def files(root: Path) -> set[str]:
    """The paths of all files and links below, without what buildah and podman lay over an image."""
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_symlink() or path.is_file()}


def site_packages(image: Image) -> Path:
    """Where its packages are."""
    [folder] = (image.root / "venv" / "lib").glob("python3.*/site-packages")
    return folder
