"""The relays that are compared: how each subject is started, asked, and known to be ready."""

import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks import install
from benchmarks.dialects import Completions, Conversations, Dialect
from benchmarks.errors import NotInstalled
from benchmarks.processes import Command

NAMES = NAIVE, NGINX, PORTKEY, SERVICE = "naive", "nginx", "portkey", "service"


@dataclass(frozen=True)
class Subject:
    """One relay. `command` takes the port to listen on and upstream's base URL, `dialect` the latter."""

    name: str
    dialect: Callable[[str], Dialect]
    ready_path: str
    command: Callable[[int, str], Command]


def available(names: Iterable[str], python: Path) -> tuple[list[Subject], dict[str, str]]:
    """The subjects among these that can be had here, the relays on this Python; and why each other one can't."""
    makers: dict[str, Callable[[], Subject]] = {
        NAIVE: lambda: _naive(python),
        NGINX: _nginx,
        PORTKEY: _portkey,
        SERVICE: lambda: _service(python),
    }
    subjects, missing = list[Subject](), dict[str, str]()
    for name in names:
        try:
            subjects.append(makers[name]())
        except NotInstalled as reason:
            missing[name] = str(reason)
    return subjects, missing


def _naive(python: Path) -> Subject:
    return _relay(NAIVE, install.naive_python(python), install.HERE / "naive.py")


def _service(python: Path) -> Subject:
    return _relay(SERVICE, install.service_python(python), install.ROOT / "server.py")


def _nginx() -> Subject:
    binary, dialect = install.nginx_binary(), Completions("/api/v1/chat/completions")
    return Subject(NGINX, lambda url: dialect, "/ready", lambda port, url: _nginx_command(binary, port, url))


def _portkey() -> Subject:
    script, node = install.portkey_script(), shutil.which("node") or "node"
    arguments = (node, str(script))
    # Its guard against requests to private addresses has to be told of the scripted upstream.
    environment = _environment(NODE_ENV="production", TRUSTED_CUSTOM_HOSTS="127.0.0.1,localhost")
    return Subject(
        PORTKEY,
        lambda url: Completions(
            "/v1/chat/completions", headers={"x-portkey-provider": "openai", "x-portkey-custom-host": url}
        ),
        "/",
        lambda port, url: Command((*arguments, f"--port={port}", "--headless"), environment),
    )


def _relay(name: str, python: Path, script: Path) -> Subject:
    return Subject(
        name, lambda url: Conversations(), "/health", lambda port, url: _relay_command(python, script, port, url)
    )


def _relay_command(python: Path, script: Path, port: int, upstream: str) -> Command:
    settings = {"OPENROUTER_BASE_URL": upstream, "OPENROUTER_API_KEY": "test", "PORT": str(port), "LOG_LEVEL": "INFO"}
    return Command((str(python), str(script)), _environment(**settings), _folder("relay"))


def _nginx_command(binary: Path, port: int, upstream: str) -> Command:
    folder = _folder("run")
    configuration = folder / "nginx.conf"
    template = (install.HERE / "nginx.conf").read_text()
    configuration.write_text(template.format(port=port, upstream=urlsplit(upstream).netloc, folder=folder))
    return Command((str(binary), "-e", "stderr", "-p", str(folder), "-c", str(configuration)), _environment())


def _folder(name: str) -> Path:
    folder = install.CACHE / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _environment(**variables: str) -> dict[str, str]:
    """A clean environment: nothing of this shell's but where programs are."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8", "HOME": str(_folder("home")), **variables}
