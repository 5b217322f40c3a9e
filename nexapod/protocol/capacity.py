"""How many more tasks of a job fit a machine beside those that it has: cores, memory and GPUs, added up.

`slots` says how many tasks run at once; this says that together they do not need more than there is. Pure arithmetic
over what a profile and the jobs say.
"""

from __future__ import annotations

from collections.abc import Sequence

from nexapod.protocol.matching import fitting_gpus
from nexapod.protocol.types import JobSpec, Profile

PLENTY = 1 << 16


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
