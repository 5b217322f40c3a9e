"""The options that all tiers share: what must be there instead of being skipped, and whether all of a kind are run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NoReturn

import pytest
import structlog


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require",
        default="",
        metavar="NAME,...",
        help="components (docker, ...) whose absence fails the tests that need them, instead of skipping them",
    )
    parser.addoption(
        "--long",
        action="store_true",
        help="run every one of those tests, too, of which there are many of a kind (marked `long`), as CI does",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--long"):
        return
    skipped = pytest.mark.skip(reason="one of many of its kind: make test PYTEST_FLAGS=--long runs all")
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker(skipped)


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """What a test configures (a daemon's or a command's start does) is not the next one's."""
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def missing(request: pytest.FixtureRequest) -> Callable[[str, str], NoReturn]:
    """missing("docker", reason): skip the test that asks, or fail it when --require names the component."""
    required = {name.strip() for name in request.config.getoption("--require").split(",")}

    def skip_or_fail(component: str, reason: str) -> NoReturn:
        if component in required:
            pytest.fail(f"--require={component}: {reason}")
        pytest.skip(f"{component}: {reason}")

    return skip_or_fail
