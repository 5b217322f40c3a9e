"""This machine as the API shows it: its GPUs, images and tasks. Reads, never changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nexapod.daemon.gpus import GpuState
from nexapod.daemon.image_shelf import Shelved
from nexapod.daemon.tasks import RunningTask


def gpus_view(states: Sequence[GpuState]) -> list[dict[str, Any]]:
    """This machine's GPUs, for its own user: what peers are not told is here too."""
    return [
        {
            "index": state.reading.index,
            "uuid": state.reading.uuid,
            "model": state.reading.model,
            "capability": state.reading.capability,
            "driver": state.reading.driver,
            "cuda": state.reading.cuda,
            "memory": state.reading.memory_bytes,
            "memory_used": state.reading.memory_used_bytes,
            "utilisation_percent": state.reading.utilisation_percent,
            "temperature_c": state.reading.temperature_c,
            "power_w": state.reading.power_w,
            "power_limit_w": state.reading.power_limit_w,
            "mig": state.reading.mig,
            "compute_processes": state.reading.compute_processes,
            "leased_by": state.leased_by,
            "withheld": state.withheld,
        }
        for state in states
    ]


def image_view(image: Shelved) -> dict[str, Any]:
    """A container image that was added here."""
    return {
        "image": image.image,
        "names": list(image.names),
        "platform": image.platform,
        "arch": image.arch,
        "size": image.size,
        "blobs": [str(ref) for ref in image.blobs],
        "added": image.added,
    }


def local_task_view(task: RunningTask, submitter: str, now: float) -> dict[str, Any]:
    """A task on this machine. `submitter`: of its job, empty when not known; `now`: trio's clock."""
    effect, report = task.effect, task.report
    return {
        "job_id": effect.task.job.hex(),
        "index": effect.task.index,
        "name": effect.spec.name,
        "submitter": submitter,
        "executor": effect.spec.run.executor,
        "stage": task.stage,
        "frozen": task.frozen,
        "progress": report.progress,
        "age_s": now - task.began,
        "cpu_ms": report.usage.cpu_ms,
        "peak_memory": report.usage.peak_memory,
        "gpu_ms": report.usage.gpu_ms,
        "gpus": list(task.gpus),
        "printed": report.printed,
        "log": report.log,
    }
