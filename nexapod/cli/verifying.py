"""`nexapod verify`: check a certificate, and the result files beside it, with no network and no daemon.

The certificate is read once, in pieces: one of a million tasks takes no more memory than one of a few.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from nexapod.cli.acquaintances import known_here
from nexapod.cli.collecting import MANIFEST, PART, hash_of
from nexapod.cli.console import note, print_json, say
from nexapod.cli.errors import FAILED, OK, NothingThere, Refused
from nexapod.cli.peer_ids import peer_of
from nexapod.cli.safe import is_plain_name, safe
from nexapod.protocol.certificate.check import OnTask, check
from nexapod.protocol.certificate.report import Pins, Report, TaskReport, lines
from nexapod.protocol.certificate.tally import Problems
from nexapod.protocol.primitives import BlobRef

MANIFEST_BYTES_MAX: Final = 256 << 20
PROBLEMS_SHOWN: Final = 20
BUFFER_BYTES: Final = 1 << 20


class NoCertificate(Refused):
    """Name the .cert file of a job's results, or the folder that `nexapod results` made."""


def whom(home: Path, submitter: str | None, known: Sequence[str], *, strict: bool) -> Pins:
    """What this verifier brings along: the submitter that it named, and whom it knows: those whom its user names, the
    friends of its configuration, and the peer whose home folder this is. Raises NoPeer.
    """
    named = [peer_of(text) for text in known]
    pinned = None if submitter is None else peer_of(submitter)
    return Pins(pinned, known_here(home, os.environ) | frozenset(named), strict)


def verify_file(path: Path, results: Path | None, pins: Pins, *, as_json: bool) -> int:
    """A certificate, and the result files in `results`; a folder is its only certificate with the files beside it.

    Returns the exit status: 0 only when all of it holds. Raises CliError when the file cannot be read.
    """
    if os.path.isdir(path):
        path, results = _certificate_in(path), results or path
    if results is not None and not os.path.isdir(results):  # unlike Path's, never an error
        raise NothingThere(f"{safe(results)}: there is no such folder", "Name the folder that `nexapod results` made.")
    report, files = _check(path, results, pins)
    if as_json:
        print_json(_as_json(report, files))
    else:
        _show(report, files)
    return FAILED if report.problems or files.problems.kept else OK


def _certificate_in(folder: Path) -> Path:
    try:
        found = sorted(name for name in os.listdir(folder) if name.endswith(".cert"))
    except OSError as error:
        raise NoCertificate(f"{safe(folder)} cannot be read: {error.strerror}") from None
    if not found:
        remedy = "`nexapod results` writes it once the job is settled: run it again, then this."
        raise NothingThere(f"{safe(folder)}: there is no certificate (.cert) in that folder", remedy)
    if len(found) > 1:
        raise NoCertificate(f"{safe(folder)}: there are {len(found)} certificates in that folder")
    return folder / found[0]


def _check(path: Path, results: Path | None, pins: Pins) -> tuple[Report, Files]:
    """The certificate and, as its tasks pass by, their files."""
    if results is None:
        return _read(path, pins, None), Files(None, {})
    job, folders = _manifest(results)
    files = Files(results, folders)
    report = _read(path, pins, files.check)
    if folders and report.job is not None and job != report.job.hex():
        note(f"{MANIFEST} in that folder is another job's: tasks are looked for by their index")
        files = Files(results, {})
        report = _read(path, pins, files.check)
    return report, files


def _read(path: Path, pins: Pins, on_task: OnTask | None) -> Report:
    # Only libsodium: this works where neither a daemon nor its libraries run.
    from nexapod.mesh.identity import verify

    try:
        with path.open("rb", buffering=BUFFER_BYTES) as file:
            return check(file.read, verify, pins, on_task)
    except FileNotFoundError:
        raise NothingThere(f"{safe(path)}: there is no such file", "Name the .cert file of a job's results.") from None
    except OSError as error:
        raise NoCertificate(f"{safe(path)}: {error.strerror}") from None


