"""Closes a job: nothing but this is final (docs/protocol.md, 7 and 8).

Before it signs, it writes the certificate and has it checked as any stranger would, from its bytes alone, one shard at
a time. What caretakers have done counts only once the user has accepted it.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from typing import TYPE_CHECKING

from nexapod.protocol import limits
from nexapod.protocol.certificate.build import EvidenceDigest, envelopes
from nexapod.protocol.certificate.check import Checker
from nexapod.protocol.certificate.report import Pins
from nexapod.protocol.context import Context
from nexapod.protocol.notices import JobSettled, RatificationNeeded
from nexapod.protocol.primitives import Digest, Millis, StatementId
from nexapod.protocol.records import Record
from nexapod.protocol.submitter import records
from nexapod.protocol.submitter.deciding import Deciding
from nexapod.protocol.wire.bodies import Settlement
from nexapod.protocol.wire.statements import Statement

if TYPE_CHECKING:
    from nexapod.protocol.job import JobState

_STATEMENTS_AT_ONCE = 128


class Settling:
    """The end of one submission."""

    def __init__(self, ctx: Context, job: JobState, deciding: Deciding) -> None:
        self.ctx = ctx
        self.job = job
        self.problems: tuple[str, ...] = ()
        """Why the last certificate was not signed."""
        self.unratified: tuple[int, ...] = ()
        """Shards that caretakers have held, and whose user has not accepted that."""
        self._deciding = deciding
        self._ratified: dict[StatementId, None] = {}
        self._asked: tuple[StatementId, ...] = ()
        self._work: Iterator[None] | None = None
        self._version = -1
        """That of the job when the present work began; of the last one that was refused."""
        self._failures = 0
        self._retry_at: Millis | None = None

    # --- time ------------------------------------------------------------------------------------------------------
    @property
    def ready(self) -> bool:
        """Every task is decided, by verdicts that count, and every output is here."""
        deciding = self._deciding
        return len(deciding.finished) == self.job.spec.shards and deciding.fetching.idle and not self.job.closed

    @property
    def deadline(self) -> Millis | None:
        if not self.ready or self.unratified:
            return None
        return self._retry_at if self._retry_at is not None else self.ctx.now

    def tick(self) -> None:
        """One step of the work: a shard's ids, or some hundred statements checked."""
        if not self.ready or (self._retry_at is not None and self.ctx.now < self._retry_at):
            return
        if self._work is None or self._version != self.job.version:
            self._work, self._version = self._settle(), self.job.version
        self._retry_at = None
        if next(self._work, self) is self:
            self._work = None

    def job_changed(self) -> None:
        """A certificate that was refused may be right now."""
        if self._version != self.job.version:
            self._retry_at = None
            self._failures = 0

    # --- caretakers ------------------------------------------------------------------------------------------------
    def check_caretakers(self) -> bool:
        """Whether the user has accepted all that caretakers did; it is asked once for each change."""
        open_ones = [s for s in self.job.caretakers() if s.id not in self._ratified]
        self.unratified = tuple(sorted({statement.body.shard for statement in open_ones}))
        asked = tuple(statement.id for statement in open_ones)
        if open_ones and asked != self._asked:
            self.ctx.notify(RatificationNeeded(self.job.job, self.unratified))
        self._asked = asked
        return not open_ones

    def restore(self, ratified: Iterable[StatementId]) -> None:
        """What the user had accepted."""
        self._ratified.update(dict.fromkeys(sorted(ratified)))

    def ratify(self) -> None:
        """The user accepts what caretakers have done so far; what they do from now on is asked for anew."""
        for statement in self.job.caretakers():
            self._ratified[statement.id] = None
        self.ctx.save(Record(records.RATIFIED, bytes(self.job.job), b"".join(self._ratified)))
        self.check_caretakers()

    # --- the work --------------------------------------------------------------------------------------------------
    def _settle(self) -> Iterator[None]:
        """Yields between steps, so that a job of many shards does not hold up the node."""
        if not self.check_caretakers():
            return
        ratified = tuple(sorted(statement.id for statement in self.job.caretakers()))
        if len(ratified) > limits.RATIFIED_MAX:
            self._refuse(
                (f"caretakers took over {len(ratified)} times, at most {limits.RATIFIED_MAX} can be ratified",)
            )
            return
        digest = yield from self._digest()
        deciding = self._deciding
        body = Settlement(self.job.job, deciding.accepted, deciding.failed, digest, ratified)
        settlement = self.ctx.sign(body)
        problems = yield from self._check(settlement)
        if problems:
            self._refuse(problems)
        else:
            self._speak(settlement)

    def _digest(self) -> Generator[None, None, Digest]:
        """What the settlement signs. The ids are kept, so that the certificate is the same after a restart."""
        signed = EvidenceDigest()
        job_level = [s.id for s in self.job.statements() if s.kind not in ("cancel", "settlement")]
        self._add_part(signed, bytes(self.job.job), job_level)
        for shard in range(self.job.spec.shards):
            key = records.shard_key(self.job.job, shard)
            self._add_part(signed, key, self._deciding.keep(shard))
            yield
        return signed.digest()

    def _add_part(self, signed: EvidenceDigest, key: bytes, ids: list[StatementId]) -> None:
        signed.add_part(ids)
        self.ctx.save(Record(records.SETTLED, key, b"".join(sorted(ids))))

    def _check(self, settlement: Statement) -> Generator[None, None, tuple[str, ...]]:
        """What a stranger would find wrong with the certificate."""
        checker = Checker(self.ctx.verify, Pins(self.ctx.me), None)
        for number, envelope in enumerate(envelopes(self.job, self._deciding.evidence(), settlement), start=1):
            checker.take(envelope)
            if number % _STATEMENTS_AT_ONCE == 0:
                yield
        checker.finish()
        return checker.report(0).problems

    def _refuse(self, problems: tuple[str, ...]) -> None:
        self.problems = problems
        self._retry_at = self.ctx.now + min(limits.FETCH_RETRY_MS << min(self._failures, 16), limits.FETCH_RETRY_MAX_MS)
        self._failures += 1
        self.ctx.trace("certificate_refused", job=self.job.job, problems=problems)

    def _speak(self, settlement: Statement) -> None:
        self.problems = ()
        self.ctx.save(Record(records.JOB, self.job.job + settlement.id, settlement.envelope))
        body: Settlement = settlement.body
        for peer in dict.fromkeys((self.ctx.me, *self.job.members())):
            self.ctx.deliver(peer, [settlement], self.job.addrs(peer))
        self.ctx.notify(JobSettled(self.job.job, body.settled, body.failed))
