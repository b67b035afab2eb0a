"""Every test of the HTTP client runs on both event loops, most with a client without TLS and without a proxy."""

from collections.abc import AsyncIterator

import pytest

from upstream.http.transport import Transport


@pytest.fixture(scope="module", params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """Both event loops: the service runs on uvloop where there is one, most tests on asyncio's own."""
    return "asyncio", {"use_uvloop": request.param}


@pytest.fixture
async def transport() -> AsyncIterator[Transport]:
    """A client without TLS or a proxy, closed when the test ends."""
    async with Transport(None) as transport:
        yield transport