# --- result files --------------------------------------------------------------------------------------------------
@dataclass(slots=True)
class Files:
    """Result files in a folder, held against the tasks of a certificate as these pass by."""

    folder: Path | None
    folders: dict[int, str]
    """Which folder is which task's; others are named by the task's index."""
    checked: int = 0
    problems: Problems = field(default_factory=Problems)
    unknown: list[str] = field(default_factory=list)
    """Files that the certificate does not speak of."""

    def check(self, task: TaskReport) -> None:
        """The files of one task."""
        assert self.folder is not None
        place = self.folder / self.folders.get(task.index, str(task.index))
        named = {file.path: file.blob for file in task.outputs} if task.outcome == "accepted" else {}
        for path, ref in named.items():
            self.checked += 1
            what = _compare(place / path, ref)
            if what:
                self.problems.add(f"task {task.index}: {place.name}/{path} {what}")
        try:
            self.unknown += [f"{place.name}/{path}" for path in sorted(_files_below(place) - named.keys())]
        except OSError as error:
            self.problems.add(f"task {task.index}: {error.filename or place} cannot be read: {error.strerror}")


def _compare(path: Path, ref: BlobRef) -> str:
    try:
        if not path.is_file():
            return "is missing"
        return "" if hash_of(path).ref == ref else "is not the accepted file: its bytes differ"
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _files_below(place: Path) -> set[str]:
    if not os.path.isdir(place):
        return set()
    return {p.relative_to(place).as_posix() for p in _walk(place) if not p.name.endswith(PART)}


def _walk(place: Path) -> Iterator[Path]:
    """What is below a folder and no folder itself. Not by recursion: whoever made it may have nested it deeply."""
    waiting = [place]
    while waiting:
        for entry in waiting.pop().iterdir():
            if entry.is_dir() and not entry.is_symlink():
                waiting.append(entry)
            else:
                yield entry


def _manifest(folder: Path) -> tuple[str, dict[int, str]]:
    """Whose it is, and which folder is which task's, as `nexapod results` noted it. A hint: the bytes are checked."""
    try:
        with (folder / MANIFEST).open("rb") as file:
            manifest = json.loads(file.read(MANIFEST_BYTES_MAX))
        folders = {int(i): str(name) for i, name in manifest["tasks"].items() if is_plain_name(str(name))}
        return str(manifest["job_id"]), folders
    except FileNotFoundError:
        return "", {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        note(f"{MANIFEST} cannot be used ({type(error).__name__}): tasks are looked for by their index")
        return "", {}


# --- what is said --------------------------------------------------------------------------------------------------
def _as_json(report: Report, files: Files) -> dict[str, Any]:
    problems = [*report.problems, *files.problems.kept]
    return {
        "ok": not problems,
        "problems": problems,
        "problems_more": report.problems_more + files.problems.more,
        "job_id": report.job.hex() if report.job else None,
        "name": report.spec.name if report.spec else None,
        "submitter": report.submitter,
        "submitter_named": report.pins.submitter,
        "settled_by": report.settled_by,
        "panel": list(report.panel),
        "panel_known": list(report.known_members),
        "renewals": report.renewals,
        "caretaker_shards": list(report.caretaker_shards),
        "verdicts_by_known": report.known_judges,
        "statements": report.statements,
        "tasks": report.spec.tasks if report.spec else 0,
        "accepted": report.accepted,
        "failed": report.failed,
        "workers": report.workers,
        "groups": report.groups,
        "faults": list(report.faults),
        "cpu_ms": report.used.cpu_ms,
        "wall_ms": report.used.wall_ms,
        "gpu_ms": report.used.gpu_ms,
        "files_checked": files.checked,
        "files_unknown": files.unknown,
    }


def _show(report: Report, files: Files) -> None:
    for line in _lines(report):
        say(safe(line))
    if files.folder is not None and report.spec is not None:
        say(f"{files.checked} result {'file' if files.checked == 1 else 'files'} checked")
        for name in files.unknown[:PROBLEMS_SHOWN]:
            note(f"not spoken of by the certificate: {safe(name)}")
    for problem in files.problems.kept[:PROBLEMS_SHOWN]:
        say(f"PROBLEM: {safe(problem)}")
    more = len(files.problems.kept) + files.problems.more - PROBLEMS_SHOWN
    if more > 0:
        say(f"... and {more} more")
    good = not report.problems and not files.problems.kept
    say("verified: every signature holds, and every judgement was repeated" if good else "NOT VERIFIED")


def _lines(report: Report) -> Iterator[str]:
    """The report. Its first line says what the rest depends on: whose word it is, and who chose the judges."""
    said = lines(report)
    yield next(said) if report.submitter is None else f"{next(said)} {next(said)}"
    yield from said
