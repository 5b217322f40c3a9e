"""What the loopback tests share: the example's weights, and the logs of the daemons when a test fails."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from typing import Any

import pytest
from harness import EXAMPLE, Cluster, example_module

import nexapod.mesh.library  # noqa: F401  (before any test imports libp2p: it stands in for fastecdsa)


@pytest.fixture(scope="session")
def weights() -> bytes:
    """weights.bin of the example; made from the published package, so it needs PyPI the first time."""
    made = EXAMPLE / "weights.bin"
    if made.is_file():
        return made.read_bytes()
    module = example_module("weights")
    try:
        data: bytes = module.weights()
    except module.WeightsError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"the example's weights cannot be fetched: {error}")
    return data


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A bootstrap and four workers with one slot each, for all tests of a module."""
    with Cluster() as made:
        made.begin(workers=4)
        yield made


@pytest.fixture
def mesh(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """The module's cluster, whole again whatever the test before did to it; its logs are shown when the test fails."""
    try:
        cluster.heal()
    except BaseException:
        cluster.show_logs()
        raise
    yield cluster
    if getattr(request.node, "failed", False):
        cluster.show_logs()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Generator[None, Any, Any]:
    report = yield
    if call.when == "call" and report.failed:
        item.failed = True  # type: ignore[attr-defined]
    return report
