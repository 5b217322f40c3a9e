"""Real daemons as processes of their own on loopback, driven through their API, killed and started again at will.

Knows how to start, ask, wait and clean up; not what a daemon should answer. Everything has a deadline, and whatever
happens nothing is left running: `Cluster` ends with every daemon and every process below it gone, or fails.
"""

from __future__ import annotations

import ctypes
import http.client
import importlib.util
import json
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import psutil
import wasmtime

from nexapod.mesh import identity
from nexapod.protocol.certificate.check import check_bytes
from nexapod.protocol.limits import SHARD_TASKS

EXAMPLE = Path(__file__).parents[2] / "examples" / "secondary-structure"
LIAR_DAEMON = Path(__file__).with_name("liar_daemon.py")
NETWORK = "loopback-test"
START_S = 40.0
MEET_S = 40.0
STOP_S = 10.0
ASK_S = 10.0
COMMAND_S = 30.0
LOG_SHOWN = 60
SPINS_PER_S = 900_000_000
"""Turns of the test module's loop in about a second of one core."""
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)


class NotAnswering(Exception):
    """The daemon's API cannot be reached, or says that it is too early."""


class Refused(Exception):
    """The API answered with a problem."""


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> float:
    """Poll until true; how long it took. Fails the test after `seconds`."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > seconds:
            raise AssertionError(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.05)
    return time.monotonic() - began


def free_port() -> int:
    """A TCP port that a daemon can keep across restarts: below the range that the kernel gives to others."""
    for port in random.sample(range(20_000, 32_000), 200):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no free TCP port on loopback")


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("daemon", timeout=ASK_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(ASK_S)
        self.sock.connect(str(self._path))


CONFIGURATION = "config"
TELL_IMAGES = "[images]\ntell = true\n"
"""A configuration for images that only the engine holds."""


class Daemon:
    """One daemon: its home, its port, its log, and the process that runs now, if any."""

    def __init__(self, name: str, folder: Path, bootstrap: Sequence[str], flags: Sequence[str], lie: str) -> None:
        self.name = name
        self.home = folder / name
        self.log = folder / f"{name}.log"
        self.port = free_port()
        self.lie = lie
        self.process: subprocess.Popen[bytes] | None = None
        self.peer_id = ""
        self.listen: list[str] = []
        self._flags = [*flags, *(word for addr in bootstrap for word in ("--bootstrap", addr))]

    # --- life ----------------------------------------------------------------------------------------------------
    @property
    def command(self) -> list[str]:
        how = [str(LIAR_DAEMON), self.lie] if self.lie else ["-m", "nexapod", "start"]
        place = ["--home", str(self.home), "--network", NETWORK, "--listen", f"/ip4/127.0.0.1/tcp/{self.port}"]
        return [sys.executable, *how, *place, "--log-format", "json", *self._flags]

    def start(self) -> None:
        """Only from the main thread: the kernel ends the daemon with the thread that started it."""
        assert not self.alive
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=_environment(self.home.parent / CONFIGURATION),
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )

    def wait_up(self, seconds: float = START_S) -> None:
        wait_until(self._up, seconds, f"{self.name} answers")

    def _up(self) -> bool:
        assert self.alive, f"{self.name} ended at its start:\n{self.tail()}"
        try:
            status = self.get("/v1/status")
        except NotAnswering:
            return False
        self.peer_id, self.listen = status["peer_id"], status["listen"]
        return True

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        """SIGKILL; returns when the process is gone."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(STOP_S)

    def terminate(self) -> None:
        """SIGTERM; does not wait."""
        assert self.process is not None
        self.process.terminate()

    def wait_end(self, seconds: float) -> int:
        assert self.process is not None
        return self.process.wait(seconds)

    def below(self) -> list[psutil.Process]:
        """Every process that the daemon has started, and that these have."""
        if not self.alive:
            return []
        assert self.process is not None
        try:
            return list(psutil.Process(self.process.pid).children(recursive=True))
        except psutil.NoSuchProcess:
            return []

    def rss(self) -> int:
        assert self.process is not None
        return int(psutil.Process(self.process.pid).memory_info().rss)

    # --- the API -------------------------------------------------------------------------------------------------
    def ask(self, method: str, path: str, body: bytes | None = None, kind: str = "application/json") -> bytes:
        connection = _UnixConnection(self.home / "api.sock")
        try:
            connection.request(method, path, body, {"content-type": kind} if body is not None else {})
            answer = connection.getresponse()
            data = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise NotAnswering(f"{self.name}: {error!r}") from None
        finally:
            connection.close()
        if answer.status in (409, 425, 503):
            raise NotAnswering(f"{self.name}: {answer.status} {data[:300]!r}")
        if answer.status >= 300:
            raise Refused(f"{self.name}: {answer.status} {data[:500]!r}")
        return data

    def get(self, path: str) -> Any:
        return json.loads(self.ask("GET", path))

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.get("/v1/status")
        return found

    def job(self, job_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.get(f"/v1/jobs/{job_id}")
        return found

    def counts(self, metric: str = "events_total") -> dict[str, int]:
        """A labelled counter of /metrics, by label."""
        found = {}
        for line in self.ask("GET", "/metrics").decode().splitlines():
            if line.startswith(f"nexapod_{metric}{{"):
                name, _, value = line.partition(" ")
                found[name.partition('="')[2].partition('"')[0]] = int(float(value))
        return found

    def upload(self, data: bytes) -> str:
        ref: str = json.loads(self.ask("POST", "/v1/blobs", data, "application/octet-stream"))["ref"]
        return ref

    def submit(self, job: Job, friends: Sequence[str] = ()) -> str:
        """Upload a job's blobs and submit it, with `friends` among its stewards; its id."""
        index, at, bounds = b"", 0, []
        for number, piece in enumerate(job.pieces):
            bounds += [at] if number % SHARD_TASKS == 0 else []
            index += struct.pack(">QI", at, len(piece))
            at += len(piece)
        body = {
            "name": job.name,
            "tasks": len(job.pieces),
            "run": {"executor": "wasm", "module": self.upload(job.module)},
            "inputs": [{"path": path, "ref": self.upload(data)} for path, data in job.inputs.items()],
            "split": {
                "path": job.path,
                "ref": self.upload(b"".join(job.pieces)),
                "index": self.upload(index),
                "bounds": [*bounds, at],
            },
            "limits": {"wall_ms": job.wall_ms},
            "validate": {"agree": job.agree},
            "friends": list(friends),
            "accept_unknown": True,
        }
        job_id: str = json.loads(self.ask("POST", "/v1/jobs", json.dumps(body).encode()))["job_id"]
        return job_id

    def outputs(self, job_id: str, name: str) -> dict[int, bytes]:
        """The output file of that name of each accepted task."""
        found = {}
        for task in self.get(f"/v1/jobs/{job_id}/results")["tasks"]:
            for file in task["files"]:
                if file["path"] == name:
                    found[task["index"]] = self.ask("GET", f"/v1/blobs/{file['ref']}")
        return found

    def command_line(self, *words: str) -> str:
        """What the real command prints; fails the test when it fails."""
        home = ["--home", str(self.home)] if words[0] != "verify" else []
        ended = subprocess.run(
            [sys.executable, "-m", "nexapod", *words, *home],
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            env=_environment(self.home.parent / CONFIGURATION),
            check=False,
        )
        assert ended.returncode == 0, f"nexapod {words[0]}: {ended.returncode}\n{ended.stderr}{ended.stdout}"
        return ended.stdout

    # --- what is shown on failure ----------------------------------------------------------------------------------
    def events(self, name: str) -> list[dict[str, Any]]:
        """The events of that name in the log, of every process that wrote it."""
        found = []
        for line in self.log.read_text("utf-8", "replace").splitlines():
            if f'"{name}"' in line and line.startswith("{"):
                event = json.loads(line)
                if event.get("event") == name:
                    found.append(event)
        return found

    def stamped(self, name: str) -> list[dict[str, Any]]:
        """As `events`, each with `at`: when it was logged, in seconds since 1970."""
        return [e | {"at": datetime.fromisoformat(e["timestamp"]).timestamp()} for e in self.events(name)]

    def tail(self, lines: int = LOG_SHOWN) -> str:
        if not self.log.exists():
            return "(no log)"
        return "\n".join(line[:400] for line in self.log.read_text("utf-8", "replace").splitlines()[-lines:])


class Cluster:
    """Daemons that know of each other: the first one started is every other's bootstrap."""

    def __init__(self, configuration: str = "") -> None:
        """`configuration`: every daemon's config.toml."""
        # Short: a Unix socket's path has at most 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="nxp-"))
        if configuration:
            (self.folder / CONFIGURATION / "nexapod").mkdir(parents=True)
            (self.folder / CONFIGURATION / "nexapod" / "config.toml").write_text(configuration)
        self.daemons: list[Daemon] = []

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is not None:
            self.show_logs()
        strays = self._end_all()
        shutil.rmtree(self.folder)
        assert error is not None or not strays, f"these outlived their daemon: {strays}"

    def add(self, name: str, *flags: str, lie: str = "") -> Daemon:
        """Start one more daemon; `wait_met` waits for it."""
        bootstrap = self.daemons[0].listen[:1] if self.daemons else []
        daemon = Daemon(name, self.folder, bootstrap, flags, lie)
        self.daemons.append(daemon)
        daemon.start()
        if len(self.daemons) == 1:
            daemon.wait_up()
        return daemon

    def begin(self, workers: int) -> None:
        """One bootstrap that does not work, and so many workers with one slot each."""
        self.add("bootstrap", "--no-work")
        for number in range(1, workers + 1):
            self.add(f"worker-{number}", "--slots", "1")
        self.wait_met()

    def wait_met(self, seconds: float = MEET_S) -> float:
        """Until every living daemon answers, knows all others that live, and could name most of them as stewards."""
        alive = [daemon for daemon in self.daemons if daemon.alive]
        for daemon in alive:
            daemon.wait_up()
        ids = {daemon.peer_id for daemon in alive}

        def met() -> bool:
            return all(knows(daemon, ids - {daemon.peer_id}) for daemon in alive)

        return wait_until(met, seconds, "all daemons know each other")

    def heal(self) -> None:
        """Start again whoever is down, and wait until all know each other."""
        for daemon in self.daemons:
            if not daemon.alive:
                daemon.start()
        self.wait_met()

    def by_id(self, peer_id: str) -> Daemon:
        return next(daemon for daemon in self.daemons if daemon.peer_id == peer_id)

    def wait_state(self, daemon: Daemon, job_id: str, state: str, seconds: float) -> dict[str, Any]:
        """Until the submitter says that the job is in that state; its view."""
        seen: dict[str, Any] = {}

        def reached() -> bool:
            seen.update(daemon.job(job_id))
            return bool(seen["state"] == state)

        def told() -> str:
            return f"{seen.get('accepted')} of {seen.get('tasks')} accepted, state {seen.get('state')}"

        try:
            wait_until(reached, seconds, f"job {job_id[:12]} is {state}")
        except AssertionError as error:
            why = daemon.get(f"/v1/jobs/{job_id}/why")["sentences"]
            raise AssertionError(f"{error} ({told()}; {' '.join(why)})") from None
        return seen

    def show_logs(self) -> None:
        for daemon in self.daemons:
            print(f"--- {daemon.name} ({daemon.peer_id}), the end of its log:\n{daemon.tail()}")

    def _end_all(self) -> list[str]:
        """SIGKILL everything; the processes that did not end with their daemon."""
        below = [process for daemon in self.daemons for process in daemon.below()]
        for daemon in self.daemons:
            if daemon.alive:
                daemon.kill()
        _, alive = psutil.wait_procs(below, timeout=5)
        if alive and all(_is_guard(process) for process in alive):
            _, alive = psutil.wait_procs(alive, timeout=30)  # it is there to outlive its daemon, by a second look
        for process in alive:
            process.kill()
        return [str(process) for process in alive]


def assert_right(daemon: Daemon, job_id: str, job: Job) -> None:
    """Every task accepted, none failed, every output what its task should have written, and the certificate holds."""
    view = daemon.job(job_id)
    assert (view["accepted"], view["failed"]) == (len(job.pieces), 0)
    assert daemon.outputs(job_id, "out.txt") == dict(enumerate(job.pieces))
    assert_certified(daemon, job_id)


def assert_certified(daemon: Daemon, job_id: str) -> None:
    """The certificate of a settled job holds."""
    data = daemon.ask("GET", f"/v1/jobs/{job_id}/certificate")
    report = check_bytes(data, identity.verify)
    assert report.ok, report.problems


def knows(daemon: Daemon, others: set[str]) -> bool:
    """Whether a daemon has the profiles of the others, and a link to enough of them that it has got through to."""
    peers = {peer["peer_id"]: peer for peer in daemon.get("/v1/peers") if peer["live"]}
    stewards = [peer for peer in peers.values() if peer["connected"] and peer["dialled"] and peer["steward"]]
    return others <= {name for name, peer in peers.items() if peer.get("cpus")} and len(stewards) >= min(4, len(others))


def _is_guard(process: psutil.Process) -> bool:
    try:
        return "nexapod.executor.docker.guard" in process.cmdline()
    except psutil.NoSuchProcess:
        return True


def gone(processes: Iterable[psutil.Process]) -> bool:
    """Whether all of these have ended (a pid used again is another process)."""
    return not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes)


