"""What the mesh adds to containers: the same tasks through a local mesh and by hand, in the same run.

    .venv/bin/python benchmarks/containers.py [--tasks 40] [--seconds 1] [--workers 2] [--slots 2] [--rounds 3] [--json]

Needs a container engine and a static busybox (package busybox-static). A task sleeps in a busybox container. By hand
means: create, start, wait, read the log, remove, with the very settings that the daemon uses, as many at once as the
mesh has slots. Through the mesh means: from the submission to the last settled task, one replica a task, so that both
start the same number of containers. The mesh is running before the clock starts, as an engine is. The ways alternate,
so that a slow minute of the machine meets both; what counts is the ratio of their medians. Exit status 1 when it is
over the bar.

An engine starts some five containers a second on two cores, whoever asks. Where that is the limit (many slots, short
tasks), whatever the daemons compute is taken from it, and the ratio is that of CPU time.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

# In the place of this folder, where this very file has the name of a folder of the tests.
sys.path[0] = str(Path(__file__).parents[1] / "tests")

from containers.engine_kit import NoEngine, connect, import_image  # noqa: E402
from loopback.harness import TELL_IMAGES, Cluster, Daemon  # noqa: E402

from nexapod.cli.client import Client  # noqa: E402
from nexapod.executor.contract import TaskRun  # noqa: E402
from nexapod.executor.docker.engine import connect as connect_engine  # noqa: E402
from nexapod.executor.docker.settings import container_settings  # noqa: E402
from nexapod.protocol.types import Limits  # noqa: E402

BAR = 1.10
HOME = "00000000be9c0000"
LIMITS = Limits(memory=64 << 20, output=1 << 20, disk=2 << 20, wall_ms=600_000)
JOB_S = 600.0


class ByHand:
    """The engine, driven as one would drive it without a mesh."""

    def __init__(self, image: str, folder: Path, client: Any) -> None:
        self._client = client
        self._image = image
        self._folder = folder
        engine = connect_engine(None, HOME)
        self._host, self._facts = engine.host(folder, ""), engine.image(image)
        self._owner = engine.facts.owner
        engine.close()

    def run(self, tasks: int, seconds: float, at_once: int) -> float:
        """Seconds for all of them."""
        began = time.monotonic()
        with ThreadPoolExecutor(at_once) as pool:
            statuses = list(pool.map(lambda number: self._one(number, seconds), range(tasks)))
        took = time.monotonic() - began
        if any(statuses):
            raise SystemExit(f"by hand, containers failed: {statuses}")
        return took

    def _one(self, number: int, seconds: float) -> int:
        folder = self._folder / str(number)
        for name in ("input", "output", "checkpoint", "scratch"):
            (folder / name).mkdir(parents=True)
            if self._owner:
                os.chown(folder / name, *self._owner)
        run = TaskRun(
            label=f"{number:x}",
            executor="docker",
            module=None,
            image=self._image,
            command=("sleep", str(seconds)),
            env=(),
            workdir="",
            input=folder / "input",
            output=folder / "output",
            checkpoint=folder / "checkpoint",
            limits=LIMITS,
            seed=bytes(32),
        )
        settings = container_settings(run, self._host, self._facts, home=HOME, scratch=folder / "scratch")
        name = f"nexapod-by-hand-{os.getpid()}-{number}"
        self._client.create_container_from_config(settings, name)
        try:
            self._client.start(name)
            status = int(self._client.wait(name)["StatusCode"])
            self._client.logs(name)
        finally:
            self._client.remove_container(name, v=True, force=True)
        shutil.rmtree(folder)
        return status


def through_the_mesh(submitter: Daemon, image: str, tasks: int, seconds: float) -> float:
    """Seconds from the submission to the settlement."""
    body = {
        "name": "sleep",
        "tasks": tasks,
        "run": {"executor": "docker", "image": image, "command": ["sleep", str(seconds)]},
        "limits": {
            "memory": LIMITS.memory,
            "output": LIMITS.output,
            "disk": LIMITS.disk,
            "wall_ms": LIMITS.wall_ms,
        },
        "validate": {"agree": 1, "max_replicas": 3},
    }
    began = time.monotonic()
    job_id = json.loads(submitter.ask("POST", "/v1/jobs", json.dumps(body).encode()))["job_id"]
    # As `nexapod watch` does it: a look at the whole job twenty times a second would be measured with it.
    events = Client(submitter.home / "api.sock").events(job_id, JOB_S)
    if not any(name == "closed" for name, _ in events):
        raise SystemExit("the events of the job ended before it was settled")
    took = time.monotonic() - began
    if any(len(task["replicas"]) != 1 for task in submitter.job(job_id)["task_list"]):
        raise SystemExit("the mesh ran a task more than once: this is no comparison")
    return took


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Both ways, alternately."""
    folder = Path(tempfile.mkdtemp(prefix="nexapod-bench-"))
    try:
        client = connect()
        image = import_image(client, folder)
    except NoEngine as error:
        raise SystemExit(f"no comparison here: {error}") from None
    slots = options.workers * options.slots
    times: dict[str, list[float]] = {"by_hand_s": [], "mesh_s": []}
    try:
        by_hand = ByHand(image, folder, client)
        with Cluster(TELL_IMAGES) as cluster:
            submitter = cluster.add("submitter", "--no-work")
            for number in range(options.workers):
                cluster.add(f"worker-{number}", "--slots", str(options.slots))
            cluster.wait_met()
            through_the_mesh(submitter, image, 1, 0)  # as the engine is: warm
            by_hand.run(1, 0, 1)
            for _ in range(options.rounds):
                times["by_hand_s"].append(by_hand.run(options.tasks, options.seconds, slots))
                times["mesh_s"].append(through_the_mesh(submitter, image, options.tasks, options.seconds))
    finally:
        client.remove_image(image, force=True)
        client.close()
        shutil.rmtree(folder, ignore_errors=True)
    by_hand_s, mesh_s = (statistics.median(times[way]) for way in ("by_hand_s", "mesh_s"))
    return {
        "tasks": options.tasks,
        "seconds": options.seconds,
        "slots": slots,
        "cores": len(os.sched_getaffinity(0)),
        "ideal_s": round(-(-options.tasks // slots) * options.seconds, 2),
        "by_hand_s": round(by_hand_s, 2),
        "mesh_s": round(mesh_s, 2),
        "ratio": round(mesh_s / by_hand_s, 3),
        "bar": BAR,
        "all": {way: [round(took, 2) for took in taken] for way, taken in times.items()},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--slots", type=int, default=2, help="of each worker")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = compare(options)
    if options.json:
        print(json.dumps(found))
    else:
        print(f"{found['tasks']} tasks of {found['seconds']} s, {found['slots']} at once on {found['cores']} cores:")
        print(f"  by hand   {found['by_hand_s']:7.2f} s   {found['all']['by_hand_s']}")
        print(f"  the mesh  {found['mesh_s']:7.2f} s   {found['all']['mesh_s']}")
        print(f"  ratio     {found['ratio']:7.3f}     (bar {BAR:.2f}; ideal {found['ideal_s']:.2f} s)")
    return 0 if found["ratio"] <= BAR else 1


if __name__ == "__main__":
    sys.exit(main())
