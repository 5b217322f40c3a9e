"""Does a peer satisfy a job? Each answer says why (docs/protocol-3.md, 5).

What an owner's policy accepts is version 2's rule, unchanged.
"""

from __future__ import annotations

from nexapod.protocol.image_names import registry_host
from nexapod.protocol.matching import YES, Decision, Policy, accepts, capability
from nexapod.protocol.v3.types import JobSpec, Profile

__all__ = ["YES", "Decision", "Policy", "accepts", "capability", "fitting_gpus", "satisfies"]


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