# --- jobs ------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Job:
    """A wasm job over the pieces of one file."""

    name: str
    module: bytes
    pieces: tuple[bytes, ...]
    path: str
    inputs: dict[str, bytes] = field(default_factory=dict)
    agree: int = 2
    wall_ms: int = 600_000


def copying_job(tasks: int, seconds: float, *, agree: int = 2, wall_ms: int = 600_000) -> Job:
    """Each task is busy for about so long on an idle core, then copies its piece to /output/out.txt."""
    pieces = tuple(b"piece %d\n" % number for number in range(tasks))
    module = wasmtime.wat2wasm(_COPY.replace("@SPINS@", str(max(1, int(seconds * SPINS_PER_S)))))
    return Job("copies", bytes(module), pieces, "in.txt", agree=agree, wall_ms=wall_ms)


_COPY = """
(module
  (import "wasi_snapshot_preview1" "path_open"
    (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 2)
  (data (i32.const 0) "in.txt")
  (data (i32.const 16) "out.txt")
  (func $must (param $errno i32) (if (local.get $errno) (then (call $exit (local.get $errno)))))
  (func (export "_start") (local $n i64) (local $x i64)
    (local.set $n (i64.const @SPINS@))
    (loop $more
      (local.set $x (i64.add (i64.mul (local.get $x) (i64.const 6364136223846793005)) (local.get $n)))
      (local.set $n (i64.sub (local.get $n) (i64.const 1)))
      (br_if $more (i64.ne (local.get $n) (i64.const 0))))
    (i64.store (i32.const 200) (local.get $x))
    (call $must (call $open (i32.const 3) (i32.const 0) (i32.const 0) (i32.const 6)
      (i32.const 0) (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 124)))
    (i32.store (i32.const 100) (i32.const 1024))
    (i32.store (i32.const 104) (i32.const 65536))
    (call $must (call $read (i32.load (i32.const 124)) (i32.const 100) (i32.const 1) (i32.const 128)))
    (call $must (call $open (i32.const 4) (i32.const 0) (i32.const 16) (i32.const 7)
      (i32.const 9) (i64.const 64) (i64.const 0) (i32.const 0) (i32.const 124)))
    (i32.store (i32.const 104) (i32.load (i32.const 128)))
    (call $must (call $write (i32.load (i32.const 124)) (i32.const 100) (i32.const 1) (i32.const 120)))))
"""


def example_job(weights: bytes) -> Job:
    """The example: 22 protein chains."""
    fasta = (EXAMPLE / "chains.fasta").read_bytes()
    pieces = tuple(b">" + record for record in fasta.split(b">")[1:])
    module = (EXAMPLE / "secondary_structure.wasm").read_bytes()
    return Job("secondary-structure", module, pieces, "record.fasta", {"weights.bin": weights}, wall_ms=60_000)


def example_module(name: str) -> ModuleType:
    """A script of the example, as a module."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


# --- processes -------------------------------------------------------------------------------------------------------
def _environment(configuration: Path) -> dict[str, str]:
    """Nothing that configures a daemon comes from whoever runs the tests. `configuration`: where XDG_CONFIG_HOME is."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("NEXAPOD_", "NOTIFY_", "XDG_"))}
    return kept | {"XDG_CONFIG_HOME": str(configuration)}


def _die_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
