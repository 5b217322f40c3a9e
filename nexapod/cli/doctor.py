"""`nexapod doctor`: try what this machine promises, look at what a daemon needs, and show it. Exit 1 when any fails.

Asks the daemon of this home what it says, when one runs. The examination itself is nexapod.daemon.doctor's.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from nexapod.cli.console import print_json, say, table
from nexapod.cli.errors import FAILED, OK, CliError
from nexapod.cli.safe import safe

if TYPE_CHECKING:
    from nexapod.config import Config
    from nexapod.daemon.doctor.check import Check
    from nexapod.daemon.doctor.network import Running

EXECUTORS: Final = ("wasm", "docker")
LINE_WIDTH: Final = 60
STATES: Final = ("ok", "warning", "failed", "skipped")


def doctor(
    home: Annotated[Path | None, typer.Option(help="The home folder to examine.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    executor: Annotated[
        list[str] | None, typer.Option(help="Try the promises of this sandbox only: wasm or docker.")
    ] = None,
    require: Annotated[
        list[str] | None, typer.Option(help="Fail when this sandbox is not there: wasm or docker.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Leave out what takes time: bombs, limits, the disk.")] = False,
) -> None:
    """Try every promise of the sandboxes on this machine, and look at keys, ports, clock, disk, engine and GPU."""
    for name in (*(executor or ()), *(require or ())):
        if name not in EXECUTORS:
            raise typer.BadParameter(f"{name!r} is no sandbox: {' or '.join(EXECUTORS)}")
    from nexapod.cli.starting import configured
    from nexapod.config import Flags

    config = configured(Flags(home=home))
    from nexapod.daemon.doctor.examine import Wishes, all_well, run

    wanted = tuple(name for name in EXECUTORS if not executor or name in (*executor, *(require or ())))
    wishes = Wishes(wanted, quick, frozenset(require or ()))
    with _Progress() as progress:
        checks = run(config, wishes, _running(config), progress.begin)
    if as_json:
        print_json({"ok": all_well(checks), "checks": [_as_dict(check) for check in checks]})
    else:
        _show(checks)
    raise typer.Exit(OK if all_well(checks) else FAILED)


def _running(config: Config) -> Running | None:
    """What the daemon of this home says of itself and of others; None when none answers."""
    from nexapod.cli.client import Client
    from nexapod.daemon.doctor.network import Running

    client = Client(config.paths.api_socket)
    try:
        status: dict[str, Any] = client.get("/v1/status")
        return Running(status["pid"], tuple(status["listen"]), status["connected_peers"], client.get("/v1/peers"))
    except CliError:
        return None  # not running, or not able to say: its socket is looked at like any other


class _Progress:
    """One line on stderr that says what is tried just now: rewritten in a terminal, else one a group."""

    def __init__(self) -> None:
        self._drawn = sys.stderr.isatty()
        self._group = ""

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._write("\r\x1b[K" if self._drawn and self._group else "")

    def begin(self, group: str, name: str) -> None:
        if self._drawn:
            self._write(f"\r\x1b[K{safe(group)}: {safe(name)} ..."[:LINE_WIDTH])
        elif group != self._group:
            self._write(f"looking at {safe(group)}\n")
        self._group = group

    @staticmethod
    def _write(text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()


def _as_dict(check: Check) -> dict[str, object]:
    return {
        "name": check.name,
        "group": check.group,
        "state": check.state,
        "happened": check.happened,
        "remedy": check.remedy,
        "seconds": check.seconds,
    }


def _show(checks: Sequence[Check]) -> None:
    table(
        ("group", "check", "state", "what happened"),
        [(check.group, check.name, check.state, check.happened) for check in checks],
    )
    remedies = [check for check in checks if check.remedy]
    if remedies:
        say()
        say("What to do:")
        for check in remedies:
            say(f"  {safe(check.group)} {safe(check.name)} ({check.state}): {safe(check.remedy)}")
    count = {state: sum(check.state == state for check in checks) for state in STATES}
    say()
    say(", ".join(f"{number} {state}" for state, number in count.items() if number))
