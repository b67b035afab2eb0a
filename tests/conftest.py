"""How the tests run: every `async def test_...` on asyncio, within a bounded time, with fixtures for the usual pair."""

import asyncio
import functools
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from typing import Any

import pytest
from hypothesis import settings

import server
from tests.support.engines import ENGINES, engine
from tests.support.relay import Relay, serving
from tests.support.servers import Server, usual_program
from tests.support.servers import server as server_of
from tests.support.stores import GatedStore, SlowStore
from tests.support.upstream import ScriptedUpstream
from tests.support.waiting import LIMIT

LONGEST_TEST = 60.0


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fuzz", type=int, metavar="N", help="fuzz the contract with N examples an operation, at random")
    parser.addoption("--store", choices=ENGINES, help="run the tests that this engine decides, on it alone")
    parser.addoption(
        "--rounds", type=int, default=15, metavar="N", help="how often two relays race in test_replicas.py"
    )
    parser.addoption(
        "--chats", type=int, default=12, metavar="N", help="how many there are in test_replica_campaign.py"
    )
    parser.addoption("--seed", type=int, default=1, metavar="N", help="what happens in test_replica_campaign.py")
    parser.addoption(
        "--server", choices=("redis", "valkey"), default=usual_program(), help="the server that relays share"
    )
    parser.addoption("--uvloop", action="store_true", help="run the async tests on uvloop")


def pytest_configure(config: pytest.Config) -> None:
    config.option.anyio_mode = "auto"
    is_random = config.getoption("--fuzz") is not None
    examples = {"max_examples": 100 if is_random else 40, "derandomize": not is_random}
    settings.register_profile("relay", settings(), deadline=None, **examples)  # an example may start a server
    settings.load_profile("relay")
    config.addinivalue_line("markers", "bound(seconds): how long this async test may take, 60 s unless told")
    config.addinivalue_line("markers", "row(*cells): what docs/faults.md says of what the test does")
    config.addinivalue_line("markers", "engines(*names): the engines that it runs on, `memory` alone unless told")
    config.addinivalue_line("markers", "not_on(server): left out where `--server` names it")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test on each of its engines."""
    if mark := metafunc.definition.get_closest_marker("engines"):
        metafunc.parametrize("_engine", mark.args, indirect=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what a server hasn't got, and with `--store` all that another engine decides."""
    named, store = config.getoption("--server"), config.getoption("--store")
    apart = [item for item in items if any(named in mark.args for mark in item.iter_markers("not_on"))]
    apart += [item for item in items if store and _engine_of(item) != store]
    config.hook.pytest_deselected(items=apart)
    items[:] = [item for item in items if item not in apart]


def _engine_of(item: pytest.Item) -> object:
    called = getattr(item, "callspec", None)
    return called and called.params.get("_engine")


@pytest.fixture(scope="session")
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """The event loop of the async tests."""
    return "asyncio", {"use_uvloop": request.config.getoption("--uvloop")}


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Bound an async test (each example of one, under Hypothesis), before anyio runs it."""
    marker = pyfuncitem.get_closest_marker("bound")
    seconds = marker.args[0] if marker else LONGEST_TEST
    handle = getattr(pyfuncitem.obj, "hypothesis", None)
    if handle and inspect.iscoroutinefunction(handle.inner_test):
        handle.inner_test = _bounded(handle.inner_test, seconds)
    elif inspect.iscoroutinefunction(pyfuncitem.obj):
        pyfuncitem.obj = _bounded(pyfuncitem.obj, seconds)
    return (yield)


def _bounded(test: Callable[..., Awaitable[None]], seconds: float) -> Callable[..., Awaitable[None]]:
    @functools.wraps(test)
    async def bounded(*args: Any, **kwargs: Any) -> None:
        async with asyncio.timeout(seconds):
            await test(*args, **kwargs)

    return bounded


@pytest.fixture(scope="session")
def _server_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The server of all tests on `valkey`."""
    with server_of(request.config.getoption("--server")) as running:
        yield running.url


@pytest.fixture
def shared(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server of the test's own, for relays."""
    with server_of(request.config.getoption("--server")) as running:
        yield running


@pytest.fixture(autouse=True)
def _engine(request: pytest.FixtureRequest) -> Iterator[None]:
    """Services and stores are on this engine, unless a test says otherwise."""
    name = getattr(request, "param", "memory")
    with engine(name, request.getfixturevalue("_server_url") if name == "valkey" else ""):
        yield


@pytest.fixture(autouse=True)
def _patience(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may keep a store waiting for longer than its three seconds, where they aren't the subject."""
    mark = request.node.get_closest_marker("engines")
    if mark and len(mark.args) > 1:
        monkeypatch.setattr("stores.sqlite.engine.COMMIT_TIMEOUT", LIMIT)
        monkeypatch.setattr("stores.valkey.reader.ANSWER_TIMEOUT", LIMIT)


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    """An upstream of the test's own; what its scripts raise fails the test."""
    async with ScriptedUpstream() as upstream:
        yield upstream


@pytest.fixture
def _slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that is made from now on has a `SlowStore`."""
    monkeypatch.setattr(server, "Store", SlowStore)


@pytest.fixture
def _gated(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that is made from now on has a `GatedStore`."""
    monkeypatch.setattr(server, "Store", GatedStore)


@pytest.fixture
async def relay(upstream: ScriptedUpstream) -> AsyncIterator[Relay]:
    """A service on that upstream, its settings those it has by itself."""
    async with serving(upstream) as relay:
        yield relay
