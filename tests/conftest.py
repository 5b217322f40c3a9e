"""The one option that all tiers share: what must be there, instead of being skipped when it is not."""

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
