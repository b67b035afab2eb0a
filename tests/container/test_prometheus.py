"""Debian's Prometheus with the example's configuration scrapes a relay, and answers what the dashboard asks."""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.container.namespaces import output
from tests.support.process import ROOT, process
from tests.support.relay import Relay, client
from tests.support.servers import free_port
from tests.support.waiting import eventually

TOKEN = "a-token-of-the-tests"
DASHBOARD: dict[str, Any] = json.loads((ROOT / "examples/grafana/dashboard.json").read_text(encoding="utf-8"))
TARGETS = [target for panel in DASHBOARD["panels"] for target in panel["targets"]]


def configuration(relay: Relay, folder: Path) -> Path:
    """The example's, for this relay and in a hurry."""
    (token := folder / "token").write_text(TOKEN)
    text = (ROOT / "examples/prometheus/prometheus.yml").read_text(encoding="utf-8")
    places = {"/etc/prometheus/chat-relay-token": f"{token}", "localhost:8001": relay.url.removeprefix("http://")}
    for there, here in {**places, "15s": "100ms"}.items():
        assert text.count(there) == 1 or there == "15s"
        text = text.replace(there, here)
    (made := folder / "prometheus.yml").write_text(text)
    return made


@contextlib.asynccontextmanager
async def prometheus(configuration: Path) -> AsyncIterator[httpx.AsyncClient]:
    """The real one, and a client of its API."""
    listens = f"127.0.0.1:{free_port()}"
    options = [f"--web.listen-address={listens}", f"--storage.tsdb.path={configuration.parent / 'data'}"]
    child = await asyncio.create_subprocess_exec("prometheus", f"--config.file={configuration}", *options)
    try:
        async with client(f"http://{listens}") as api:

            async def is_ready() -> bool:
                with contextlib.suppress(httpx.TransportError):
                    return (await api.get("/-/ready")).is_success
                return False

            await eventually(is_ready, 20)
            yield api
    finally:
        child.terminate()
        await child.wait()


async def query(api: httpx.AsyncClient, expression: str) -> list[dict[str, Any]]:
    """What Prometheus answers."""
    response = await api.get("/api/v1/query", params={"query": expression})
    assert response.json()["status"] == "success", f"{expression}: {response.text}"
    found: list[dict[str, Any]] = response.json()["data"]["result"]
    return found


@pytest.mark.bound(120)
async def test_prometheus_scrapes_the_relay_and_answers_every_panel_of_the_dashboard(tmp_path: Path) -> None:
    async with process("python", "server.py", "--demo", env={"AUTH_TOKEN": TOKEN}) as relay:
        relay.client.headers["Authorization"] = f"Bearer {TOKEN}"
        await relay.client.get("/models")
        for model in ("demo/search", "demo/no-credit", "demo/busy"):
            await relay.read(await relay.ask(model=model))
        output("promtool", "check", "config", f"{(made := configuration(relay, tmp_path))}")
        async with prometheus(made) as api:

            async def has_scraped() -> bool:
                return bool(await query(api, 'chat_relay_replies_total{model="demo/search"}'))

            await eventually(has_scraped, 20)
            [up] = await query(api, 'up{job="chat-relay"}')
            assert up["value"][1] == "1"
            await relay.read(await relay.ask(model="demo/refusal"))  # for a rate there have to be two values
            for target in TARGETS:
                await eventually_answered(api, target["expr"])


async def eventually_answered(api: httpx.AsyncClient, expression: str) -> None:
    """Something comes back for it."""
    asked = expression.replace("$__rate_interval", "1m").replace("$job", ".+")

    async def is_answered() -> bool:
        return bool(await query(api, asked))

    try:
        await eventually(is_answered, 10)
    except AssertionError:
        raise AssertionError(f"no answer to {asked}") from None


async def test_promtool_finds_nothing_to_complain_of_in_the_metrics() -> None:
    async with process("python", "server.py", "--demo") as relay:
        await relay.client.get("/models")
        await relay.read(await relay.ask())
        said = (await relay.client.get("/metrics")).content
        child = await asyncio.create_subprocess_exec(
            "promtool", "check", "metrics", stdin=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        _, complaints = await child.communicate(said)
        assert (child.returncode, complaints.decode()) == (0, "")


def test_the_dashboard_asks_for_every_metric_in_panels_that_lie_side_by_side() -> None:
    """No Grafana is to be had from Debian: its own form is checked as far as it is written down."""
    asked = {name for target in TARGETS for name in re.findall(r"chat_relay_\w+", target["expr"])}
    told = set(re.findall(r"`(chat_relay_\w+)`", (ROOT / "docs/deploy.md").read_text(encoding="utf-8")))
    assert {re.sub("_bucket$", "", name) for name in asked} == told
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in DASHBOARD["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells) and max(x for x, _ in cells) == 23
    assert {panel["datasource"]["uid"] for panel in DASHBOARD["panels"]} == {"${datasource}"}
