"""This peer in the act of working: it picks tasks, bids, runs, commits, reveals (docs/protocol.md, Worker).

One Attempt a task. An attempt's states and what moves it on:

    bidding    -> granted     a majority of the stewards granted it         -> dropped  when too few did in time
    granted    -> running     a slot is free
    running    -> committed   the task ended with a result                  -> dropped  when it is to be tried elsewhere
    committed  -> revealed    a majority of stewards showed enough other commits
    revealed   -> (done)      a majority of stewards signed one verdict
    any        -> (done)      a steward says that the task is settled or closed

An attempt that is committed is on disk before the commit is spoken of, and outlives this process.
"""

from __future__ import annotations

from collections.abc import Iterator

from nexapod.protocol import limits, tickets
from nexapod.protocol.attempts import (
    ATTEMPT_RECORD,
    Attempt,
    done_record,
    lineage_of,
    record_key,
    record_of,
    restored,
    task_of_key,
)
from nexapod.protocol.capacity import room_for
from nexapod.protocol.context import Context, Owner
from nexapod.protocol.errors import PeerError
from nexapod.protocol.events import Run, Stop
from nexapod.protocol.matching import Decision, Policy, accepts, satisfies
from nexapod.protocol.messages import (
    AskLog,
    Grant,
    Held,
    Query,
    Release,
    Renew,
    Stage,
    Status,
    TaskLog,
    TaskStatus,
    View,
)
from nexapod.protocol.prospects import Outlook, Prospect
from nexapod.protocol.quorum import majority
from nexapod.protocol.records import Record
from nexapod.protocol.statements import (
    Bid,
    Checkpoint,
    Commit,
    Reveal,
    Statement,
    Verify,
    commitment,
    decode,
    output_root,
)
from nexapod.protocol.types import (
    EXIT_TRY_ELSEWHERE,
    File,
    JobId,
    JobSpec,
    Millis,
    Part,
    PeerId,
    Profile,
    RunResult,
    StatementId,
    TaskId,
)

BATCH_MS = 1_500
"""A bid asks for about as much work as a slot does in this time, so that short tasks do not wait for a round trip."""
ELSEWHERE_PAUSE_MS = 60_000
ELSEWHERE_MAX = 5
"""After so many tasks in a row that this machine could not run, it pauses; and after so many in a row of one job that
asked for another machine, it leaves that job alone as long."""
RANK_MAX = 48
"""A worker with a worse rank for a task does not bid until the job has been announced again."""


