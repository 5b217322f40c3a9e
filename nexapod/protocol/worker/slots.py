"""How much more work a machine has room for: pure arithmetic over its profile and over what it holds.

Two bounds meet. *At once* no more runs than there are slots, cores, memory and GPUs for (`room_for`). *Ahead* each slot
may have AHEAD_MS of work waiting, so that it need not stand still for a round trip (`room_ms`): of short tasks many, of
one that takes an hour none until it is about to end.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from nexapod.protocol.primitives import JobId, Millis, PeerId
from nexapod.protocol.rules.matching import fitting_gpus
from nexapod.protocol.types import JobSpec, Profile

AHEAD_MS: Final = 1_500
"""Work that a slot has waiting, when tasks are short: several round trips across the world."""
PLENTY: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Load:
    """A task that runs here or is to: `since` it runs, or None."""

    job: JobId
    submitter: PeerId
    expected_ms: Millis
    """What the job's tasks take here; 0: not known."""
    since: Millis | None


def load_ms(load: Load, now: Millis) -> Millis:
    """How much of its slot's next AHEAD_MS a task takes. One that has outrun what was expected may well go on as long
    again. A short one takes all of its time until it ends, so that the next is asked for when it has ended: then a
    claim that stands asks for it."""
    if not load.expected_ms:
        return AHEAD_MS
    elapsed = 0 if load.since is None else now - load.since
    if load.expected_ms < AHEAD_MS and elapsed < 2 * load.expected_ms:
        return load.expected_ms
    left = load.expected_ms - elapsed if elapsed < load.expected_ms else elapsed
    return max(1, min(AHEAD_MS, left))


def task_ms(expected_ms: Millis) -> Millis:
    """What one more task of a job would take of the room."""
    return min(AHEAD_MS, expected_ms) if expected_ms else AHEAD_MS


def room_ms(profile: Profile, loads: Iterable[Load], now: Millis) -> Millis:
    """Slot time of the next AHEAD_MS that nothing is planned for; negative when too much is held."""
    return profile.slots * AHEAD_MS - sum(load_ms(load, now) for load in loads)


def opens_at(loads: Iterable[Load], now: Millis) -> Millis | None:
    """When, by what is expected, there is room behind the next running task."""
    ends = [
        load.since + load.expected_ms - AHEAD_MS + 1 for load in loads if load.since is not None and load.expected_ms
    ]
    return min((end for end in ends if end > now), default=None)


def is_surplus(expected_ms: Millis, others_room_ms: Millis, slots: int) -> bool:
    """Whether a task just granted is better given back at once: beside the others there is no room for it, and it is
    long, or even of short ones there is twice what was asked for."""
    if others_room_ms > 0:
        return False
    return task_ms(expected_ms) >= AHEAD_MS or others_room_ms <= -slots * AHEAD_MS


def room_for(profile: Profile, spec: JobSpec, taken: Sequence[JobSpec]) -> int:
    """How many tasks of `spec` fit beside one task of each of `taken`: 0 when none does.

    The first task of all fits whatever its share: `matching.satisfies` has looked at it alone.
    """
    # An owner who gives more slots than there are cores has chosen to share the cores out more thinly.
    cpus = max(profile.cpus, profile.slots) * 1000 - sum(other.limits.cpus_milli for other in taken)
    memory = profile.memory - sum(other.limits.memory for other in taken)
    room = min(_times(cpus, spec.limits.cpus_milli), _times(memory, spec.limits.memory))
    if spec.limits.gpus:
        gpus = fitting_gpus(profile, spec) - sum(other.limits.gpus for other in taken)
        room = min(room, _times(gpus, spec.limits.gpus))
    return max(room, 0 if taken else 1)


def _times(have: int, need: int) -> int:
    return max(0, have) // need if need else PLENTY
