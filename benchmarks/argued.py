"""Mutants that were read, and change nothing that a rule says: equivalent, or a matter of speed (mutation.py).

What survives and is not here is a gap of the worlds or of the checkers, or has not been read.
"""

from __future__ import annotations

from typing import Final

ARGUED: Final[dict[tuple[str, str, str], str]] = {
    (
        "steward.shard.steward",
        'if statement.kind == "verdict":',
        "if True for statement.kind == 'verdict'",
    ): "after a restart the submitter is also told of tasks that are only frozen, and counts that for what it is",
    (
        "steward.shard.steward",
        "if job.was_member(peer) and not job.closed and (last is None or now - last >= limits.ASK_AGAIN_MS):",
        "+/- in now - last",
    ): "speed: the job is asked for more often",
    (
        "steward.shard.steward",
        "if answers:",
        "if True for answers",
    ): "a message that says nothing",
    (
        "steward.shard.steward",
        "found.sort(key=lambda statement: (restoring.RANK.get(statement.kind, 9), statement.id))",
        "leave out found.sort(key=lambda statement: (restoring.RANK.get(stateme",
    ): "speed: what came before what it answers is asked for again",
    (
        "steward.shard.signed",
        "if any(w >= len(body.workers) or c >= len(body.commits) for w, c in item.entries):",
        "all for any",
    ): "a freeze with such a place is refused before it is looked at here (facts/freezes.py)",
    (
        "steward.shard.assigning",
        "items = _Dealing(opened, by_group, first, account).deal() if by_group else _Dealt((), {}, 0)",
        "if True for by_group",
    ): "dealing to nobody deals nothing",
    (
        "steward.shard.granting",
        "if item.checkpoint is not None and self._checkpoints.find(item.task, item.checkpoint) is None:",
        "if False for item.checkpoint is not None and self._checkpoints.find(item.",
    ): "a worker resumes only what a quorum of seats has handed it, and this seat does not hand out what it lacks",
    (
        "steward.gate.admitting",
        "if sender in state.seats.holders:",
        "if True for sender in state.seats.holders",
    ): "what a stranger passes on has a holder's signature, and that holder could have said it itself",
    (
        "steward.tenure.ballots",
        "if value is not None and len(value) == 37:",
        "if True for value is not None and len(value) == 37",
    ): "what lies on the disk is what was written there",
    (
        "facts.adoptions",
        "if statement.id in self._table.founded:",
        "if True for statement.id in self._table.founded",
    ): "gathering what is there already comes to the same",
    (
        "steward.gate.gate",
        "for peer in self._audience(current) if current.proposed else self._state.others:",
        "if True for current.proposed",
    ): "speed: those are told by two seats whom one has told",
    (
        "rules.agreement",
        "if contested:",
        "if True for contested",
    ): "the words in which a failure is told",
    (
        "certificate.tally",
        "self.more += 1",
        "2 for 1",
    ): "how many problems a report leaves untold; it is refused all the same",
}
"""(module, the line without its indentation, the change) -> why."""
