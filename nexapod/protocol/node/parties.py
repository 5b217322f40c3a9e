"""Which peers have to do with which jobs that this node runs machines for.

So that what happens to a link concerns the machines of a few jobs, however many there are. Members of a panel and
submitters are parties for as long as the job is open; whoever else speaks about a job is one while its link lasts.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import TypeVar

from nexapod.protocol.primitives import JobId, PeerId

Key = TypeVar("Key")
Value = TypeVar("Value")


class Parties:
    """Two indexes: by the job's word, and by what was said on a link."""

    def __init__(self) -> None:
        self._named: dict[JobId, tuple[PeerId, ...]] = {}
        self._named_in: dict[PeerId, dict[JobId, None]] = {}
        self._spoke_of: dict[PeerId, dict[JobId, None]] = {}
        self._spoken_by: dict[JobId, dict[PeerId, None]] = {}

    def name(self, job: JobId, peers: Iterable[PeerId]) -> None:
        """Those whom the job names now."""
        self._unname(job)
        self._named[job] = tuple(dict.fromkeys(peers))
        for peer in self._named[job]:
            self._named_in.setdefault(peer, {})[job] = None

    def spoke(self, peer: PeerId, job: JobId) -> None:
        """A peer said something about a job that machines here have taken."""
        if job in self._named:
            self._spoke_of.setdefault(peer, {})[job] = None
            self._spoken_by.setdefault(job, {})[peer] = None

    def forget_job(self, job: JobId) -> None:
        self._unname(job)
        for peer in self._spoken_by.pop(job, ()):
            _remove(self._spoke_of, peer, job)

    def forget_link(self, peer: PeerId) -> None:
        """Its link is gone: who was no more than a voice is nobody's party."""
        for job in self._spoke_of.pop(peer, ()):
            _remove(self._spoken_by, job, peer)

    def jobs_of(self, peer: PeerId) -> list[JobId]:
        """In a fixed order."""
        return sorted(dict.fromkeys(chain(self._named_in.get(peer, ()), self._spoke_of.get(peer, ()))))

    def is_party(self, peer: PeerId) -> bool:
        """Whether any job here names it, or it has spoken about one."""
        return peer in self._named_in or peer in self._spoke_of

    def _unname(self, job: JobId) -> None:
        for peer in self._named.pop(job, ()):
            _remove(self._named_in, peer, job)


def _remove(index: dict[Key, dict[Value, None]], key: Key, value: Value) -> None:
    values = index.get(key)
    if values is None:
        return
    values.pop(value, None)
    if not values:
        del index[key]
