"""How a command speaks: results to stdout, progress and notes to stderr; JSON when asked. Loads rich only to draw."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from nexapod.cli.safe import safe

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console


def print_json(value: object) -> None:
    """One JSON document on one or more lines, in ASCII: nothing in it can drive a terminal."""
    say(json.dumps(value, ensure_ascii=True, indent=2 if sys.stdout.isatty() else None))


def say(text: str = "") -> None:
    """A line of the answer. Text from elsewhere must have gone through safe()."""
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, "the output") from None


def note(text: str) -> None:
    """A line beside the answer."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False, soft_wrap=False)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, right: Sequence[int] = ()) -> None:
    """A table for people: in a terminal fitted to its width, else one tab-separated line a row, nothing cut."""
    plain = [[safe(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        for row in [[c.upper() for c in columns], *plain]:
            say("\t".join(row))
        return
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        # The last column takes what room is left, on several lines if need be; what identifies is never cut.
        last = number == len(columns) - 1
        drawn.add_column(column, justify="right" if number in right else "left", overflow="fold", no_wrap=not last)
    for row in plain:
        drawn.add_row(*[Text(cell) for cell in row])
    _console().print(drawn)


def facts(pairs: Iterable[tuple[str, object]]) -> None:
    """Names and values, one a line, aligned."""
    listed = [(name, safe(value)) for name, value in pairs]
    width = max(len(name) for name, _ in listed)
    for name, value in listed:
        say(f"{name:<{width}}  {value}")


@contextmanager
def byte_progress(what: str, total: int, *, quiet: bool) -> Iterator[Callable[[int], None]]:
    """A bar on stderr while bytes move, when someone looks. Yields what is told of each piece."""
    if quiet or not sys.stderr.isatty() or total < 1 << 20:
        yield lambda count: None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task(escape(safe(what)), total=total)
        yield lambda count: progress.advance(bar, count)


@contextmanager
def waiting(what: str, *, quiet: bool) -> Iterator[Callable[[str], None]]:
    """A line on stderr that moves while nothing else does, when someone looks. Yields what changes its text."""
    if quiet or not sys.stderr.isatty():
        yield lambda text: None
        return
    from rich.console import Console
    from rich.markup import escape

    with Console(stderr=True).status(escape(safe(what))) as status:
        yield lambda text: status.update(escape(safe(text)))


def short(identity: Any) -> str:
    """The beginning of a job id, or the end of a peer id: what differs."""
    text = safe(identity)
    return f"...{text[-8:]}" if text.startswith("12D3KooW") else text[:12]
