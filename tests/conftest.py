"""What all tiers share: options, and which tests are kept apart when several processes run them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NoReturn

import pytest
import structlog
from xdist.scheduler import LoadScopeScheduling

ENGINE = (
    "tests/containers/",
    "tests/contract/test_doctor_cli.py",
    "tests/contract/test_executor_contract.py",
    "tests/contract/test_image_engine_contract.py",
    "tests/loopback/test_daemon_image_given.py",
    "tests/loopback/test_daemon_life.py::test_a_daemon_killed_during_ten_tasks",
)
"""Their tests import, count and remove images and containers of one engine: never two of them at once."""
FREE = ("tests/loopback/", "tests/protocol/test_sim_")
"""Their tests take long and share nothing, unless they share their module's daemons."""
CLUSTERS = tuple(f"tests/loopback/test_daemon_{name}.py" for name in ("api", "cluster", "hostile", "kills"))


class Together(LoadScopeScheduling):
    """Which tests one process runs one after the other: a file's, those of the engine; some are free.

    By name and not by a mark of pytest-xdist's `loadgroup`, which pytest 9.2 does not carry over to the scheduler.
    """

    def _split_scope(self, nodeid: str) -> str:
        return together(nodeid)


def together(nodeid: str) -> str:
    if nodeid.startswith(ENGINE):
        return "engine"
    if nodeid.startswith(FREE) and not nodeid.startswith(CLUSTERS):
        return nodeid
    return nodeid.partition("::")[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> Together:
    return Together(config, log)


def pytest_itemcollected(item: pytest.Item) -> None:
    """The scheduler goes by names of files: one that it does not know to share something is an error."""
    fixtures = getattr(item, "fixturenames", ())
    scope = together(item.nodeid)
    if not {"engine", "missing"}.isdisjoint(fixtures) and scope != "engine":
        raise pytest.UsageError(f"{item.nodeid} uses an engine: name its file in ENGINE in {__file__}")
    if "cluster" in fixtures and scope == item.nodeid:
        raise pytest.UsageError(f"{item.nodeid} shares its module's daemons: name its file in CLUSTERS in {__file__}")


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
