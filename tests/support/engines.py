"""The engine that a test runs on: each service and each store has conversations of its own there."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import pytest

ENGINES = ("memory", "sqlite", "valkey")

on_each_engine = pytest.mark.engines(*ENGINES)
"""The mark of a test, or of a file, whose outcome an engine decides. Without it a test runs on `memory` alone."""

_places: list[tuple[str, str]] = [("memory", "")]  # engines, and what their new URLs look like; the innermost is last


def engine_name() -> str:
    """The engine of new services and stores."""
    return _places[-1][0]


def on_dicts(many: int, few: int) -> int:
    """How much of something: many where conversations are in dicts, few where each of them takes longer."""
    return many if engine_name() == "memory" else few


def new_store_url() -> str:
    """A `STORE_URL` that nobody else has."""
    return _places[-1][1].format(uuid4())


@contextmanager
def engine(name: str, server_url: str = "") -> Iterator[None]:
    """Give new services and stores this engine; `valkey` is that of the server."""
    with tempfile.TemporaryDirectory() as folder:
        urls = {"memory": "", "sqlite": f"sqlite:///{folder}/{{}}.db", "valkey": f"{server_url}?prefix={{}}"}
        _places.append((name, urls[name]))
        try:
            yield
        finally:
            _places.pop()
