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
        "kubernetes": found("examples/kubernetes/deployment.yaml", r"image: \S+/chat-relay:(\S+)"),
        **{
            f"{file.parent.name}": versions_of_package(f"{file.parent}")
            for file in ROOT.glob("examples/*/package.json")
        },
    }
    assert {path: version for path, version in places.items() if version != {PROJECT["version"]}} == {}
    assert len(places) == 9


def test_the_licence_and_the_description_are_those_of_the_image() -> None:
    assert found("Dockerfile", r'image\.licenses="([^"]*)"') == {PROJECT["license"]}
    assert found("Dockerfile", r'image\.description="([^"]*)"') == {PROJECT["description"]}
    assert found("Dockerfile", r'image\.title="([^"]*)"') == {PROJECT["name"]}


def test_the_oldest_python_is_that_of_pyproject_toml_wherever_it_stands() -> None:
    places = {
        "pyproject.toml": found("pyproject.toml", r'^python_version = "(.*)"'),
        "Makefile": found("Makefile", r"--python-version (\S+)"),
        "README.md": found("README.md", r"Python (\S+) or newer"),
        "devcontainer": found(".devcontainer/devcontainer.json", r"devcontainers/python:([^\"]+)"),
    }
    oldest = PROJECT["requires-python"].removeprefix(">=")
    assert {path: version for path, version in places.items() if version != {oldest}} == {}
