"""nexapod.protocol.tickets: who goes first. The stored vectors fix the values."""

from __future__ import annotations

from protocol_kit import pid

from nexapod.protocol.limits import BID_STEP_MS
from nexapod.protocol.tickets import ONE, bid_delay, rank, shard_key, task_seed, ticket
from nexapod.protocol.types import JobId, TaskId

JOB = JobId(bytes(range(32)))


def test_tickets_differ_by_peer_task_and_job_and_stay_in_range() -> None:
    values = {ticket(TaskId(job, t), pid(p)) for job in (JOB, JobId(bytes(32))) for t in range(4) for p in range(4)}
    assert len(values) == 32
    assert all(0 <= value < ONE for value in values)


def test_a_rank_is_the_share_of_smaller_tickets() -> None:
    assert [rank(u, 100) for u in (0, ONE // 2, ONE - 1)] == [0, 50, 99]


def test_as_many_go_at_once_as_are_wanted_and_the_rest_wait_a_step_each() -> None:
    assert bid_delay(0, 100, 2) == 0
    assert bid_delay(ONE // 50, 100, 2) == 0
    assert bid_delay(ONE // 2, 100, 2) == 48 * BID_STEP_MS
    assert bid_delay(ONE - 1, 1, 2) == 0


def test_shards_and_tasks_have_their_own_keys_and_seeds() -> None:
    assert len({shard_key(JOB, n) for n in range(5)}) == 5
    assert len({task_seed(TaskId(JOB, n)) for n in range(5)}) == 5
    assert all(0 <= shard_key(JOB, n) < 1 << 256 for n in range(5))
