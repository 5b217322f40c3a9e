"""One engine and one image for all tests here, and for each a sandbox that must leave nothing behind."""

from __future__ import annotations

import glob
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from containers.engine_kit import NoEngine, connect, import_image
from containers.sandbox import HOME, Sandbox

from nexapod.executor.docker.sandbox import DockerExecutor


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory, missing: Callable[[str, str], None]) -> Iterator[tuple[Any, str]]:
    try:
        client = connect()
        image = import_image(client, tmp_path_factory.mktemp("image"))
    except NoEngine as error:
        missing("docker", str(error))
    yield client, image
    client.remove_image(image, force=True)
    client.close()


@pytest.fixture
async def sandbox(engine: tuple[Any, str], tmp_path: Path) -> AsyncIterator[Sandbox]:
    client, image = engine
    volumes = _volumes(client)
    executor = DockerExecutor(home=HOME, scratch=tmp_path / "scratch")
    yield Sandbox(executor, tmp_path, image, client)
    await executor.aclose()
    assert client.containers(all=True, filters={"label": f"org.nexapod.home={HOME}"}) == []
    assert list((tmp_path / "scratch").iterdir()) == []
    assert _volumes(client) <= volumes
    assert glob.glob(f"/sys/fs/cgroup/**/nexapod-{HOME}*", recursive=True) == []


def _volumes(client: Any) -> set[str]:
    return {volume["Name"] for volume in client.volumes()["Volumes"] or ()}
