"""The standing claims of one shard: which workers have room (docs/protocol.md, section 5, Claim).

Each stands for BID_TTL_MS from when it came; the newest of a worker counts. Knows no groups and no leases.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace

from nexapod.protocol import limits
from nexapod.protocol.primitives import Millis, PeerId
from nexapod.protocol.wire import messages


@dataclass(frozen=True, slots=True)
class Standing:
    """One worker's claim, as it stands."""

    worker: PeerId
    seq: int
    until: Millis
    room: int
    holding: frozenset[int]
    done: frozenset[int]
    expected_ms: Millis


class Claims:
    """Bounded by CLAIMS_MAX: of too many that which `worth` puts last goes, the newcomer included."""

    def __init__(self, worth: Callable[[PeerId], int]) -> None:
        self._worth = worth
        self._by_worker: OrderedDict[PeerId, Standing] = OrderedDict()
        """The one that ends first, first: all stand equally long."""

    def put(self, worker: PeerId, message: messages.Claim, now: Millis) -> Standing | None:
        """Take a claim in; None: it is older than what stands, or there is no room for it."""
        known = self._by_worker.get(worker)
        if known is not None and message.seq < known.seq:
            return None
        until = now + limits.BID_TTL_MS
        done, holding = frozenset(message.done), frozenset(message.holding)
        claim = Standing(worker, message.seq, until, message.room, holding, done, message.expected_ms)
        self._by_worker[worker] = claim
        self._by_worker.move_to_end(worker)
        if len(self._by_worker) > limits.CLAIMS_MAX:
            del self._by_worker[max(self._by_worker, key=lambda peer: (self._worth(peer), peer))]
        return self._by_worker.get(worker)

    def declined(self, worker: PeerId, tasks: Collection[int]) -> None:
        """It gave back what it was given on this claim: until it claims anew it has less room than it had said."""
        claim = self._by_worker.get(worker)
        if claim is not None:
            unasked = sum(1 for task in tasks if task not in claim.holding)
            self._by_worker[worker] = replace(claim, room=max(0, claim.room - unasked))

    def drop(self, worker: PeerId) -> bool:
        """It is gone. Whether it had claimed anything."""
        return self._by_worker.pop(worker, None) is not None

    def clear(self) -> None:
        self._by_worker.clear()

    def expire(self, now: Millis) -> tuple[PeerId, ...]:
        """Forget those that stand no more, and name their workers."""
        over = []
        for worker, claim in self._by_worker.items():
            if claim.until > now:
                break
            over.append(worker)
        for worker in over:
            del self._by_worker[worker]
        return tuple(over)

    @property
    def next_end(self) -> Millis | None:
        """When the first of them stands no more."""
        return next(iter(self._by_worker.values())).until if self._by_worker else None

    def get(self, worker: PeerId) -> Standing | None:
        return self._by_worker.get(worker)

    def __iter__(self) -> Iterator[Standing]:
        """By worker: an order that all seats share."""
        return iter([self._by_worker[worker] for worker in sorted(self._by_worker)])

    def __len__(self) -> int:
        return len(self._by_worker)
