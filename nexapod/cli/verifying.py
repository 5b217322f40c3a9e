"""`nexapod verify`: check a certificate, and the result files beside it, with no network and no daemon."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from nexapod.cli.collecting import MANIFEST, PART, hash_of
from nexapod.cli.console import note, print_json, say
from nexapod.cli.errors import FAILED, OK, NothingThere, Refused
from nexapod.cli.quantities import show_duration
from nexapod.cli.safe import is_plain_name, safe
from nexapod.protocol.certificate import Report, check

CERTIFICATE_BYTES_MAX: Final = 1 << 30
MANIFEST_BYTES_MAX: Final = 256 << 20
PROBLEMS_SHOWN: Final = 20


class NoCertificate(Refused):
    """Name the .cert file of a job's results, or the folder that `nexapod results` made."""


def verify_file(path: Path, results: Path | None, *, as_json: bool) -> int:
    """A certificate, and the result files in `results`; a folder is its only certificate with the files beside it.

    Returns the exit status: 0 only when all of it holds. Raises CliError when the file cannot be read.
    """
    if os.path.isdir(path):
        path, results = _certificate_in(path), results or path
    # Only libsodium: this works where neither a daemon nor its libraries run.
    from nexapod.mesh.identity import verify

    report = check(_read(path), verify)
    problems = list(report.problems)
    checked = 0
    extra: list[str] = []
    if results is not None and report.spec is not None:
        checked, found, extra = check_files(report, results)
        problems += found
    if as_json:
        print_json(_as_json(report, problems, checked, extra))
    else:
        _show(report, problems, checked, extra, results)
    return FAILED if problems else OK


def _certificate_in(folder: Path) -> Path:
    try:
        found = sorted(name for name in os.listdir(folder) if name.endswith(".cert"))
    except OSError as error:
        raise NoCertificate(f"{safe(folder)} cannot be read: {error.strerror}") from None
    if not found:
        remedy = "`nexapod results` writes it once the job is complete: run it again, then this."
        raise NothingThere(f"{safe(folder)}: there is no certificate (.cert) in that folder", remedy)
    if len(found) > 1:
        raise NoCertificate(f"{safe(folder)}: there are {len(found)} certificates in that folder")
    return folder / found[0]


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(CERTIFICATE_BYTES_MAX + 1)
    except FileNotFoundError:
        raise NothingThere(f"{safe(path)}: there is no such file", "Name the .cert file of a job's results.") from None
    except OSError as error:
        raise NoCertificate(f"{safe(path)}: {error.strerror}") from None
    if len(data) > CERTIFICATE_BYTES_MAX:
        raise NoCertificate(f"{safe(path)} is larger than {CERTIFICATE_BYTES_MAX >> 30} GiB: it is no certificate")
    return data


def check_files(report: Report, folder: Path) -> tuple[int, list[str], list[str]]:
    """Each settled output against the certificate: files checked, what is wrong, files that it does not speak of."""
    if not os.path.isdir(folder):  # unlike Path's, never an error
        raise NothingThere(f"{safe(folder)}: there is no such folder", "Name the folder that `nexapod results` made.")
    folders = _folders(folder, report)
    checked = 0
    problems: list[str] = []
    extra: list[str] = []
    for task in report.tasks:
        place = folder / folders.get(task.index, str(task.index))
        named = {file.path: file.blob for file in task.outputs} if task.outcome == "accepted" else {}
        for path, ref in named.items():
            checked += 1
            what = _compare(place / path, ref)
            if what:
                problems.append(f"task {task.index}: {place.name}/{path} {what}")
        try:
            extra += [f"{place.name}/{path}" for path in sorted(_files_below(place) - named.keys())]
        except OSError as error:
            problems.append(f"task {task.index}: {error.filename or place} cannot be read: {error.strerror}")
    return checked, problems, extra


def _compare(path: Path, ref: Any) -> str:
    try:
        if not path.is_file():
            return "is missing"
        return "" if hash_of(path).ref == ref else "is not the settled file: its bytes differ"
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


def _folders(folder: Path, report: Report) -> dict[int, str]:
    """Which folder is which task's, as `nexapod results` noted it. It is a hint: the bytes are what is checked."""
    try:
        with (folder / MANIFEST).open("rb") as file:
            manifest = json.loads(file.read(MANIFEST_BYTES_MAX))
        if report.job is None or manifest["job_id"] != report.job.hex():
            note(f"{MANIFEST} in that folder is another job's: tasks are looked for by their index")
            return {}
        return {int(i): str(name) for i, name in manifest["tasks"].items() if is_plain_name(str(name))}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        note(f"{MANIFEST} cannot be used ({type(error).__name__}): tasks are looked for by their index")
        return {}


def _as_json(report: Report, problems: list[str], checked: int, extra: list[str]) -> dict[str, Any]:
    return {
        "ok": not problems,
        "problems": problems,
        "job_id": report.job.hex() if report.job else None,
        "name": report.spec.name if report.spec else None,
        "submitter": report.submitter,
        "statements": report.statements,
        "tasks": len(report.tasks),
        "settled": sum(1 for t in report.tasks if t.outcome == "accepted"),
        "failed": sum(1 for t in report.tasks if t.outcome != "accepted"),
        "files_checked": checked,
        "files_unknown": extra,
    }


def _show(report: Report, problems: list[str], checked: int, extra: list[str], results: Path | None) -> None:
    if report.job is not None and report.spec is not None:
        settled = [t for t in report.tasks if t.outcome == "accepted"]
        workers = {r.worker for t in report.tasks for r in t.replicas}
        judges = {peer for t in report.tasks for peer in t.judges}
        spent = sum(r.cpu_ms for t in report.tasks for r in t.replicas)
        say(f"job {report.job.hex()}")
        say(f"{safe(report.spec.name)}, submitted by {safe(report.submitter)}")
        say(f"{len(settled)} of {report.spec.tasks} tasks settled, {len(report.tasks) - len(settled)} failed")
        say(f"{report.statements} signed statements, of {len(workers)} workers and {len(judges)} stewards")
        say(f"{show_duration(spent)} of processor time, as the workers said")
    if results is not None and report.spec is not None:
        say(f"{checked} result files checked")
        for name in extra[:PROBLEMS_SHOWN]:
            note(f"not spoken of by the certificate: {safe(name)}")
    for problem in problems[:PROBLEMS_SHOWN]:
        say(f"PROBLEM: {safe(problem)}")
    if len(problems) > PROBLEMS_SHOWN:
        say(f"... and {len(problems) - PROBLEMS_SHOWN} more")
    say("NOT VERIFIED" if problems else "verified: every signature holds, and the arithmetic was repeated")
