"""The whole examination: every look in its order, in a folder of its own, within a bound.

Needs no daemon and no lock, and does not disturb a daemon that runs: all it makes lies in a folder named after this
process, which is removed at the end, or by the next examination when this one was killed.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import time
from typing import Final

import structlog
import trio

from nexapod.config import Config
from nexapod.daemon.doctor import machine, network
from nexapod.daemon.doctor.check import Check, Desk, Finding, Look, take
from nexapod.daemon.doctor.network import Running
from nexapod.daemon.doctor.sandboxes import look_at_docker, look_at_wasm
from nexapod.executor.removal import remove_tree
from nexapod.log import setup_logging

log = structlog.get_logger()

TOTAL_S: Final = 300.0
EXECUTORS: Final = ("wasm", "docker")
_PREFIX: Final = "doctor-"


@dataclass(frozen=True, slots=True)
class Wishes:
    """What to examine. `require`: executors whose absence is a failure."""

    executors: Sequence[str] = EXECUTORS
    quick: bool = False
    require: frozenset[str] = frozenset()


def run(config: Config, wishes: Wishes, running: Running | None, on_begin: Callable[[str, str], None]) -> list[Check]:
    """Examine this machine; the rows, in their order. `running`: what the daemon of this home says, if one runs."""
    setup_logging("error", config.log_format)  # what is wrong is a row; stdout is the rows' alone
    try:
        return trio.run(_examine, config, wishes, running, Desk(on_begin))
    except BaseExceptionGroup as group:
        if group.subgroup(KeyboardInterrupt):
            raise KeyboardInterrupt from None  # all is cleared away: no traceback says more than the user knows
        raise


def all_well(checks: Sequence[Check]) -> bool:
    return all(check.state != "failed" for check in checks)


async def _examine(config: Config, wishes: Wishes, running: Running | None, desk: Desk) -> list[Check]:
    with trio.move_on_after(TOTAL_S) as deadline:
        for look in _looks(config, wishes, running):
            await take(desk, look)
        desk.begin("network", "bootstrap")
        desk.end(await network.bootstrap(config.bootstrap, running))
        await _look_at_sandboxes(config, wishes, desk)
    if deadline.cancelled_caught:
        desk.begin("machine", "examination")
        desk.end(Finding("failed", f"not over after {TOTAL_S:.0f} s", "This machine is too busy: try again later."))
    return desk.rows


def _looks(config: Config, wishes: Wishes, running: Running | None) -> list[Look]:
    home = config.paths
    offsets = machine.peer_offsets_s(running.peers, time()) if running else []
    looks = [
        Look("hardware", "machine", partial(machine.processor, home)),
        Look("software", "machine", machine.software),
        Look("GPU", "machine", machine.graphics),
        Look("clock", "machine", partial(machine.clock, (home.database, home.identity, Path(__file__)), offsets)),
        Look("home", "machine", partial(machine.home_folder, home)),
        Look("keys", "machine", partial(machine.keys, home)),
    ]
    if not wishes.quick:
        looks.append(Look("disk speed", "machine", lambda: machine.disk_speed(_base(home.root))))
    listen = network.distinct_ports(running.listen) if running else config.listen
    looks += [Look("port", "network", partial(network.port, text, running)) for text in listen]
    looks.append(Look("API", "network", partial(network.api_port, config, running)))
    looks.append(Look("reachable", "network", partial(network.reach, config.listen, running)))
    return looks


async def _look_at_sandboxes(config: Config, wishes: Wishes, desk: Desk) -> None:
    for name in wishes.executors:
        try:
            with _workplace(config.home) as place:
                if name == "wasm":
                    await look_at_wasm(desk, place, quick=wishes.quick)
                else:
                    await look_at_docker(desk, place, quick=wishes.quick, required=name in wishes.require)
        except OSError as error:
            desk.begin(name, "folder")
            desk.end(Finding("failed", f"no folder to try tasks in: {error}", "Free some space on its disk."))
        except Exception as error:
            # An SDK or a library may raise anything; the rows that are there must be seen all the same.
            log.exception("examination_failed", executor=name)
            said = f"the examination stumbled: {type(error).__name__}: {error}"
            desk.begin(name, "promises")
            desk.end(Finding("failed", said, "Please report it, with what the log says."))


@contextmanager
def _workplace(home: Path) -> Iterator[Path]:
    """A folder of ours alone, where tasks would run: on the home's disk, or where temporary files lie."""
    base = _base(home)
    _sweep(base)
    place = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=base))
    try:
        yield place
    finally:
        remove_tree(place)


def _base(home: Path) -> Path:
    try:
        with tempfile.TemporaryFile(dir=home):
            return home
    except OSError:
        return Path(tempfile.gettempdir())  # not made yet, or read-only: the row about the home says so


def _sweep(base: Path) -> None:
    """Remove the folders of examinations that were killed."""
    for path in base.glob(f"{_PREFIX}[0-9]*-*"):
        pid = path.name.removeprefix(_PREFIX).partition("-")[0]
        if pid.isdigit() and not os.path.exists(f"/proc/{pid}") and path.stat().st_uid == os.geteuid():
            remove_tree(path)
