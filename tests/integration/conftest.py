"""Fixtures of the integration tests: a registry with images, a daemon, and a check for leaks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.harness import Daemon
from tests.integration.image_builder import write_layout
from tests.integration.leaks import Watch
from tests.integration.registry import Registry


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry on loopback, for the whole session."""
    registry = Registry(tmp_path_factory.mktemp("registry")).start()
    yield registry
    registry.stop()


@pytest.fixture(scope="session")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An OCI layout of the image the tests use: see image_builder."""
    return write_layout(tmp_path_factory.mktemp("image") / "layout")


@pytest.fixture(scope="session")
def image(registry: Registry, layout: Path) -> str:
    """The full name of that image in the registry."""
    return registry.push(layout, "test/image:1")


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    """A daemon that runs; after the test it must have left nothing, running and stopped."""
    daemon = Daemon()
    try:
        watch = Watch(daemon.start())
        yield daemon
        if daemon.process is None or daemon.process.poll() is not None:
            daemon.start()
        daemon.delete_containers()
        watch.check()
        assert daemon.stop() == 0
        watch.check()
    finally:
        daemon.destroy()


@pytest.fixture
def pulled(daemon: Daemon, image: str) -> str:
    """The image, pulled already by the daemon."""
    daemon.call("images.pull", ref=image)
    return image
