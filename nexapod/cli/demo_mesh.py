"""What `nexapod demo` does: a mesh of separate processes here that does a real job, loses a peer, proves its result.

One bootstrap peer and N workers, each a daemon of its own with its own home and key, on loopback. Everything goes
through the same command line and API that a user has. Nothing is left running; the results stay in a folder.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from nexapod.cli.client import Client
from nexapod.cli.errors import CliError, Refused
from nexapod.cli.safe import safe
from nexapod.mesh.identity import load_or_create, peer_id
from nexapod.store.home import Home

T = TypeVar("T")

NETWORK = "demo"
START_S = 60.0
MEET_S = 60.0
JOB_S = 600.0
STOP_S = 20.0
POLL_S = 0.05


class DemoFailed(CliError):
    """The demo could not be carried out."""


class NoNewFolder(Refused):
    """Name a folder that is not there yet with --output, or leave it out: the demo then makes one of its own."""


def example_folder() -> Path:
    """Where the example job lies: in a checkout, or in the installed package."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package.parent / "examples" / "secondary-structure", package / "examples" / "secondary-structure"):
        if (folder / "job.toml").is_file():
            return folder
    raise DemoFailed("The example job is not here: run the demo from a checkout, or install the package again.")


def _module(path: Path) -> ModuleType:
    """A script of the example, as a module."""
    spec = importlib.util.spec_from_file_location(f"nexapod_example_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise DemoFailed(f"{path} cannot be read as a Python module.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _environment(environ: Mapping[str, str], folder: Path) -> dict[str, str]:
    """What the daemons are started with: the user's own settings are not the demo's. With `work = false` in the user's
    config.toml nobody would work, and an address for the API can be that of one daemon only.
    """
    kept = {name: value for name, value in environ.items() if not name.startswith("NEXAPOD_")}
    return kept | {"XDG_CONFIG_HOME": str((folder / "config").absolute())}


@dataclass
class Peer:
    """One daemon of the demo."""

    name: str
    home: Path
    process: subprocess.Popen[bytes]
    client: Client
    peer_id: str = ""
    addrs: list[str] = field(default_factory=list)

    @property
    def alive(self) -> bool:
        return self.process.poll() is None


@dataclass(frozen=True)
class Options:
    """What the command line asks for."""

    peers: int = 5
    fasta: Path | None = None
    truth: Path | None = None
    executor: str = "wasm"
    kill: bool = True
    keep: Path | None = None


class Demo:
    """One run. `say` is told each step in words."""

    def __init__(self, options: Options, folder: Path, say: Callable[[str], None]) -> None:
        self.options = options
        self.folder = folder
        self.say = say
        self.example = example_folder()
        self.daemons: list[Peer] = []
        self.killed: Peer | None = None
        self.seats: list[str] = []
        """Who held them when the job was submitted."""

    # --- the mesh --------------------------------------------------------------------------------------------------
    @contextmanager
    def mesh(self) -> Iterator[None]:
        """One bootstrap peer and the workers, which know nothing but its address."""
        try:
            home, listen = self._make_home("bootstrap"), f"/ip4/127.0.0.1/tcp/{_free_port()}"
            # Who it is and where it will listen is known before it runs: so all of them can start at once.
            address = f"{listen}/p2p/{peer_id(load_or_create(Home(home).identity))}"
            self._start("bootstrap", home, listen, ["--no-work"])
            for number in range(1, self.options.peers + 1):
                name, more = f"worker-{number}", ["--slots", "1", "--bootstrap", address]
                self._start(name, self._make_home(name), "/ip4/127.0.0.1/tcp/0", more)
            for peer in self.daemons:
                self._wait_up(peer)
            self._wait_met()
            yield
        finally:
            self._stop_all()

    def _make_home(self, name: str) -> Path:
        home = self.folder / "homes" / name
        Home(home).create()
        return home

    def _start(self, name: str, home: Path, listen: str, more: list[str]) -> Peer:
        command = [sys.executable, "-m", "nexapod", "start", "--home", str(home), "--network", NETWORK]
        command += ["--listen", listen, *more]
        environment = _environment(os.environ, self.folder)
        with (self.folder / f"{name}.log").open("wb") as output:
            process = subprocess.Popen(  # noqa: S603 - our own command, no shell
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, start_new_session=True
            )
        peer = Peer(name, home, process, Client(home / "api.sock"))
        self.daemons.append(peer)
        return peer

    def _wait_up(self, peer: Peer) -> None:
        def up() -> bool:
            if not peer.alive:
                raise DemoFailed(f"{peer.name} ended at its start:\n{self._tail(peer)}")
            status = self._ask(peer, "/v1/status")
            if status is None or not status["listen"]:
                return False
            peer.peer_id, peer.addrs = status["peer_id"], status["listen"]
            return True

        self._until(up, START_S, f"{peer.name} did not start:\n{self._tail(peer)}")

    def _wait_met(self) -> None:
        """Until each worker knows all others."""

        def met() -> bool:
            known = [self._ask(peer, "/v1/status") for peer in self.daemons]
            return all(s is not None and s["known_peers"] >= len(self.daemons) - 1 for s in known)

        self._until(met, MEET_S, "the peers did not find one another")
        self.say(f"{len(self.daemons)} peers have found one another through the bootstrap peer's address alone")

    def _ask(self, peer: Peer, path: str) -> Any:
        """One question to a daemon's API; None while it does not answer."""
        try:
            return peer.client.get(path)
        except CliError:
            return None

    def _until(self, ready: Callable[[], bool], seconds: float, failure: str) -> None:
        end = time.monotonic() + seconds
        while not ready():
            if time.monotonic() > end:
                raise DemoFailed(f"Within {seconds:.0f} s {failure}")
            time.sleep(POLL_S)

    def _tail(self, peer: Peer) -> str:
        log = self.folder / f"{peer.name}.log"
        return log.read_text("utf-8", "replace")[-2000:] if log.exists() else ""

    def _stop_all(self) -> None:
        """TERM, then KILL; the process groups, so that no runner stays."""
        for how, seconds in ((signal.SIGTERM, STOP_S), (signal.SIGKILL, STOP_S)):
            for peer in self.daemons:
                if peer.alive:
                    # A second TERM ends a daemon at once instead of draining it: nothing is left to drain.
                    for _ in range(2 if how is signal.SIGTERM else 1):
                        peer.process.send_signal(how)
                        time.sleep(POLL_S)
            end = time.monotonic() + seconds
            while any(peer.alive for peer in self.daemons) and time.monotonic() < end:
                time.sleep(POLL_S)

    # --- the job ---------------------------------------------------------------------------------------------------
    def prepare(self) -> Path:
        """The job's files in a folder of their own; returns its job file."""
        job = self.folder / "job"
        job.mkdir()
        fasta = self.options.fasta or self.example / "chains.fasta"
        if not fasta.is_file():
            raise DemoFailed(f"There is no file {fasta}: name a FASTA file.")
        shutil.copyfile(fasta, job / "chains.fasta")
        self._weights(job / "weights.bin")
        if self.options.executor == "docker":
            (job / "job.toml").write_text(self._docker_job(), "utf-8")
        else:
            shutil.copyfile(self.example / "secondary_structure.wasm", job / "secondary_structure.wasm")
            shutil.copyfile(self.example / "job.toml", job / "job.toml")
        return job / "job.toml"

    def _weights(self, target: Path) -> None:
        made = self.example / "weights.bin"
        if made.is_file():
            shutil.copyfile(made, target)
            return
        self._script("fetching the network's weights", self.example / "weights.py", str(target))

    def _docker_job(self) -> str:
        self._script(
            "fetching the C compiler (Zig, 90 MB, once) and building the program",
            self.example / "build.py",
            *("--install", "--native", str(self.folder / "predict")),
        )
        output = self._script("building the container image", self.example / "image" / "build_image.py")
        image = output.split()[-1]
        template = (self.example / "job-docker.toml.in").read_text("utf-8")
        return template.replace("@IMAGE@", image)

    def _script(self, what: str, script: Path, *arguments: str) -> str:
        self.say(what)
        command = [sys.executable, str(script), *arguments]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - ours
        if ended.returncode:
            raise DemoFailed(f"{what} failed:\n{ended.stderr.strip()}")
        return ended.stdout

    def submit(self, job_file: Path) -> str:
        """Through the command line, as a user would."""
        command = [sys.executable, "-m", "nexapod", "--home", str(self.submitter.home), "submit", "--json"]
        submission = subprocess.Popen(  # noqa: S603 - ours
            [*command, str(job_file)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        # On a quick machine half of the tasks are done before the command has said that the job is placed.
        while submission.poll() is None:
            self._kill_one()
            time.sleep(POLL_S)
        output, errors = submission.communicate()
        if submission.returncode:
            raise DemoFailed(f"the job was not accepted:\n{errors.strip()}{output.strip()}")
        submitted = json.loads(output)
        job_id: str = submitted["job_id"]
        self.say(f"job {job_id[:12]} is submitted at {self.submitter.name}. {submitted['rests_on']}")
        self._tell_stewards(job_id)
        return job_id

    def _tell_stewards(self, job_id: str) -> None:
        view = self.submitter.client.get(f"/v1/jobs/{job_id}?count=0")
        self.seats = list(view["seats"][0]["holders"])
        panel, seats = (" ".join(map(self.name, peers)) for peers in (view["panel"], self.seats))
        self.say(f"its panel, drawn by chance: {panel}")
        self.say(f"of these hold its seats, grant its tasks and judge them: {seats}")

    def _tell_successor(self, view: dict[str, Any]) -> None:
        """Who has the seat of the worker that was killed, if it had one."""
        if self.killed is None or self.killed.peer_id not in self.seats:
            return
        new = [self.name(peer) for peer in view["seats"][0]["holders"] if peer not in self.seats]
        succession = f"{new[0]} has taken it" if new else "the other two, a quorum, went on without it"
        self.say(f"{self.killed.name} held a seat: {succession}")

    def name(self, peer_id: str) -> str:
        """What the demo calls a peer."""
        return next((peer.name for peer in self.daemons if peer.peer_id == peer_id), peer_id[-8:])

    @property
    def submitter(self) -> Peer:
        return self.daemons[1]

    def watch(self, job_id: str, show: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """Follow the job to its end; meanwhile kill a worker that holds a lease."""
        end = time.monotonic() + JOB_S
        while time.monotonic() < end:
            # Its tasks are many rows, which nobody looks at before the end.
            view = self._ask(self.submitter, f"/v1/jobs/{job_id}?count=0")
            if view is not None:
                show(view)
                if view["state"] == "settled":
                    self._tell_successor(view)
                    return dict(self.submitter.client.get(f"/v1/jobs/{job_id}"))
                if view["state"] == "cancelled":
                    raise DemoFailed(f"The job was cancelled: {view['refused']}; the logs are in {self.folder}.")
            self._kill_one()
            time.sleep(POLL_S)
        raise DemoFailed(f"The job was not settled within {JOB_S:.0f} s; the logs are in {self.folder}.")

    def _kill_one(self) -> None:
        """SIGKILL to the first worker, other than the submitter, that is seen to hold a lease; once."""
        if not self.options.kill or self.killed is not None:
            return
        for peer in self.daemons[2:]:
            status = self._ask(peer, "/v1/status")
            if status is not None and status["leases"]:
                peer.process.send_signal(signal.SIGKILL)
                peer.process.wait()
                self.killed = peer
                self.say(f"{peer.name} is killed (SIGKILL) while it holds a lease")
                return

    # --- what came of it -------------------------------------------------------------------------------------------
    def collect(self, job_id: str, view: dict[str, Any]) -> dict[str, Any]:
        """Results and certificate, fetched and checked by the command line; then everything as numbers."""
        results = self.folder / "results"
        command = [sys.executable, "-m", "nexapod", "--home", str(self.submitter.home)]
        self._command([*command, "results", job_id, "-o", str(results)], "the results were not fetched")
        certificate = next(results.rglob("*.cert"))
        pinned = ["verify", str(certificate), "--submitter", self.submitter.peer_id, "--json"]
        verified = json.loads(self._command([*command, *pinned], "the certificate does not hold"))
        names = _fasta_names(self.folder / "job" / "chains.fasta")
        tables = self._tables(view, names)
        score = _module(self.example / "score.py")
        predictions = {name: score.parse_table(text).labels for name, text in tables.items()}
        shown = [r for t in view["task_list"] for r in t["replicas"] if r["wall_ms"] is not None]
        return {
            "peers": len(self.daemons),
            "tasks": view["tasks"],
            "accepted": view["accepted"],
            "failed": view["failed"],
            "rests_on": view["rests_on"],
            "panel": view["panel"],
            "seats": view["seats"],
            "replicas": {names[t["index"]]: t["replicas"] for t in view["task_list"]},
            "judges": {names[t["index"]]: t["judges"] for t in view["task_list"]},
            "killed": self.killed.peer_id if self.killed else None,
            "submitter": self.submitter.peer_id,
            "task_s": round(sum(r["wall_ms"] for r in shown) / 1000, 3),
            "q3": None,
            "predictions": predictions,
            "certificate": str(certificate),
            "verified": verified["ok"],
            "cores": len(os.sched_getaffinity(0)),
            "folder": str(self.folder),
            "names": {peer.peer_id: peer.name for peer in self.daemons},
        } | self._scored(score, tables)

    def _command(self, command: list[str], failure: str) -> str:
        ended = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - ours
        if ended.returncode:
            raise DemoFailed(f"{failure}:\n{ended.stderr.strip()}{ended.stdout.strip()}")
        return ended.stdout

    def _tables(self, view: dict[str, Any], names: list[str]) -> dict[str, str]:
        found = {}
        for result in self.submitter.client.get(f"/v1/jobs/{view['job_id']}/results")["tasks"]:
            for file in result["files"]:
                if file["path"] == "prediction.tsv":
                    data = self.submitter.client.get_bytes(f"/v1/blobs/{file['ref']}")
                    found[names[result["index"]]] = data.decode("utf-8")
        return found

    def _scored(self, score: ModuleType, tables: dict[str, str]) -> dict[str, Any]:
        """Q3, for the example's own chains or with the truth that the user named."""
        if self.options.fasta is None:
            chains = score.load_chains()
        elif self.options.truth is not None:
            chains = score.load_chains(truth=self.options.truth)
        else:
            return {"scores": []}
        scores = score.score_tables(tables, chains)
        rows = [{"chain": s.name, "length": s.residues, "q3": round(s.q3, 4)} for s in scores]
        truth = {c.name: c.truth for c in chains}
        return {"q3": round(score.overall_q3(scores), 4), "scores": rows, "truth": truth}


def _free_port() -> int:
    """One that nothing listens on now."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def _fasta_names(path: Path) -> list[str]:
    """The first word of each header, made unique by the record's number where two are alike."""
    names: list[str] = []
    for line in path.read_text("utf-8").splitlines():
        if line.startswith(">"):
            word = (line[1:].split() or [f"record-{len(names)}"])[0]
            names.append(word if word not in names else f"{word}#{len(names)}")
    return names


def _make_folder(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True)
    except FileExistsError as error:
        raise NoNewFolder(f"{safe(error.filename or folder)}: something is there already") from None
    except OSError as error:
        raise NoNewFolder(f"{safe(folder)}: the folder cannot be made: {error.strerror}") from None
    return folder


def run_demo(options: Options, say: Callable[[str], None], show: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """The whole demo. Returns its figures; the folder that `certificate` lies in stays."""
    folder = _make_folder(options.keep) if options.keep else Path(tempfile.mkdtemp(prefix="nexapod-demo-"))
    demo = Demo(options, folder, say)
    job_file = demo.prepare()
    with demo.mesh():
        began = time.monotonic()
        job_id = demo.submit(job_file)
        view = demo.watch(job_id, show)
        wall = time.monotonic() - began
        figures = demo.collect(job_id, view)
    shutil.rmtree(folder / "homes")
    return figures | {"wall_s": round(wall, 3), "job_id": job_id}
