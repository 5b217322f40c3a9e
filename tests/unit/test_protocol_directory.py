"""nexapod.protocol.directory: who is known, who is live, who is closest."""

from __future__ import annotations

import pytest
from protocol_kit import NETWORK, job_spec, make, pid, profile

from nexapod.protocol import limits
from nexapod.protocol.directory import Directory
from nexapod.protocol.types import JobId, kad_key

JOB = JobId(bytes(32))


def _directory(*numbers: int) -> Directory:
    directory = Directory(pid(0), NETWORK)
    for number in numbers:
        directory.learn(make(profile(), number), 0)
    return directory


def test_the_newest_profile_wins_and_other_networks_are_not_kept() -> None:
    directory = _directory()
    assert directory.learn(make(profile(seq=2), 1), 0)
    assert not directory.learn(make(profile(seq=2, cpus=9), 1), 0)
    assert not directory.learn(make(profile(seq=1), 1), 0)
    assert not directory.learn(make(profile(network="other"), 2), 0)
    assert directory.learn(make(profile(seq=3, cpus=9), 1), 5)
    assert directory.known[pid(1)].profile.cpus == 9
    assert list(directory.known) == [pid(1)]


def test_a_profile_that_changes_nothing_of_note_leaves_the_version_alone() -> None:
    directory = _directory(1)
    before = directory.version
    directory.learn(make(profile(seq=2, cpus=9), 1), 0)
    assert directory.version == before
    directory.learn(make(profile(seq=3, serves=False), 1), 0)
    assert directory.version > before


def test_the_closest_are_live_and_serve_nearest_first() -> None:
    directory = _directory(1, 2, 3, 4)
    directory.learn(make(profile(serves=False), 5), 0)
    expected = sorted((pid(n) for n in (1, 2, 3, 4)), key=lambda p: kad_key(p) ^ 12345)
    assert directory.closest(12345, 3, 0) == tuple(expected[:3])
    assert directory.closest(12345, 9, 0) == tuple(expected)
    directory.unreachable(expected[0], 0)
    assert directory.closest(12345, 3, 0) == tuple(expected[1:4])


def test_an_unreachable_peer_is_live_again_after_a_while_each_time_a_longer_one() -> None:
    directory = _directory(1)
    directory.unreachable(pid(1), 0)
    assert not directory.live(pid(1), 1)
    directory.tick(limits.SUSPECT_MS - 1)
    assert not directory.live(pid(1), limits.SUSPECT_MS - 1)
    directory.tick(limits.SUSPECT_MS)
    assert directory.live(pid(1), limits.SUSPECT_MS)
    directory.unreachable(pid(1), 30_000)
    directory.tick(30_000 + 2 * limits.SUSPECT_MS - 1)
    assert not directory.live(pid(1), 30_000 + 2 * limits.SUSPECT_MS - 1)
    directory.tick(30_000 + 2 * limits.SUSPECT_MS)
    assert directory.live(pid(1), 30_000 + 2 * limits.SUSPECT_MS)


def test_a_link_makes_a_peer_live_whatever_was_thought_of_it() -> None:
    directory = _directory(1)
    directory.unreachable(pid(1), 0)
    directory.peer_up(pid(1), "/ip4/8.8.8.8/tcp/1")
    assert directory.live(pid(1), 1)
    directory.unreachable(pid(1), 2)
    assert directory.live(pid(1), 2)
    assert directory.group(pid(1)) == "8.8.8.0/24"
    directory.peer_down(pid(1), 3)
    assert not directory.live(pid(1), 3)
    assert directory.group(pid(1)) == "8.8.8.0/24", "an operator is no other when a link breaks"
    assert directory.group(pid(2)) == pid(2)
    directory.peer_down(pid(2), 3)
    assert not directory.live(pid(2), 3)


def test_a_profile_that_is_not_repeated_is_forgotten_but_not_that_of_a_connected_peer_or_ones_own() -> None:
    directory = _directory(0, 1, 2)
    directory.peer_up(pid(2), "")
    directory.tick(directory.lifetime() - 1)
    assert pid(1) in directory.known
    directory.tick(directory.lifetime())
    assert sorted(directory.known) == sorted((pid(0), pid(2)))
    assert directory.live(pid(0), 10**9)


def test_a_stale_profile_is_not_live_before_it_is_forgotten() -> None:
    directory = _directory(1)
    assert directory.live(pid(1), directory.lifetime() - 1)
    assert not directory.live(pid(1), directory.lifetime())


def test_the_larger_the_network_the_rarer_the_profiles(monkeypatch: pytest.MonkeyPatch) -> None:
    directory = _directory(1)
    assert directory.period() == limits.PROFILE_MS
    monkeypatch.setattr(limits, "PROFILE_PER_PEER_MS", 100_000)
    assert directory.period() == 100_000
    assert directory.lifetime() == 3 * directory.period()


def test_a_full_directory_makes_room_only_by_forgetting_old_strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PROFILES_MAX", 2)
    directory = _directory(0, 1)
    assert not directory.learn(make(profile(), 2), limits.PROFILE_MS - 1)
    directory.peer_up(pid(1), "")
    assert not directory.learn(make(profile(), 2), limits.PROFILE_MS)
    directory.links.clear()
    assert directory.learn(make(profile(), 2), limits.PROFILE_MS)
    assert sorted(directory.known) == sorted((pid(0), pid(2)))


def test_eligible_peers_are_counted_at_most_once_a_second() -> None:
    directory = _directory(1, 2)
    directory.learn(make(profile(slots=0), 3), 0)
    assert directory.eligible(JOB, job_spec(), 0) == 2
    directory.learn(make(profile(seq=2, slots=0), 1), 0)
    directory.learn(make(profile(), 4), 0)
    assert directory.eligible(JOB, job_spec(), 999) == 2
    assert directory.eligible(JOB, job_spec(), 1000) == 2
    directory.learn(make(profile(), 5), 1000)
    assert directory.eligible(JOB, job_spec(), 2000) == 3


def test_the_count_of_eligible_peers_is_kept_for_a_bounded_number_of_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "JOBS_MAX", 2)
    directory = _directory(1)
    for number in range(5):
        assert directory.eligible(JobId(bytes([number]) * 32), job_spec(), 0) == 1


def test_addresses_are_those_of_the_profile() -> None:
    directory = _directory(1)
    assert directory.addrs(pid(1)) == ("/ip4/127.0.0.1/tcp/4001",)
    assert directory.addrs(pid(2)) == ()
