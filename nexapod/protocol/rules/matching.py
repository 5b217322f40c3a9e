"""Does a peer satisfy a job, and does its owner's policy accept it? Each answer says why (docs/protocol.md, 5)."""

from __future__ import annotations

from dataclasses import dataclass

from nexapod.protocol.image_names import registry_host
from nexapod.protocol.primitives import PeerId
from nexapod.protocol.types import JobSpec, Profile


@dataclass(frozen=True, slots=True)
class Decision:
    """`reason` names the rule that decided, and reads well either way."""

    ok: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Policy:
    """What a volunteer lets its machine do."""

    work: bool = True
    submitters: frozenset[PeerId] | None = None
    """Whose jobs are accepted; None = anybody's."""


def capability(text: str) -> tuple[int, ...]:
    """A compute capability in an order that can be compared; the empty text is the least."""
    return tuple(int(part) for part in text.split(".") if part.isdigit())


YES = Decision(True, "it satisfies the job")


def satisfies(profile: Profile, job: JobSpec) -> Decision:
    """Whether a peer could run a task of this job, by what its profile says."""
    for decide in (_network, _works, _executor, _arch, _memory, _cpus, _gpus, _disk):
        reason = decide(profile, job)
        if reason:
            return Decision(False, reason)
    return YES


def fitting_gpus(profile: Profile, job: JobSpec) -> int:
    """How many of its GPUs have the memory, the model and the capability that the job asks for."""
    return sum(
        1
        for gpu in profile.gpus
        if gpu.memory >= job.limits.gpu_memory
        and job.requires.gpu_model.lower() in gpu.model.lower()
        and capability(gpu.capability) >= capability(job.requires.gpu_capability)
    )


def _network(profile: Profile, job: JobSpec) -> str:
    return "" if profile.network == job.network else f"it belongs to the network {job.network}"


def _works(profile: Profile, job: JobSpec) -> str:
    return "" if profile.slots > 0 else "takes no tasks"


def _executor(profile: Profile, job: JobSpec) -> str:
    run = job.run
    if run.executor not in {e.name for e in profile.executors}:
        return f"has no {run.executor} executor"
    if run.image is None or run.image_blobs or run.image in profile.images:
        return ""
    host = registry_host(run.image)
    if host is None:
        return "does not hold the container image"
    return "" if host in profile.registries else f"does not pull container images from {host}"


def _arch(profile: Profile, job: JobSpec) -> str:
    wanted = job.requires.arch
    return "" if not wanted or profile.arch in wanted else f"its architecture is not {' or '.join(wanted)}"


def _memory(profile: Profile, job: JobSpec) -> str:
    wanted = max(job.limits.memory, job.requires.memory)
    return "" if profile.memory >= wanted else f"has less than {wanted >> 20} MiB of memory"


def _cpus(profile: Profile, job: JobSpec) -> str:
    wanted = -(-job.limits.cpus_milli // 1000)
    return "" if profile.cpus >= wanted else f"has fewer than {wanted} cores"


def _gpus(profile: Profile, job: JobSpec) -> str:
    if fitting_gpus(profile, job) >= job.limits.gpus:
        return ""
    return f"has fewer than {job.limits.gpus} fitting GPUs"


def _disk(profile: Profile, job: JobSpec) -> str:
    # Of a split file a worker fetches its own piece only, and its seats part of the shard's: neither is known here.
    held = [ref for ref in job.blobs if job.split is None or ref != job.split.blob]
    wanted = job.limits.disk + sum(ref.size for ref in held)
    return "" if profile.disk_free >= wanted else f"has less than {wanted >> 20} MiB of free disk"


def accepts(policy: Policy, submitter: PeerId) -> Decision:
    """Whether the owner of this machine lets it work for this submitter."""
    if not policy.work:
        return Decision(False, "this peer does not work (started with --no-work)")
    if policy.submitters is not None and submitter not in policy.submitters:
        return Decision(False, "its submitter is not among those that this peer works for")
    return Decision(True, "the policy accepts it")
