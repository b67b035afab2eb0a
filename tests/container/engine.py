"""Container images built by buildah and run by podman, without a registry of images and without a daemon.

Needs root. Storage, networks and settings are the engine's own and go with it; nothing is written elsewhere.
"""

import contextlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pip

from tests.container.namespaces import Namespaces, output
from tests.support.process import ROOT

CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
CACHE = ROOT / ".venv" / "container"
DEBIAN = "bookworm"
PIP_SETTINGS = ("index-url", "proxy", "trusted-host", "timeout")

STORAGE = """\
[storage]
driver = "{driver}"
graphroot = "{home}/images"
runroot = "{home}/run"
"""
CONTAINERS = """\
[containers]
cgroups = "disabled"
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
[network]
network_backend = "netavark"
network_config_dir = "{home}/networks"
"""
BASE = f"""\
FROM scratch
ADD {DEBIAN}.tar /
COPY pip /usr/local/lib/python3.11/dist-packages/pip
"""


@dataclass(frozen=True)
class Image:
    """An image; `root` is where its files can be looked at."""

    name: str
    root: Path
    config: dict[str, Any]


class Engine:
    """buildah and podman."""

    def __init__(self, home: Path, environ: dict[str, str], namespaces: Namespaces) -> None:
        self.home = home
        self.environ = environ
        self._namespaces = namespaces

    @classmethod
    @contextlib.contextmanager
    def running(cls) -> Iterator["Engine"]:
        """An engine of one's own."""
        home = Path(tempfile.mkdtemp(prefix="relay-"))  # a short path: it becomes part of a socket's
        try:
            environ = _settings(home)
            with Namespaces.made(environ) as namespaces:
                yield cls(home, environ, namespaces)
        finally:
            shutil.rmtree(home)

    def buildah(self, *arguments: str) -> str:
        """Its output; `AssertionError` with all that it said if it fails."""
        return self._namespaces.run("buildah", *arguments)

    def podman(self, *arguments: str) -> str:
        """Its output; `AssertionError` with all that it said if it fails."""
        return self._namespaces.run("podman", *arguments)

    def build(self, name: str, context: Path = ROOT, dockerfile: str = "Dockerfile", **arguments: str) -> Image:
        """As a user would, but that arguments name local images, and pip and npm are told what they are told here."""
        volumes = {CERTIFICATES: CERTIFICATES, f"{self.home}/pip.conf": "/etc/pip.conf"}
        volumes[f"{self.home}/npmrc"] = "/usr/local/etc/npmrc"
        self.buildah(
            *("build", "--isolation", "chroot", "--format", "docker", "--quiet", "--tag", name),
            *(f"--volume={here}:{there}:ro" for here, there in volumes.items()),
            *(f"--build-arg={name}={value}" for name, value in arguments.items()),
            *("--file", str(context / dockerfile), str(context)),
        )
        return self.image(name)

    def image(self, name: str) -> Image:
        """One that has been built."""
        config = json.loads(self.buildah("inspect", "--type", "image", name))["Docker"]["config"]
        container = self.buildah("from", "--pull-never", name).strip()
        mounted = self.buildah("mount", container).strip()
        return Image(name, self._namespaces.root / mounted.lstrip("/"), config)

    @contextlib.contextmanager
    def container(self, image: Image, *arguments: str, options: tuple[str, ...] = ()) -> Iterator["Container"]:
        """The image's own entry point, as strict as a cluster: read-only, no capabilities, on the host's network."""
        strict = ("--read-only", "--read-only-tmpfs=false", "--cap-drop=all", "--security-opt=no-new-privileges")
        name = self.podman("run", "--detach", "--network=host", *strict, *options, image.name, *arguments).strip()
        try:
            yield Container(name, self._namespaces)
        finally:
            self.podman("rm", "--force", "--time", "0", name)


class Container:
    """One that runs, or has run."""

    def __init__(self, name: str, namespaces: Namespaces) -> None:
        self._name = name
        self._namespaces = namespaces

    @property
    def process(self) -> Path:
        """The folder in /proc of its first process."""
        return self._namespaces.root / "proc" / self._inspect("{{.State.Pid}}")

    @property
    def has_exited(self) -> bool:
        """Whether it has."""
        return self._inspect("{{.State.Running}}") == "false"

    @property
    def exit_code(self) -> int:
        """Once it has exited."""
        assert self.has_exited
        return int(self._inspect("{{.State.ExitCode}}"))

    @property
    def output(self) -> str:
        """What it has written so far."""
        return self._namespaces.run("sh", "-c", f"podman logs {self._name} 2>&1")

    def is_healthy(self) -> bool:
        """What the image's own check says."""
        try:
            self._namespaces.run("podman", "healthcheck", "run", self._name)
        except AssertionError:
            return False
        return True

    def stop(self, patience: int = 25) -> None:
        """The image's stop signal; SIGKILL after `patience` seconds. Returns when it has exited."""
        self._namespaces.run("podman", "stop", "--time", str(patience), self._name)

    def _inspect(self, what: str) -> str:
        return self._namespaces.run("podman", "inspect", "--format", what, self._name).strip()


def base_image(engine: Engine) -> Image:
    """Debian with Python and pip, called as in python:3-slim (and nginx, for the app); kept for the next run."""
    archive = CACHE / f"{DEBIAN}.tar"
    if not archive.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        packages = "ca-certificates,libstdc++6,nginx-light,python-is-python3,python3"
        without = [f"--dpkgopt=path-exclude=/usr/share/{folder}/*" for folder in ("doc", "locale", "man")]
        unfinished = archive.with_name("unfinished.tar")
        output("mmdebstrap", "--quiet", "--variant=apt", f"--include={packages}", *without, DEBIAN, str(unfinished))
        unfinished.rename(archive)
    shutil.copytree(Path(pip.__file__).parent, CACHE / "pip", dirs_exist_ok=True)
    (CACHE / "Dockerfile").write_text(BASE)
    return engine.build("localhost/python", CACHE)


def _settings(home: Path) -> dict[str, str]:
    """Write what the tools read; returns their environment."""
    driver = "overlay" if "\toverlay\n" in Path("/proc/filesystems").read_text() else "vfs"  # vfs copies whole images
    (home / "storage.conf").write_text(STORAGE.format(home=home, driver=driver))
    (home / "containers.conf").write_text(CONTAINERS.format(home=home))
    (home / "pip.conf").write_text(_pip_settings())
    (home / "npmrc").write_text(f"cafile={CERTIFICATES}\naudit=false\nfund=false\n")
    return {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "CONTAINERS_CONF": str(home / "containers.conf"),
        "CONTAINERS_STORAGE_CONF": str(home / "storage.conf"),
    }


def _pip_settings() -> str:
    """How pip reaches its index from this machine."""
    lines = output(sys.executable, "-m", "pip", "config", "list").splitlines()
    settings = {name.rpartition(".")[2]: value.strip("'") for name, _, value in (line.partition("=") for line in lines)}
    chosen = {"cert": CERTIFICATES} | {name: settings[name] for name in PIP_SETTINGS if name in settings}
    return "[global]\n" + "".join(f"{name} = {value}\n" for name, value in chosen.items())
