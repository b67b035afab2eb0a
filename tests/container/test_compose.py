"""`docker compose up` with the stand-in, as podman does it: the React example behind nginx, and the relay beside it."""

import json
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]

from tests.container.engine import Engine, Image
from tests.container.namespaces import Namespaces, output
from tests.support.process import ROOT
from tests.support.servers import program
from tests.support.sse import Parser

PAGE = "http://localhost:8080"
SHARED_PAGE = "http://localhost:8090"

NODE = """\
FROM localhost/python
COPY node /usr/local/bin/
COPY npm /usr/local/lib/node_modules/npm
RUN ln -s ../lib/node_modules/npm/bin/npm-cli.js /usr/local/bin/npm
"""
VALKEY = """\
FROM localhost/python
COPY valkey-server /usr/local/bin/
WORKDIR /data
"""
NGINX = """\
FROM localhost/node
COPY nginx-unprivileged.conf /etc/nginx/nginx.conf
USER 101
CMD ["nginx", "-g", "daemon off;"]
"""


def test_compose_yaml_fits_the_compose_specification() -> None:
    output(
        sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", "compose.yaml", cwd=ROOT
    )


def test_the_relay_has_time_to_finish_what_is_in_progress() -> None:
    grace = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["relay"]["stop_grace_period"]
    assert int(grace.removesuffix("s")) >= 20 + 2


def test_a_page_behind_nginx_streams_an_answer(composed: Namespaces) -> None:
    eventually_up = ("--retry", "20", "--retry-delay", "1", "--retry-all-errors", "--silent", "--show-error", "--fail")
    composed.run("curl", *eventually_up, f"{PAGE}/api/health")
    assert '<div id="root">' in composed.run("curl", "--silent", PAGE)
    conversation = curl(composed, "/conversations", body="{}")
    path = f"/conversations/{json.loads(conversation)['id']}"
    curl(composed, f"{path}/messages", body='{"content": "Are you there?"}')
    blocks = Parser().feed(curl(composed, f"{path}/stream").encode())
    assert "".join(block.content for block in blocks).startswith("You asked: Are you there?")
    assert blocks[-1].json["status"] == "complete"
    health = json.loads(composed.run("curl", "--silent", "http://localhost:8001/health"))
    assert (health["replies_in_progress"], health["engine"], health["store"]) == (0, "sqlite", "ok")


def test_a_conversation_outlives_its_container(composed: Namespaces) -> None:
    conversation = curl(composed, "/conversations", body='{"title": "Kept"}')
    path = f"/conversations/{json.loads(conversation)['id']}"
    composed.run("podman-compose", "down", cwd=ROOT)
    composed.run("podman-compose", "up", "--detach", "--no-build", cwd=ROOT)
    again = ("--retry", "20", "--retry-delay", "1", "--retry-all-errors", "--silent", "--show-error", "--fail")
    assert json.loads(composed.run("curl", *again, f"{PAGE}/api{path}"))["title"] == "Kept"


@pytest.mark.usefixtures("shared_images")
def test_three_replicas_behind_nginx_share_their_conversations(composed: Namespaces) -> None:
    up = (
        "--profile",
        "replicas",
        "up",
        "--detach",
        "--no-build",
        "--scale",
        "replica=3",
    )  # podman's own heeds no `deploy`
    composed.run("podman-compose", *up, cwd=ROOT)
    again = ("--retry", "60", "--retry-delay", "1", "--retry-all-errors", "--silent", "--show-error", "--fail")
    composed.run("curl", *again, f"{SHARED_PAGE}/api/conversations")  # which needs the server, too
    assert json.loads(composed.run("curl", *again, f"{SHARED_PAGE}/api/health"))["engine"] == "valkey"
    replicas = started(composed, 3)
    conversation = json.loads(curl(composed, "/conversations", body="{}", page=SHARED_PAGE))["id"]
    path = f"/conversations/{conversation}"
    curl(composed, f"{path}/messages", body='{"content": "Are you three?"}', page=SHARED_PAGE)
    blocks = Parser().feed(curl(composed, f"{path}/stream", page=SHARED_PAGE).encode())
    assert blocks[-1].json["status"] == "complete"
    composed.run("podman", "kill", replicas[0])
    messages = json.loads(composed.run("curl", *again, f"{SHARED_PAGE}/api{path}/messages"))["messages"]
    assert [message["status"] for message in messages] == ["complete", "complete"]
    composed.run("podman-compose", "--profile", "replicas", "down", cwd=ROOT)


def started(inside: Namespaces, count: int) -> list[str]:
    """The names of the replicas, once so many run: one that came before its server is started again."""
    ends = time.monotonic() + 60
    while time.monotonic() < ends:
        names = inside.run("podman", "ps", "--format", "{{.Names}}").split()
        if len(replicas := [name for name in names if "replica" in name]) == count:
            return replicas
        time.sleep(0.5)
    logs = "for one in $(podman ps --all --quiet); do podman logs --names $one; done 2>&1"
    raise AssertionError(inside.run("sh", "-c", f"podman ps --all; {logs}"))


def curl(inside: Namespaces, path: str, body: str | None = None, page: str = PAGE) -> str:
    """What the relay answers to the page."""
    post = [] if body is None else ["--header", "Content-Type: application/json", "--data", body]
    return inside.run("curl", "--silent", "--fail-with-body", "--header", f"Origin: {page}", *post, f"{page}/api{path}")


@pytest.fixture(scope="module")
def composed(engine: Engine, image: Image, app: Image) -> Iterator[Namespaces]:
    """The services of compose.yaml on a network of their own, where no port is taken."""
    with Namespaces.made(engine.environ, network=True) as inside:
        inside.run("podman-compose", "up", "--detach", "--no-build", cwd=ROOT)
        yield inside
        inside.run("podman-compose", "down", cwd=ROOT)


@pytest.fixture(scope="module")
def shared_images(engine: Engine, base: Image) -> None:
    """The image of relays that share a server, and a stand-in for the server's: PyPI's build of it."""
    locks = "requirements.lock requirements-valkey.lock"
    engine.build("localhost/chat-relay-valkey", PYTHON_IMAGE=base.name, LOCKS=locks)
    context = engine.home / "valkey"
    context.mkdir()
    shutil.copy(program("valkey") or "", context / "valkey-server")
    (context / "Dockerfile").write_text(VALKEY)
    engine.build("localhost/valkey/valkey:8-alpine", context)


@pytest.fixture(scope="module")
def app(engine: Engine, base: Image) -> Image:
    """The app's image, on local stand-ins for its two bases."""
    context = engine.home / "bases"
    context.mkdir()
    shutil.copy(ROOT / "tests/container/nginx-unprivileged.conf", context)
    shutil.copy(which("node"), context / "node")
    shutil.copytree(which("npm").parents[1], context / "npm")
    for name, text in {"node": NODE, "nginx": NGINX}.items():
        (context / "Dockerfile").write_text(text)
        engine.build(f"localhost/{name}", context)
    bases = {"NODE_IMAGE": "localhost/node", "NGINX_IMAGE": "localhost/nginx"}
    return engine.build("localhost/chat-relay-app", ROOT / "examples", "nginx/Dockerfile", **bases)


def which(program: str) -> Path:
    """Its file, links followed."""
    path = shutil.which(program)
    assert path, f"{program} is not installed"
    return Path(path).resolve()
