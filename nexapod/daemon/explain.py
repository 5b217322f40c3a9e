"""`why`: in words, why this node does (not) work, and why a job's tasks are (not) placed. Reads the node only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from nexapod.protocol.matching import satisfies
from nexapod.protocol.node import JobEntry, Node
from nexapod.protocol.types import JobId, PeerId


def why_node(node: Node, stalled: str) -> dict[str, Any]:
    """What this node does and what keeps it from doing more: {working, sentences, jobs: [{job_id, name, reason}]}."""
    attempts = list(node.worker.attempts.values())
    running = [a for a in attempts if a.state == "running"]
    sentences: list[str] = []
    if stalled:
        sentences.append(f"Nothing is said to other peers at the moment: {stalled}")
    if node.worker.paused:
        sentences.append("This peer is paused and takes no tasks: nexapod resume lets it go on.")
    jobs = [_job_reason(node, entry) for entry in node.jobs.values() if entry.state == "active"]
    if running:
        slots = node.worker.profile.slots if node.worker.profile else 0
        sentences.append(f"{len(running)} of {slots} slots are running tasks.")
    elif not jobs:
        sentences.append("No active job is known: there is nothing to do.")
    else:
        sentences.append("No task is running here.")
    waiting = Counter(a.state for a in attempts if a.state in ("committed", "revealed"))
    if waiting["committed"]:
        sentences.append(f"{waiting['committed']} results wait for another peer's result before they are shown.")
    if waiting["revealed"]:
        sentences.append(f"{waiting['revealed']} results wait for the verdict of their stewards.")
    for job in jobs:
        sentences.append(f"Job {job['job_id'][:12]} ({job['name']}): {job['reason']}.")
    return {"working": bool(running), "sentences": sentences, "jobs": jobs}


def why_alone(node: Node, bootstrap: Sequence[str], foreign: Mapping[PeerId, str]) -> list[str]:
    """Why no peer is linked; nothing when one is. `foreign`: peers of other networks that answered, and their names."""
    if node.ctx.directory.links:
        return []
    sentences = ["No peer is connected."]
    for peer, network in foreign.items():
        name = f"the network {network}" if network else "no network of NEXAPod's"
        sentences.append(f"Peer {peer} belongs to {name}, this one to {node.network}: check --network and --bootstrap.")
    if bootstrap and not foreign:
        sentences.append(f"None of the {len(bootstrap)} bootstrap addresses answers: check that a daemon runs there.")
    if not bootstrap:
        sentences.append("No bootstrap peer is named: give a running daemon's address with --bootstrap.")
    return sentences


def _job_reason(node: Node, entry: JobEntry) -> dict[str, Any]:
    job = JobId(entry.statement.id)
    decision = node.worker.decide(entry.statement)
    reason = decision.reason
    if decision.ok:
        mine = [a for a in node.worker.attempts.values() if a.task.job == job]
        if mine:
            states = Counter(a.state for a in mine)
            reason = "this peer has " + ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
        else:
            reason = "it satisfies this peer's policy; its stewards have no open task for this peer now"
    return {"job_id": job.hex(), "name": entry.spec.name, "ok": decision.ok, "reason": reason}


def why_job(node: Node, job: JobId, bootstrap: Sequence[str], foreign: Mapping[PeerId, str]) -> dict[str, Any]:
    """Why tasks of a job are not placed: no peer is linked (see why_alone), how many known peers each constraint
    excludes.
    """
    entry = node.jobs[job]
    spec = entry.spec
    excluded: Counter[str] = Counter()
    able = 0
    for peer, known in sorted(node.ctx.directory.known.items()):
        if not node.ctx.directory.live(peer, node.ctx.now):
            excluded["has not been reachable of late"] += 1
            continue
        decision = satisfies(known.profile, spec)
        if decision.ok:
            able += 1
        else:
            excluded[decision.reason] += 1
    sentences = [_able_sentence(able, spec.validate.agree)]
    sentences += [f"{count} excluded: {reason}." for reason, count in excluded.most_common()]
    submission = node.submissions.get(job)
    if entry.state != "active":
        sentences.insert(0, f"The job is {entry.state}: nothing is left to place.")
    elif submission is not None:
        sentences.insert(0, _progress_sentence(spec.tasks, submission.decided, submission.views))
        if not submission.placed:
            sentences[1:1] = why_alone(node, bootstrap, foreign)
            sentences.append("Its stewards do not hold the job and its inputs yet: keep this daemon running.")
    return {
        "job_id": job.hex(),
        "known_peers": len(node.ctx.directory.known),
        "able": able,
        "needed": spec.validate.agree,
        "excluded": [{"reason": reason, "peers": count} for reason, count in excluded.most_common()],
        "sentences": sentences,
    }


def _able_sentence(able: int, agree: int) -> str:
    if able >= agree:
        return f"{able} known peers can run it; each task needs {agree} that agree."
    return f"Only {able} known peers can run it, and each task needs {agree} that agree: it waits for more peers."


def _progress_sentence(tasks: int, decided: dict[int, Any], views: dict[int, Any]) -> str:
    active = sum(1 for view in views.values() for task in view.active if task.task not in decided)
    waiting = tasks - len(decided) - active
    return f"Of {tasks} tasks {len(decided)} are decided, {active} are being worked on, {waiting} wait for a worker."
