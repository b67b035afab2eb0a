"""What the project's files say of the project is the same in all of them."""

import json
import re
import tomllib
from typing import Any

from settings import VERSION
from tests.support.process import ROOT

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def found(path: str, pattern: str) -> set[str]:
    """What a pattern's group matches in a file."""
    return set(re.findall(pattern, (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE))


def versions_of_package(path: str) -> set[str]:
    """The versions that a folder of npm gives itself, in its package.json and in its lock."""
    package, lock = (json.loads((ROOT / path / name).read_text()) for name in ("package.json", "package-lock.json"))
    return {package["version"], lock["version"], lock["packages"][""]["version"]}


def test_the_version_is_that_of_pyproject_toml_wherever_it_stands() -> None:
    places = {
        "settings.py": {VERSION},
        "openapi.json": found("openapi.json", r'"version": "([^"]*)"'),
        "Dockerfile": found("Dockerfile", r'image\.version="([^"]*)"'),
        "CHANGELOG.md": {re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0]},
        "deployment.yaml": found("examples/kubernetes/deployment.yaml", r"image: \S+/chat-relay:(\S+)"),
        "replicas.yaml": found("examples/kubernetes/replicas.yaml", r"image: \S+/chat-relay-valkey:(\S+)"),
        **{
            f"{file.parent.name}": versions_of_package(f"{file.parent}")
            for file in ROOT.glob("examples/*/package.json")
        },
    }
    assert {path: version for path, version in places.items() if version != {PROJECT["version"]}} == {}
    assert len(places) == 10


def test_the_licence_and_the_description_are_those_of_the_image() -> None:
    assert found("Dockerfile", r'image\.licenses="([^"]*)"') == {PROJECT["license"]}
    assert found("Dockerfile", r'image\.description="([^"]*)"') == {PROJECT["description"]}
    assert found("Dockerfile", r'image\.title="([^"]*)"') == {PROJECT["name"]}


def test_the_oldest_python_is_that_of_pyproject_toml_wherever_it_stands() -> None:
    places = {
        "pyproject.toml": found("pyproject.toml", r'^python_version = "(.*)"'),
        "Makefile": found("Makefile", r"--python-version (\S+)"),
        "README.md": found("README.md", r"Python (\S+) or newer"),
        "CONTRIBUTING.md": found("CONTRIBUTING.md", r"Python (\S+) or newer"),
        "ci.yml": found(".github/workflows/ci.yml", r"image: python:(\S+)-bookworm"),
        "devcontainer": found(".devcontainer/devcontainer.json", r"devcontainers/python:([^\"]+)"),
    }
    oldest = PROJECT["requires-python"].removeprefix(">=")
    assert {path: version for path, version in places.items() if version != {oldest}} == {}


def test_the_oldest_node_is_the_same_wherever_it_stands() -> None:
    packages = [
        json.loads((ROOT / folder / "package.json").read_text()) for folder in ("tests/browser", "tests/clients")
    ]
    assert {package["engines"]["node"] for package in packages} == {">=20.19"}
    assert found("CONTRIBUTING.md", r"Node (\S+) or newer") == {"20.19"}
    assert found(".github/workflows/ci.yml", r"node-version: (\S+)") == {"20"}


def test_the_forge_runs_the_script_that_everybody_runs() -> None:
    assert found(".github/workflows/ci.yml", r"- run: (.*)") == {".ci/run"}
    assert (ROOT / ".ci/run").stat().st_mode & 0o111


def test_the_bot_looks_into_every_folder_with_packages_or_images() -> None:
    parts = (ROOT / ".github/dependabot.yml").read_text().split("package-ecosystem: ")[1:]
    named = [(part.split()[0], folder) for part in parts for folder in re.findall(r"(?<=[\s[])/[\w/-]*", part)]
    files = [("pip", "requirements*.txt"), ("npm", "package.json"), ("docker", "Dockerfile")]
    there = {(kind, folder) for kind, name in files for folder in folders_with(name)}
    assert sorted(named) == sorted({*there, ("github-actions", "/")})


def folders_with(name: str) -> set[str]:
    """The folders that have a file of this name, as the bot writes them."""
    files = [file for depth in ("", "*/*/", "*/*/*/") for file in ROOT.glob(f"{depth}{name}")]
    return {
        f"/{file.parent.relative_to(ROOT)}".replace("/.", "/") for file in files if "node_modules" not in file.parts
    }
