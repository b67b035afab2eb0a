"""`docker compose up` with the stand-in, as podman does it: the React example behind nginx, and the relay beside it."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]

from tests.container.engine import Engine, Image
from tests.container.namespaces import Namespaces, output
from tests.support.process import ROOT
from tests.support.sse import Parser

PAGE = "http://localhost:8080"

NODE = """\
FROM localhost/python
COPY node /usr/local/bin/
COPY npm /usr/local/lib/node_modules/npm
RUN ln -s ../lib/node_modules/npm/bin/npm-cli.js /usr/local/bin/npm
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


def curl(inside: Namespaces, path: str, body: str | None = None) -> str:
    """What the relay answers to the page."""
    post = [] if body is None else ["--header", "Content-Type: application/json", "--data", body]
    return inside.run("curl", "--silent", "--fail-with-body", "--header", f"Origin: {PAGE}", *post, f"{PAGE}/api{path}")


@pytest.fixture(scope="module")
def composed(engine: Engine, image: Image, app: Image) -> Iterator[Namespaces]:
    """The services of compose.yaml on a network of their own, where no port is taken."""
    with Namespaces.made(engine.environ, network=True) as inside:
        inside.run("podman-compose", "up", "--detach", "--no-build", cwd=ROOT)
        yield inside
        inside.run("podman-compose", "down", cwd=ROOT)


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
