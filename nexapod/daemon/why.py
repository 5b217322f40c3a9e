"""`why`: in words, why this node does (not) work, and why a job does (not) move. Reads reports of the core. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from nexapod.daemon.job_views import failing_view
from nexapod.protocol.notices import TaskFailing
from nexapod.protocol.primitives import PeerId
from nexapod.protocol.report import JobReport, NodeReport, PeerReport, SubmissionReport, TaskReport
from nexapod.protocol.rules.matching import satisfies

LOG_LINES_SHOWN: Final = 5
FAILURES_SHOWN: Final = 3
PEERS_SHOWN: Final = 4
ADMITTED_MS: Final = 10_000
"""So long after a job became known whoever would work for it has been admitted."""
BY_ADDRESS: Final = (
    "In this network all peers in one block of addresses (a /24 or /48) count as one operator, and those on this very "
    "machine for none: for machines of your own start the daemons in a network of your own, --network NAME."
)


# --- this node -----------------------------------------------------------------------------------------------------
def why_node(report: NodeReport, jobs: Sequence[JobReport], stalled: str) -> dict[str, Any]:
    """What this node does and what keeps it from doing more: {working, sentences, jobs: [{job_id, name, ok, reason}]}.

    `jobs`: those of the open ones that are told of. `stalled`: why nothing is said to peers; empty: it is.
    """
    states = Counter(attempt.state for attempt in report.attempts)
    held = Counter(attempt.task.job for attempt in report.attempts)
    told = [_job_reason(job, held[job.job]) for job in jobs if job.standing == "open"]
    sentences = [f"Nothing is said to other peers at the moment: {stalled}"] if stalled else []
    if report.paused:
        sentences.append("This peer is paused and takes no tasks: `nexapod resume` ends that.")
    if report.draining:
        sentences.append("This peer is shutting down and takes no tasks.")
    sentences += _work(report, states, idle=not report.jobs)
    if report.steward_shards:
        shards, kept = _count(report.steward_shards, "shard"), _count(len(report.stewardships), "job")
        sentences.append(f"As a steward it keeps {shards} of {kept}.")
    sentences += [f"Job {job['job_id'][:12]} ({job['name']}): {job['reason']}." for job in told]
    more = len(report.jobs) - len(told)
    if more > 0:
        sentences.append(f"{_count(more, 'more open job')} {_verb(more, 'is')} known.")
    return {"working": bool(states["running"]), "sentences": sentences, "jobs": told}


def _work(report: NodeReport, states: Mapping[str, int], *, idle: bool) -> Iterator[str]:
    slots = 0 if report.profile is None else report.profile.slots
    if states["running"]:
        yield f"{states['running']} of {_count(slots, 'slot')} are running tasks."
    elif idle:
        yield "No open job is known: there is nothing to do."
    else:
        yield "No task is running here."
    for state, why in _WAITS.items():
        if states[state]:
            yield f"{_count(states[state], 'task')} {_verb(states[state], 'waits')} {why}."


_WAITS: Final = {
    "claimed": "until most of the stewards have granted it",
    "granted": "for a slot or for inputs",
    "committed": "for other workers' results before this one's is shown",
    "revealed": "for the verdict of the stewards",
}


def _job_reason(job: JobReport, held: int) -> dict[str, Any]:
    reason = job.work
    if job.works:
        mine = f"this peer holds {_count(held, 'task')} of it"
        reason = f"{job.work}; {mine if held else 'its stewards have no task for this peer now'}"
    return {"job_id": job.job.hex(), "name": job.name, "ok": job.works, "reason": reason}


def why_alone(report: NodeReport, bootstrap: Sequence[str], foreign: Mapping[PeerId, str]) -> list[str]:
    """Why no peer is linked; nothing when one is. `foreign`: peers of other networks that answered, and their names."""
    if report.links:
        return []
    sentences = ["No peer is connected."]
    for peer, network in foreign.items():
        name = f"the network {network}" if network else "no network of NEXAPod's"
        sentences.append(
            f"Peer {peer} belongs to {name}, this one to {report.network}: check --network and --bootstrap."
        )
    if bootstrap and not foreign:
        sentences.append(
            "The only bootstrap address does not answer: check that a daemon runs there."
            if len(bootstrap) == 1
            else f"None of the {len(bootstrap)} bootstrap addresses answers: check that a daemon runs there."
        )
    if not bootstrap:
        sentences.append("No bootstrap peer is named: give a running daemon's address with --bootstrap.")
    return sentences


# --- a job ---------------------------------------------------------------------------------------------------------
def why_job(
    report: JobReport, peers: Sequence[PeerReport], tasks: Sequence[TaskReport], alone: Sequence[str]
) -> dict[str, Any]:
    """Why a job does (not) move, what is wrong first.

    `tasks`: of those that this peer can speak of, the ones to look for failures in. `alone`: see why_alone.
    """
    able, groups, excluded = _able(report, peers)
    mine, spec = report.submission, report.spec
    sentences: list[str] = []
    if report.standing != "open":
        sentences.append(f"The job is {report.standing}: nothing is left to do.")
    if mine is not None:
        sentences += _failures(mine, tasks)
        sentences += _progress(report, mine, tasks) if report.standing == "open" else ()
    if report.standing == "open":
        sentences += _placing(report, mine, alone)
        sentences += _workers(report, able, groups)
        sentences += [f"{count} excluded: {reason}." for reason, count in excluded.most_common()]
        if mine is None:
            sentences.append(f"This peer: {report.work}.")
    if mine is not None and mine.rests_on:
        sentences.append(mine.rests_on)
    return {
        "job_id": report.job.hex(),
        "known_peers": len(peers),
        "able": able,
        "groups": groups,
        "needed": spec.validate.agree,
        "excluded": [{"reason": reason, "peers": count} for reason, count in excluded.most_common()],
        "failing": None if mine is None or mine.failing is None else failing_view(mine.failing),
        "sentences": sentences,
    }


def _able(report: JobReport, peers: Sequence[PeerReport]) -> tuple[int, int, Counter[str]]:
    """Peers that could run it, this one included; the operator groups that they are in; why the others cannot."""
    excluded: Counter[str] = Counter()
    groups: set[str] = set()
    able = int(report.works)
    for peer in peers:
        reason = _exclusion(report, peer)
        if reason:
            excluded[reason] += 1
        else:
            able += 1
            groups.add(peer.group or "")
    return able, len(groups) + int(report.works), excluded


def _exclusion(report: JobReport, peer: PeerReport) -> str:
    if not peer.lately:
        return "has not been connected of late"
    if peer.profile is None:
        return "has not said what it is"
    decision = satisfies(peer.profile, report.spec)
    if not decision.ok:
        return decision.reason
    return "" if peer.group else "its address puts it in no operator group, so its results count for nothing"


def _failures(mine: SubmissionReport, tasks: Sequence[TaskReport]) -> Iterator[str]:
    if mine.failing is not None:
        yield from _first_failure(mine.failing)
    failed = [task for task in tasks if task.standing == "failed"]
    for task in failed[:FAILURES_SHOWN]:
        yield f"Task {task.task} has failed: {task.reason}."
    if mine.failed > len(failed[:FAILURES_SHOWN]) > 0:
        yield f"{_count(mine.failed, 'task')} {_verb(mine.failed, 'has')} failed in all."


def _first_failure(failing: TaskFailing) -> Iterator[str]:
    reason = "" if failing.reason in ("", f"exit status {failing.exit}") else f": {failing.reason}"
    yield f"Task {failing.task} did not end well at {failing.worker} ({failing.outcome}, exit {failing.exit}){reason}."
    lines = failing.log.strip().splitlines()[-LOG_LINES_SHOWN:]
    if lines:
        yield "It printed at its end: " + " / ".join(lines)
    job = failing.job.hex()[:12]
    yield f"What each worker of that task printed: nexapod logs {job} {failing.task}"


def _progress(report: JobReport, mine: SubmissionReport, tasks: Sequence[TaskReport]) -> Iterator[str]:
    waiting = max(0, report.tasks - mine.accepted - mine.failed - mine.running)
    failed = f", {mine.failed} {_verb(mine.failed, 'has')} failed" if mine.failed else ""
    yield (
        f"Of {_count(report.tasks, 'task')} {mine.accepted} {_verb(mine.accepted, 'is')} accepted{failed}, "
        f"{mine.running} {_verb(mine.running, 'is')} being worked on, {waiting} {_verb(waiting, 'waits')} for a worker."
    )
    judged = sum(task.standing == "frozen" for task in tasks)
    if judged:
        yield (
            f"Of these {judged} {_verb(judged, 'has')} results that the stewards judge: where too few "
            "agree, they wait up to a minute for another worker."
        )
    if mine.unratified:
        shards = _count(len(mine.unratified), "shard")
        yield f"Caretakers have decided tasks of {shards} while no quorum was there: `nexapod ratify JOB` accepts that."
    yield from (f"It cannot be settled: {problem}." for problem in mine.problems)


def _placing(report: JobReport, mine: SubmissionReport | None, alone: Sequence[str]) -> Iterator[str]:
    if mine is None or mine.placed:
        if not report.workable:
            yield "Too few of its stewards have signed that they hold it: nobody works on it yet."
        return
    yield from alone
    held, needed = mine.held_least
    yield (
        f"{mine.shards_placed} of {_count(mine.shards, 'shard')} {_verb(mine.shards_placed, 'is')} held by enough "
        f"stewards ({held} of {needed} {_verb(held, 'holds')} the one that fewest do): keep this daemon running."
    )
    for peer, reason in mine.refused[:PEERS_SHOWN]:
        yield f"Steward {peer} refuses it: {reason}."
    if mine.unanswered:
        yield f"{_count(len(mine.unanswered), 'steward')} of it said nothing so far: {_some(mine.unanswered)}."


def _workers(report: JobReport, able: int, groups: int) -> Iterator[str]:
    """`groups`: as this peer guesses, which cannot see in which one others count itself."""
    agree, admitted = report.spec.validate.agree, report.groups
    needs = f"each task needs {_count(agree, 'group')} that {_verb(agree, 'agrees')}"
    known = f"{_count(able, 'known peer')} can run it"
    if admitted >= agree:
        yield f"{known}; {_count(admitted, 'operator group')} {_verb(admitted, 'is')} admitted; {needs}."
    elif groups >= agree and not (report.workable and report.age_ms >= ADMITTED_MS):
        yield f"{known}, in up to {_count(groups, 'operator group')}; {needs}."
    else:
        counted = min(groups, admitted) if report.workable and report.age_ms >= ADMITTED_MS else groups
        yield f"Only {known}, in {_count(counted, 'operator group')}, and {needs}: it waits for more peers."
        if report.spec.policy.grouping == "network":
            yield BY_ADDRESS


# --- words ---------------------------------------------------------------------------------------------------------
_PLURALS: Final = {"is": "are", "has": "have"}


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _verb(number: int, singular: str) -> str:
    return singular if number == 1 else _PLURALS.get(singular, singular.removesuffix("s"))


def _some(peers: Sequence[PeerId]) -> str:
    return ", ".join(peers[:PEERS_SHOWN]) + (" ..." if len(peers) > PEERS_SHOWN else "")