class Worker:
    """The machine. `policy` is what the owner allows; `profile` what the machine is."""

    def __init__(self, ctx: Context, verify: Verify, policy: Policy) -> None:
        self.ctx = ctx
        self.verify = verify
        self.policy = policy
        self.profile: Profile | None = None
        self.draining = False
        self.paused = False
        self.prospects: dict[JobId, Prospect] = {}
        self.attempts: dict[TaskId, Attempt] = {}
        self._bid_nonce = 0
        self._renew_at: Millis | None = None
        self._choose_at: Millis | None = None
        self._elsewhere = 0
        self.paused_until: Millis = 0

    # --- time ------------------------------------------------------------------------------------------------------
    @property
    def deadline(self) -> Millis | None:
        times = [t for t in (self._renew_at, self._choose_at) if t is not None]
        times += [a.retry_at for a in self.attempts.values() if a.state in ("bidding", "committed", "revealed")]
        return min(times) if times else None

    def tick(self) -> None:
        now = self.ctx.now
        for attempt in list(self.attempts.values()):
            if attempt.state == "bidding" and attempt.retry_at <= now:
                self._weigh_bid(attempt, late=True)
                self._start_granted()
            elif attempt.state in ("committed", "revealed") and attempt.retry_at <= now:
                self._repeat(attempt)
        if self._renew_at is not None and self._renew_at <= now:
            self._renew()
        if self._choose_at is not None and self._choose_at <= now:
            self._choose_at = None
            self.choose()

    def _wake(self, when: Millis) -> None:
        self._choose_at = when if self._choose_at is None else min(self._choose_at, when)

    # --- jobs ------------------------------------------------------------------------------------------------------
    def job_known(self, statement: Statement) -> None:
        """A job is active: it may be work. Also called when it is announced again."""
        job = JobId(statement.id)
        prospect = self.prospects.get(job)
        if prospect is not None:
            prospect.announcements += 1
            for outlook in prospect.shards.values():
                outlook.query_ms = limits.POLL_MS
        else:
            self.prospects[job] = Prospect(statement, self.ctx.now)
        self._wake(self.ctx.now)

    def drain(self) -> None:
        """Take nothing new: what has not begun is given back, what runs goes on."""
        self.draining = True
        for attempt in [a for a in self.attempts.values() if a.state in ("bidding", "granted")]:
            self._give_up(attempt)

    def pause(self, paused: bool) -> None:
        """While the owner wants the machine: nothing new is taken, what has not begun is given back, and the leases of
        what runs, frozen by the driver, are kept alive. So are those of what a former process ran: its sandboxes may be
        there, frozen as it left them."""
        self.paused = paused
        if paused:
            for attempt in [a for a in self.attempts.values() if a.state in ("bidding", "granted")]:
                if not attempt.interrupted:
                    self._give_up(attempt)
        self._wake(self.ctx.now)

    def job_over(self, job: JobId) -> None:
        """Cancelled, settled or forgotten: stop everything of it."""
        prospect = self.prospects.pop(job, None)
        for attempt in [a for a in self.attempts.values() if a.task.job == job]:
            self._drop(attempt)
        for index in sorted(prospect.attempted) if prospect is not None else ():
            self.ctx.save_record(Record(ATTEMPT_RECORD, record_key(TaskId(job, index)), None))
        self.ctx.let_go_all(("worker", job, 0))
        self.ctx.let_go_all(_outputs(job))

    def decide(self, statement: Statement) -> Decision:
        """Would this peer work on this job now, and why (not)?"""
        if self.profile is None:
            return Decision(False, "this peer's hardware has not been probed yet")
        if self.draining:
            return Decision(False, "this peer is draining: it takes no new tasks")
        if self.paused:
            return Decision(False, "this peer is paused: nexapod resume lets it go on")
        decision = accepts(self.policy, statement.author)
        if not decision.ok:
            return decision
        if self.paused_until > self.ctx.now:
            return Decision(False, f"this machine could not run the last {ELSEWHERE_MAX} tasks; it tries again soon")
        prospect = self.prospects.get(JobId(statement.id))
        if prospect is not None and prospect.rest_until > self.ctx.now:
            return Decision(False, f"the last {ELSEWHERE_MAX} tasks of the job asked for another machine than this one")
        return satisfies(self.profile, statement.body)

    # --- choosing --------------------------------------------------------------------------------------------------
    def choose(self) -> None:
        """Bid for as many tasks as there is room for, fairly between submitters, then by ticket."""
        if self.profile is None or self.draining or self.paused:
            return
        self._start_granted()
        if self.paused_until > self.ctx.now:
            self._wake(self.paused_until)
        room = self._room()
        for prospect in self._by_fairness():
            if room <= 0:
                return
            decision = self.decide(prospect.statement)
            if decision.ok:
                room -= self._bid_for(prospect, min(room, self._resources(prospect)))
            elif prospect.rest_until > self.ctx.now:
                self._wake(prospect.rest_until)

    def _room(self) -> int:
        """How many more tasks to ask for: free slots, and for short tasks some ahead."""
        assert self.profile is not None
        pending = [a for a in self.attempts.values() if a.pending]
        return self.profile.slots * self._ahead() - len(pending)

    def _ahead(self) -> int:
        """How many tasks to hold for each that can run."""
        expected = [p.expected_ms for p in self.prospects.values() if p.expected_ms]
        return max(1, min(limits.BID_TASKS_MAX, BATCH_MS // max(1, min(expected)))) if expected else 1

    def _resources(self, prospect: Prospect) -> int:
        """How many more tasks of this job to ask for: what the machine has room for beside other jobs' running tasks,
        and for short tasks some ahead."""
        assert self.profile is not None
        job = prospect.job
        room = room_for(self.profile, prospect.spec, self._running_specs(but=job))
        pending = [a for a in self.attempts.values() if a.task.job == job and a.pending]
        return room * self._ahead() - len(pending)

    def _running_specs(self, but: JobId | None = None) -> list[JobSpec]:
        return [
            self.prospects[a.task.job].spec
            for a in self.attempts.values()
            if a.occupies and a.task.job != but and a.task.job in self.prospects
        ]

    def _by_fairness(self) -> list[Prospect]:
        """Jobs of the submitters whose tasks this peer has fewest of come first; then priority; then id."""
        load: dict[PeerId, int] = {}
        for attempt in self.attempts.values():
            prospect = self.prospects.get(attempt.task.job)
            if prospect is not None and attempt.pending:
                load[prospect.statement.author] = load.get(prospect.statement.author, 0) + 1
        return sorted(
            self.prospects.values(),
            key=lambda p: (load.get(p.statement.author, 0), -p.spec.priority, p.statement.id),
        )

    def _bid_for(self, prospect: Prospect, room: int) -> int:
        asked = 0
        for shard in prospect.shard_order(self.ctx.me):
            outlook = self._outlook(prospect, shard)
            if outlook.done:
                continue
            tasks = self._pick(prospect, shard, outlook, min(room - asked, limits.BID_TASKS_MAX))
            if tasks:
                self._send_bid(prospect, shard, tasks)
                asked += len(tasks)
            elif not outlook.open:
                self._poll(prospect, shard, outlook)
            if asked >= room:
                break
        return asked

    def _outlook(self, prospect: Prospect, shard: int) -> Outlook:
        return prospect.outlook(shard, self.ctx.me, self.ctx.now, self.attempts)

    def _believe_open(self, prospect: Prospect, outlook: Outlook, tasks: tuple[int, ...]) -> None:
        prospect.believe_open(outlook, tasks, self.ctx.me, self.ctx.now, self.attempts)

    def _pick(self, prospect: Prospect, shard: int, outlook: Outlook, most: int) -> list[int]:
        """The open tasks whose turn it is, smallest tickets first. Sets the alarm for the next one's turn."""
        job = prospect.job
        eligible = self.ctx.directory.eligible(job, prospect.spec, self.ctx.now)
        rank_max = RANK_MAX << min(prospect.announcements - 1, 16)
        picked: list[int] = []
        for value, task in outlook.open:
            if len(picked) >= most:
                break
            if tickets.rank(value, eligible) > rank_max:
                break
            turn = outlook.since + tickets.bid_delay(value, eligible, prospect.spec.validate.agree)
            if turn > self.ctx.now:
                self._wake(turn)
                break
            picked.append(task)
        chosen = set(picked)
        outlook.open = [item for item in outlook.open if item[1] not in chosen]
        return picked

    def _send_bid(self, prospect: Prospect, shard: int, tasks: list[int]) -> None:
        profile = self.ctx.directory.known.get(self.ctx.me)
        stewards = self.ctx.stewards(prospect.job, shard)
        if profile is None or not stewards:
            self._wake(self.ctx.now + limits.RETRY_MIN_MS)
            outlook = prospect.shards[shard]
            self._believe_open(prospect, outlook, (*tasks, *(task for _, task in outlook.open)))
            return
        job = prospect.job
        self._bid_nonce += 1
        body = Bid(job, shard, tuple(tasks), prospect.expected_ms, profile.statement.id, self._bid_nonce)
        bid = self.ctx.sign(body)
        self.ctx.trace("bid", job=job, tasks=tasks)
        for task in tasks:
            attempt = Attempt(TaskId(job, task), "bidding", bid, self.ctx.now)
            attempt.retry_at = self.ctx.now + limits.BID_ANSWER_MS
            attempt.size = len(stewards)
            self.attempts[attempt.task] = attempt
        for steward in stewards:
            self.ctx.offer(steward, [bid])

    def _poll(self, prospect: Prospect, shard: int, outlook: Outlook) -> None:
        """Nothing is open that we know of: ask, ever more rarely, and the worse our ticket the more rarely."""
        job = prospect.job
        if outlook.query_at > self.ctx.now:
            self._wake(outlook.query_at)
            return
        stewards = self.ctx.stewards(job, shard)
        if stewards:
            turn = self.ctx.now // max(1, outlook.query_ms) % len(stewards)
            self.ctx.send(stewards[turn], Query(job, shard))
        eligible = self.ctx.directory.eligible(job, prospect.spec, self.ctx.now)
        own = tickets.rank(tickets.ticket(TaskId(job, shard * limits.SHARD_TASKS), self.ctx.me), eligible)
        spread = max(1, own // 16)
        outlook.query_at = self.ctx.now + min(outlook.query_ms, limits.POLL_MAX_MS) * spread
        outlook.query_ms = min(outlook.query_ms * 3 // 2, limits.POLL_MAX_MS)
        self._wake(outlook.query_at)

    def on_view(self, message: View) -> None:
        """A steward says what is open."""
        prospect = self.prospects.get(message.job)
        if prospect is None or not 0 <= message.shard < prospect.spec.shards:
            return
        outlook = self._outlook(prospect, message.shard)
        everything = prospect.spec.shard_tasks(message.shard)
        opened = tuple(task for task in message.open if task in everything)
        before = {task for _, task in outlook.open}
        self._believe_open(prospect, outlook, opened)
        if any(task not in before for _, task in outlook.open):
            outlook.since = self.ctx.now
            outlook.query_ms = limits.POLL_MS
        outlook.done = len(message.settled) + len(message.failed) >= len(everything)
        self.choose()

    # --- leases ----------------------------------------------------------------------------------------------------
    def on_grant(self, steward: PeerId, message: Grant) -> None:
        stewards = self.ctx.stewards(message.job, message.shard)
        if steward not in stewards:
            return
        for attempt in self._of_bid(message.job, message.bid):
            if attempt.state != "bidding":
                continue
            if attempt.task.index in message.granted:
                attempt.granted_by.add(steward)
                self._note_checkpoints(attempt, steward, message.checkpoints)
            else:
                attempt.refused_by.add(steward)
            self._weigh_bid(attempt, late=False)
        self._start_granted()

    def _weigh_bid(self, attempt: Attempt, *, late: bool) -> None:
        """What the answers to a bid come to. `late`: no more of them are waited for."""
        stewards = set(self.ctx.stewards(attempt.task.job, attempt.task.shard))
        granted, refused, needed = attempt.granted_by & stewards, attempt.refused_by & stewards, self._needed(attempt)
        if len(granted) < needed:
            if late or len(stewards) - len(refused) < needed:
                self._give_up(attempt)
            return
        basis = _agreed_checkpoint(attempt, needed)
        if basis is None and attempt.offered and not late and len(granted | refused) < len(stewards):
            return  # with one more answer there may be a checkpoint to go on from
        attempt.state = "granted"
        attempt.basis = basis

    def _needed(self, attempt: Attempt) -> int:
        """A majority of the most stewards that its shard was seen to have: whoever wakes up, or is cut off, beside one
        of them alone must not take its word for that of all."""
        attempt.size = max(attempt.size, len(self.ctx.stewards(attempt.task.job, attempt.task.shard)))
        return majority(attempt.size)

    def _note_checkpoints(self, attempt: Attempt, steward: PeerId, envelopes: tuple[bytes, ...]) -> None:
        """A steward gives, with its grant, what other workers had kept of the task."""
        for envelope in envelopes:
            statement = decode(envelope, self.verify)
            body = statement.body
            if not isinstance(body, Checkpoint):
                raise PeerError("bad-checkpoint", f"a steward gives a {statement.kind} with a grant")
            if (body.job, body.task) == (attempt.task.job, attempt.task.index):
                attempt.offered.setdefault(statement.id, (statement, set()))[1].add(steward)

    def _of_bid(self, job: JobId, bid: StatementId) -> Iterator[Attempt]:
        return iter([a for a in self.attempts.values() if a.bid.id == bid and a.task.job == job])

    def _give_up(self, attempt: Attempt) -> None:
        """Too few stewards granted the task, or none answered: give back what some may have granted."""
        del self.attempts[attempt.task]
        job, shard = attempt.task.job, attempt.task.shard
        for steward in self.ctx.stewards(job, shard):
            if steward not in attempt.refused_by:
                self.ctx.send(steward, Release(job, shard, (attempt.task.index,), False))
        prospect = self.prospects.get(job)
        if attempt.interrupted:
            self.ctx.save_record(Record(ATTEMPT_RECORD, record_key(attempt.task), None))
            self.ctx.let_go_all(_own_checkpoint(attempt.task))
            if prospect is not None:
                prospect.attempted.discard(attempt.task.index)
        if prospect is not None:
            prospect.cool(attempt.task, self.ctx.me, self.ctx.now, limits.RETRY_MIN_MS)
        self._wake(self.ctx.now)

    def _start_granted(self) -> None:
        if self.profile is None:
            return
        if not self.profile.slots:
            # Its owner wants no work here any more: what a former process ran is others' to do.
            for attempt in [a for a in self.attempts.values() if a.state == "granted"]:
                self._give_up(attempt)
            return
        running = sum(1 for a in self.attempts.values() if a.occupies)
        for attempt in [a for a in self.attempts.values() if a.state == "granted"]:
            if running >= self.profile.slots:
                return
            prospect = self.prospects.get(attempt.task.job)
            if prospect is None:
                self._drop(attempt)
            elif room_for(self.profile, prospect.spec, self._running_specs()):
                self._run(attempt, prospect)
                running += 1

    def _run(self, attempt: Attempt, prospect: Prospect) -> None:
        attempt.state = "running"
        attempt.since = self.ctx.now
        prospect.attempted.add(attempt.task.index)
        self._save(attempt)
        for ref in prospect.spec.blobs:
            self.ctx.hold(ref, ("worker", attempt.task.job, 0))
        self.ctx.trace("run", job=attempt.task.job, task=attempt.task.index)
        stewards = self.ctx.stewards(attempt.task.job, attempt.task.shard)
        sources = tuple(p for p in dict.fromkeys((*stewards, prospect.statement.author)) if p != self.ctx.me)
        kept = attempt.basis
        if kept is not None:
            sources = (*sources, *(p for p in (kept.author,) if p not in (*sources, self.ctx.me)))
        files = kept.body.files if kept is not None else ()
        self.ctx.effects.append(Run(attempt.task, prospect.spec, tickets.task_seed(attempt.task), sources, files))
        if self._renew_at is None:
            self._renew_at = self.ctx.now + limits.RENEW_MS

    def progressed(self, task: TaskId, progress: int, log: str) -> None:
        attempt = self.attempts.get(task)
        if attempt is not None:
            attempt.progress = max(0, min(1000, progress))
            attempt.log = log

    def on_ask_log(self, peer: PeerId, message: AskLog) -> None:
        """Whoever submitted the job may see what its tasks print; nobody else."""
        attempt = self.attempts.get(TaskId(message.job, message.task))
        prospect = self.prospects.get(message.job)
        if attempt is not None and prospect is not None and prospect.statement.author == peer:
            self.ctx.send(peer, TaskLog(message.job, message.task, attempt.log))

    def checkpointed(self, task: TaskId, files: tuple[File, ...], continued: bool) -> None:
        """A running task has kept something: its stewards keep it too."""
        attempt = self.attempts.get(task)
        if attempt is None or attempt.state != "running":
            return
        for file in files:
            self.ctx.hold(file.blob, _own_checkpoint(task))
            self.ctx.store_has(Part.whole(file.blob))
        self.ctx.let_go_all(_own_checkpoint(task), but={file.blob for file in files})
        attempt.seq += 1
        lineage = attempt.lineage if continued else ()
        body = Checkpoint(task.job, task.index, attempt.bid.id, attempt.seq, attempt.progress, files, lineage)
        attempt.checkpoint = self.ctx.sign(body)
        self._save(attempt)
        self.ctx.trace("checkpointed", job=task.job, task=task.index, seq=attempt.seq)
        for steward in self.ctx.stewards(task.job, task.shard):
            self.ctx.offer(steward, [attempt.checkpoint])

    def _renew(self) -> None:
        """Tell the stewards, shard by shard, what this worker holds."""
        self._renew_at = None
        by_shard: dict[tuple[JobId, int], list[Held]] = {}
        kept: dict[tuple[JobId, int], list[Statement]] = {}
        for attempt in self.attempts.values():
            if attempt.state == "bidding":
                continue
            if attempt.state == "running" and attempt.checkpoint is not None:
                kept.setdefault((attempt.task.job, attempt.task.shard), []).append(attempt.checkpoint)
            stage: Stage = "running" if attempt.state in ("granted", "running") else attempt.state  # type: ignore[assignment]
            held = Held(attempt.task.index, stage, attempt.bid.id, attempt.progress)
            by_shard.setdefault((attempt.task.job, attempt.task.shard), []).append(held)
        for (job, shard), holdings in sorted(by_shard.items()):
            for steward in self.ctx.stewards(job, shard):
                self.ctx.send(steward, Renew(job, shard, tuple(holdings[: limits.SHARD_TASKS])))
                # It may have had no lease for this worker when it was first offered them, or have failed to fetch them.
                self.ctx.offer(steward, kept.get((job, shard), []))
        if by_shard:
            self._renew_at = self.ctx.now + limits.RENEW_MS

    def peer_up(self, peer: PeerId) -> None:
        """A link is (back) there: if it is a steward's, tell it soon that this worker is alive."""
        places = {(a.task.job, a.task.shard) for a in self.attempts.values() if a.state != "bidding"}
        if any(peer in self.ctx.stewards(job, shard) for job, shard in sorted(places)):
            soon = self.ctx.now + limits.RETRY_MIN_MS
            self._renew_at = soon if self._renew_at is None else min(self._renew_at, soon)

    def reconsider(self) -> None:
        """The set of live peers changed: new stewards must hear of what this worker holds."""
        if any(a.state != "bidding" for a in self.attempts.values()):
            soon = self.ctx.now + limits.RETRY_MIN_MS
            self._renew_at = soon if self._renew_at is None else min(self._renew_at, soon)
        self._wake(self.ctx.now + limits.RETRY_MIN_MS)

    # --- results ---------------------------------------------------------------------------------------------------
    def vacated(self, task: TaskId) -> None:
        """A task has left its slot, and has not finished: the next one need not wait for that."""
        attempt = self.attempts.get(task)
        if attempt is None or attempt.state != "running" or self.profile is None:
            return
        leaving = sum(1 for a in self.attempts.values() if a.state == "running" and a.vacated)
        # What ended tasks have left is on the disk until it has been looked at: no more of it than of what runs.
        if leaving < self.profile.slots:
            attempt.vacated = True
            self._wake(self.ctx.now)
            self._start_granted()

    def finished(self, task: TaskId, result: RunResult) -> None:
        """A task that this worker ran has ended."""
        attempt = self.attempts.get(task)
        if attempt is None or attempt.state != "running":
            return
        if result.outcome == "try-elsewhere":
            self._elsewhere_once(attempt, result)
        else:
            self._elsewhere = 0
            prospect = self.prospects.get(task.job)
            if prospect is not None:
                prospect.elsewhere = 0
            self._commit(attempt, result)
        self._wake(self.ctx.now)
        self._start_granted()

    def _elsewhere_once(self, attempt: Attempt, result: RunResult) -> None:
        prospect = self.prospects.get(attempt.task.job)
        if result.exit == EXIT_TRY_ELSEWHERE:
            # The task's own word: a job that says so of every machine must not stop them all from other work.
            if prospect is not None:
                prospect.elsewhere += 1
                if prospect.elsewhere >= ELSEWHERE_MAX:
                    prospect.elsewhere, prospect.rest_until = 0, self.ctx.now + ELSEWHERE_PAUSE_MS
        else:
            self._elsewhere += 1
            if self._elsewhere >= ELSEWHERE_MAX:
                self._elsewhere, self.paused_until = 0, self.ctx.now + ELSEWHERE_PAUSE_MS
                self._wake(self.paused_until)
        self.ctx.trace("elsewhere", job=attempt.task.job, task=attempt.task.index, reason=result.reason)
        for steward in self.ctx.stewards(attempt.task.job, attempt.task.shard):
            self.ctx.send(steward, Release(attempt.task.job, attempt.task.shard, (attempt.task.index,), True))
        self._drop(attempt, stop=False)
        if prospect is not None:
            # The engine, the disk or a source may be well again by then; and in a small mesh nobody else may be left.
            prospect.attempted.discard(attempt.task.index)
            prospect.cool(attempt.task, self.ctx.me, self.ctx.now, 2 * limits.LEASE_TTL_MS)

    def _commit(self, attempt: Attempt, result: RunResult) -> None:
        prospect = self.prospects.get(attempt.task.job)
        if prospect is None:
            self._drop(attempt, stop=False)
            return
        wall = max(1, result.usage.wall_ms)
        prospect.expected_ms = wall if not prospect.expected_ms else (3 * prospect.expected_ms + wall) // 4
        for file in result.files:
            self.ctx.hold(file.blob, _outputs(attempt.task.job))
            self.ctx.store_has(Part.whole(file.blob))
        task = attempt.task
        attempt.result = result
        attempt.salt = self.ctx.entropy(32)
        root = output_root(result.outcome, result.exit, result.files)
        sealed = commitment(task.job, task.index, self.ctx.me, attempt.salt, root)
        attempt.commit = self.ctx.sign(Commit(task.job, task.index, attempt.bid.id, sealed))
        attempt.state = "committed"
        attempt.progress = 1000
        self._save(attempt)
        self.ctx.trace("committed", job=task.job, task=task.index, outcome=result.outcome)
        self._speak(attempt)

    def _speak(self, attempt: Attempt) -> None:
        """Offer the newest statement; to stewards that may lack the earlier ones, all of them."""
        attempt.acked_by = set()
        attempt.retry_ms = limits.RETRY_MIN_MS
        attempt.retry_at = self.ctx.now + attempt.retry_ms
        for steward in self.ctx.stewards(attempt.task.job, attempt.task.shard):
            self._offer(attempt, steward)

    def _offer(self, attempt: Attempt, steward: PeerId, *, everything: bool = False) -> None:
        assert attempt.commit is not None
        if everything:
            # A steward that cannot take a statement asks for it again at once: neither side may let that spin.
            if attempt.told.get(steward, -limits.RETRY_MIN_MS) + limits.RETRY_MIN_MS > self.ctx.now:
                return
            attempt.told[steward] = self.ctx.now
        known = [] if steward in attempt.granted_by and not everything else [attempt.bid]
        if attempt.reveal is None:
            self.ctx.offer(steward, [*known, attempt.commit])
        elif everything or steward not in attempt.shown_by:
            self.ctx.offer(steward, [attempt.bid, attempt.commit, attempt.reveal])
        else:
            self.ctx.offer(steward, [attempt.reveal])

    def _repeat(self, attempt: Attempt) -> None:
        """Some steward has not answered: say it again, ever more rarely."""
        silent = [s for s in self.ctx.stewards(attempt.task.job, attempt.task.shard) if s not in attempt.acked_by]
        for steward in silent:
            self._offer(attempt, steward, everything=True)
        attempt.retry_ms = min(2 * attempt.retry_ms, limits.RENEW_MS) if silent else limits.RENEW_MS
        attempt.retry_at = self.ctx.now + attempt.retry_ms

    def on_status(self, steward: PeerId, message: Status) -> None:
        """A steward says how our tasks stand."""
        if message.job not in self.prospects:
            return
        for status in message.tasks:
            attempt = self.attempts.get(TaskId(message.job, status.task))
            if attempt is not None and attempt.task.shard == message.shard:
                self._on_task_status(attempt, steward, status)

    def _on_task_status(self, attempt: Attempt, steward: PeerId, status: TaskStatus) -> None:
        match status.standing:
            case "unknown" if attempt.commit is not None:
                self._offer(attempt, steward, everything=True)
            case "unknown":
                self.ctx.offer(steward, [attempt.bid])
            case "held":
                attempt.acked_by.add(steward)
            case "reveal":
                attempt.acked_by.add(steward)
                self._on_shown(attempt, steward, status)
            case "settled":
                for envelope in status.envelopes:
                    self.on_verdict(decode(envelope, self.verify))
            case "closed":
                self._on_closed(attempt, steward)
            case "lost":
                # It may still commit while the task is open; only time was lost.
                self.ctx.trace("lease_lost", job=attempt.task.job, task=attempt.task.index, steward=steward)

    def _on_closed(self, attempt: Attempt, steward: PeerId) -> None:
        stewards = self.ctx.stewards(attempt.task.job, attempt.task.shard)
        attempt.settled_by[steward] = ("closed", b"")
        closed = [s for s in stewards if attempt.settled_by.get(s, ("", b""))[0] == "closed"]
        if len(closed) >= self._needed(attempt):
            self._drop(attempt)

    def _on_shown(self, attempt: Attempt, steward: PeerId, status: TaskStatus) -> None:
        """A steward shows other commits: reveal once a majority has shown enough of them."""
        if attempt.state == "revealed" and attempt.reveal is not None:
            self._offer(attempt, steward, everything=True)
            return
        prospect = self.prospects[attempt.task.job]
        if self.profile is None:
            return  # just started: its hardware is part of what it will show, and the next renewal asks again
        if attempt.state != "committed" or self._others(attempt, status) < prospect.spec.validate.agree - 1:
            return
        stewards = self.ctx.stewards(attempt.task.job, attempt.task.shard)
        attempt.shown_by.add(steward)
        if len(attempt.shown_by & set(stewards)) >= self._needed(attempt):
            self._reveal(attempt)

    def _others(self, attempt: Attempt, status: TaskStatus) -> int:
        """How many other workers' commits for this very task the steward has shown."""
        authors = set()
        for envelope in status.envelopes:
            statement = decode(envelope, self.verify)
            body = statement.body
            if not isinstance(body, Commit) or (body.job, body.task) != (
                attempt.task.job,
                attempt.task.index,
            ):
                raise PeerError("bad-commit", "a steward shows commits of another task")
            authors.add(statement.author)
        return len(authors - {self.ctx.me})

    def _reveal(self, attempt: Attempt) -> None:
        assert attempt.commit is not None
        assert attempt.result is not None
        assert self.profile is not None
        task, result = attempt.task, attempt.result
        spec = self.prospects[task.job].spec
        body = Reveal(
            job=task.job,
            task=task.index,
            commit=attempt.commit.id,
            salt=attempt.salt,
            root=output_root(result.outcome, result.exit, result.files),
            outcome=result.outcome,
            exit=result.exit,
            outputs=result.files,
            usage=result.usage,
            executor=spec.run.executor,
            hardware=self.profile.hardware,
            log=result.log,
            continued=attempt.lineage if result.continued else (),
        )
        attempt.reveal = self.ctx.sign(body)
        attempt.state = "revealed"
        self._save(attempt)
        self.ctx.trace("revealed", job=task.job, task=task.index)
        # A steward that asks while this is on its way need not be told twice.
        attempt.told = dict.fromkeys(self.ctx.stewards(task.job, task.shard), self.ctx.now)
        self._speak(attempt)

    def on_verdict(self, statement: Statement) -> None:
        """A steward's verdict on a task of ours: a majority of equal ones ends the attempt."""
        body = statement.body
        attempt = self.attempts.get(TaskId(body.job, body.task)) if statement.kind == "verdict" else None
        if attempt is None or not self.ctx.may_judge(statement.author, body.job, attempt.task.shard):
            return
        attempt.settled_by[statement.author] = body.result
        same = sum(1 for result in attempt.settled_by.values() if result == body.result)
        if same >= max(self._needed(attempt), majority(len(body.stewards))):
            mine = [vote.agreed for vote in body.votes if vote.worker == self.ctx.me]
            self.ctx.trace("result_judged", job=body.job, task=body.task, agreed=mine[0] if mine else None)
            self._drop(attempt)

    # --- ends and restarts -----------------------------------------------------------------------------------------
    def _drop(self, attempt: Attempt, *, stop: bool = True) -> None:
        del self.attempts[attempt.task]
        if attempt.state == "running" and stop:
            self.ctx.effects.append(Stop(attempt.task))
        if attempt.state in ("running", "committed", "revealed"):
            # Once committed, never again: a restarted worker that committed anew would contradict itself.
            over = attempt.task.job not in self.prospects
            kept = attempt.commit is not None and not over
            self.ctx.save_record(
                done_record(attempt) if kept else Record(ATTEMPT_RECORD, record_key(attempt.task), None)
            )
        self.ctx.let_go_all(_own_checkpoint(attempt.task))
        self._wake(self.ctx.now)

    def _save(self, attempt: Attempt) -> None:
        self.ctx.save_record(record_of(attempt))

    def restore(self, record: Record) -> None:
        """Take up an attempt that a former process of this node had made. Its job is known already."""
        task = task_of_key(record.key)
        prospect = self.prospects.get(task.job)
        if prospect is None:
            self.ctx.save_record(Record(ATTEMPT_RECORD, record.key, None))
            return
        prospect.attempted.add(task.index)
        attempt = restored(record, self.verify, self.ctx.now)
        if not isinstance(attempt, Attempt):
            for ref in attempt:
                self.ctx.hold(ref, _outputs(task.job))
            return
        for file in attempt.result.files if attempt.result is not None else ():
            self.ctx.hold(file.blob, _outputs(task.job))
        self.attempts[task] = attempt
        self._renew_at = self.ctx.now + limits.RETRY_MIN_MS
        self._wake(self.ctx.now)


def _agreed_checkpoint(attempt: Attempt, needed: int) -> Statement | None:
    """The checkpoint that enough stewards gave: one steward alone could give several workers the same one, or its own.

    One whose lineage has become too long is not gone on from.
    """
    agreed = [s for s, given_by in attempt.offered.values() if len(given_by) >= needed]
    agreed = [s for s in agreed if len(lineage_of(s)) <= limits.REPLICAS_MAX]
    return min(agreed, key=lambda s: (-s.body.progress, s.id), default=None)


def _outputs(job: JobId) -> Owner:
    """Who holds a worker's results: until the job is over, for the stewards that judged them may all vanish."""
    return ("outputs", job, 0)


def _own_checkpoint(task: TaskId) -> Owner:
    """Who holds what a running task of this worker keeps in its checkpoint."""
    return ("own checkpoint", task.job, task.index)
