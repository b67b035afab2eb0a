"""These tests need root, Debian's container tools and some minutes: `make test-container`, not `make test`."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.container.engine import Engine, Image, base_image


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave them out unless they are named."""
    return None if any("container" in argument for argument in config.args) else True


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """buildah and podman, with storage of their own."""
    with Engine.running() as engine:
        yield engine


@pytest.fixture(scope="session")
def base(engine: Engine) -> Image:
    """What python:3.13-slim is for users: Debian with Python and pip, and nothing else."""
    return base_image(engine)


@pytest.fixture(scope="session")
def image(engine: Engine, base: Image) -> Image:
    """The relay's image, built from the Dockerfile."""
    return engine.build("localhost/chat-relay", PYTHON_IMAGE=base.name)
