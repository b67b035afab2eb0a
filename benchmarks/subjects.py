"""What is compared: how each subject is started, asked, and known to be ready."""

import os
import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks import install
from benchmarks.dialects import Completions, Conversations, Dialect
from benchmarks.errors import NotInstalled
from benchmarks.processes import Command

SERVICE, FAST, NAIVE, NGINX, PORTKEY, LITELLM = "service", "accelerated", "naive", "nginx", "portkey", "litellm"


@dataclass(frozen=True)
class Subject:
    """One relay. `command` takes the port to listen on and upstream's base URL, `dialect` the latter."""

    name: str
    dialect: Callable[[str], Dialect]
    ready_path: str
    command: Callable[[int, str], Command]

    @property
    def is_service(self) -> bool:
        """Whether this is the service itself, with or without the accelerator."""
        return self.name in (SERVICE, FAST)


def available(names: list[str]) -> tuple[list[Subject], dict[str, str]]:
    """The subjects among these that can be had here, and why each other one can't."""
    subjects, missing = [], {}
    for name in names:
        try:
            subjects.append(_MAKERS[name]())
        except NotInstalled as reason:
            missing[name] = str(reason)
    return subjects, missing


def _service() -> Subject:
    return _relay(SERVICE, install.plain_python(), _server_script(), "/health")


def _accelerated() -> Subject:
    return _relay(FAST, install.fast_python(), _server_script(), "/health")


def _naive() -> Subject:
    return _relay(NAIVE, install.naive_python(), install.HERE / "naive.py", "/health")


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


def _litellm() -> Subject:
    python, key = install.litellm_python(), f"sk-{secrets.token_hex(32)}"  # it doesn't start without a strong key
    dialect = Completions("/v1/chat/completions", headers={"Authorization": f"Bearer {key}"})
    return Subject(
        LITELLM, lambda url: dialect, "/health/liveliness", lambda port, url: _litellm_command(python, key, port, url)
    )


def _relay(name: str, python: Path, script: Path, ready_path: str) -> Subject:
    return Subject(
        name, lambda url: Conversations(), ready_path, lambda port, url: _relay_command(python, script, port, url)
    )


def _relay_command(python: Path, script: Path, port: int, upstream: str) -> Command:
    settings = {"OPENROUTER_BASE_URL": upstream, "OPENROUTER_API_KEY": "test", "PORT": str(port), "LOG_LEVEL": "INFO"}
    return Command((str(python), str(script)), _environment(**settings), _folder("relay"))


def _nginx_command(binary: Path, port: int, upstream: str) -> Command:
    configuration = _filled("nginx.conf", port=port, upstream=urlsplit(upstream).netloc, folder=_folder("run"))
    return Command((str(binary), "-e", "stderr", "-p", str(_folder("run")), "-c", str(configuration)), _environment())


def _litellm_command(python: Path, key: str, port: int, upstream: str) -> Command:
    configuration = _filled("litellm.yaml", upstream=upstream)
    arguments = ("--config", str(configuration), "--host", "127.0.0.1", "--port", str(port))
    environment = _environment(LITELLM_MASTER_KEY=key, LITELLM_LOG="ERROR", LITELLM_LOCAL_MODEL_COST_MAP="True")
    return Command((str(python.parent / "litellm"), *arguments), environment, _folder("run"))


def _server_script() -> Path:
    script = install.ROOT / "server.py"
    if not script.exists():
        raise NotInstalled("server.py isn't there")
    return script


def _filled(name: str, **values: object) -> Path:
    """A configuration file of this folder with its placeholders filled in."""
    target = _folder("run") / name
    target.write_text((install.HERE / name).read_text().format(**values))
    return target


def _folder(name: str) -> Path:
    folder = install.CACHE / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _environment(**variables: str) -> dict[str, str]:
    """A clean environment: nothing of this shell's but where programs are."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8", "HOME": str(_folder("home")), **variables}


_MAKERS: dict[str, Callable[[], Subject]] = {
    SERVICE: _service,
    FAST: _accelerated,
    NAIVE: _naive,
    NGINX: _nginx,
    PORTKEY: _portkey,
    LITELLM: _litellm,
}
NAMES = tuple(_MAKERS)
