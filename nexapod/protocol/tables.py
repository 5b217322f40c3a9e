"""How full bounded tables are: what each machine says of its own, and the fullest of many alike."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Sized
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

Machine = TypeVar("Machine")


@dataclass(frozen=True, slots=True)
class TableReport:
    """One table, or the fullest of those of one name."""

    name: str
    size: int
    most: int
    """More would be a bug of this program."""


def fullest(machines: Iterable[Iterable[TableReport]]) -> tuple[TableReport, ...]:
    """Of each name the report that leaves the least room, by name."""
    found: dict[str, TableReport] = {}
    for table in chain.from_iterable(machines):
        known = found.get(table.name)
        if known is None or table.size - table.most > known.size - known.most:
            found[table.name] = table
    return tuple(found[name] for name in sorted(found))


def in_turn(machines: Sequence[Machine], count: int, turn: int) -> Sequence[Machine]:
    """At most so many of them, others with each turn: what grows without bound is found a little later."""
    if len(machines) <= count:
        return machines
    start = turn * count % len(machines)
    return [*machines[start : start + count], *machines[: max(0, start + count - len(machines))]]


def longest(tables: Iterable[Sized]) -> int:
    """The size of the largest; 0 when there is none."""
    return max((len(table) for table in tables), default=0)
