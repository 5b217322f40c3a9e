"""The CLI's small pure parts: amounts, safe text, names of tasks, the fold of events, the hash of what is fetched."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexapod.cli.collecting import BlobHash, heads_of, names_of
from nexapod.cli.quantities import (
    parse_duration,
    parse_size,
    show_duration,
    show_size,
    spell_duration,
    spell_size,
)
from nexapod.cli.safe import is_plain_name, is_plain_path, safe
from nexapod.cli.watching import Standing
from nexapod.protocol.limits import CHUNK_BYTES
from nexapod.protocol.primitives import blob_of


@pytest.mark.parametrize(
    ("text", "value"),
    [("0", 0), ("512", 512), ("1 B", 1), ("2kB", 2000), ("1.5 GiB", 3 << 29), ("512MiB", 512 << 20), ("1TB", 10**12)],
)
def test_sizes(text: str, value: int) -> None:
    assert parse_size(text) == value


@pytest.mark.parametrize("text", ["", "MiB", "-1", "1 mib", "1e3", "1,5GB", "٣", "1MiBs", "1" * 30])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="not a size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [("90s", 90_000), ("10m", 600_000), ("1h30m", 5_400_000), ("7d", 604_800_000), ("1.5h", 5_400_000), ("20ms", 20)],
)
def test_durations(text: str, value: int) -> None:
    assert parse_duration(text) == value


@pytest.mark.parametrize("text", ["", "90", "1 week", "h", "-1s", "1s2", "1h-3m", "٣s"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        parse_duration(text)


@given(st.integers(0, 1 << 49))
def test_what_is_spelled_is_read_as_the_same(amount: int) -> None:
    assert parse_duration(spell_duration(amount % 10**9)) == amount % 10**9
    assert parse_size(spell_size(amount)) == amount


def test_amounts_are_spelled_short() -> None:
    assert [spell_size(n) for n in (0, 1, 1 << 20, 3 << 40, 1000)] == ["0B", "1B", "1MiB", "3TiB", "1000B"]
    assert [spell_duration(n) for n in (0, 1, 60_000, 5_400_000, 7 * 86_400_000)] == ["0s", "1ms", "1m", "90m", "7d"]


def test_amounts_for_people() -> None:
    assert [show_size(n) for n in (0, 1023, 1536, 34 << 20, 5 << 50)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "34 MiB",
        "5120 TiB",
    ]
    assert [show_duration(n) for n in (5, 1200, 65_000, 3_725_000, 90_000_000)] == [
        "5 ms", "1.2 s", "1 m 5 s", "1 h 2 m", "1 d 1 h",
    ]  # fmt: skip


@given(st.text())
def test_safe_text_is_one_printable_line(text: str) -> None:
    assert safe(text).isprintable()
    if text.isprintable():
        assert safe(text) == text


@pytest.mark.parametrize("path", ["a", "a/b.txt", "ü/ñ", "..a", "a b"])
def test_paths_that_stay_inside(path: str) -> None:
    assert is_plain_path(path)


@pytest.mark.parametrize(
    "path", ["", "/a", "a/../b", "..", ".", "a//b", "a/", "a\\b", "a\nb", "\x1b", "a" * 300, "\ud800"]
)
def test_paths_that_do_not(path: str) -> None:
    assert not is_plain_path(path)


@given(st.lists(st.integers(0, 3 * CHUNK_BYTES // 2), max_size=4))
def test_bytes_hashed_in_pieces_have_the_same_name(sizes: list[int]) -> None:
    found = BlobHash()
    for size in sizes:
        found.add(bytes(size))
    assert found.ref == blob_of(bytes(sum(sizes)))


# --- names of tasks ------------------------------------------------------------------------------------------------
@given(st.lists(st.binary(max_size=600), max_size=12), st.integers(1, 700), st.integers(0, 5))
def test_heads_are_taken_from_a_file_as_it_passes(records: list[bytes], step: int, gap: int) -> None:
    cuts, data = [], b"#" * gap
    for record in records:
        cuts.append((len(data), len(record)))
        data += record + b"#" * gap
    blocks = [data[at : at + step] for at in range(0, len(data), step)]
    assert heads_of(blocks, cuts) == ([record[:256] for record in records] if data else [])


def test_pieces_out_of_order_have_no_names() -> None:
    with pytest.raises(ValueError, match="order"):
        heads_of([b"abc", b"def"], [(3, 1), (1, 1)])


def test_records_that_share_a_name_or_have_an_unsafe_one_keep_their_index() -> None:
    records = [
        b">good x\nA\n",
        b">same\n",
        b">Same\n",
        b">../../evil\n",
        b">\n",
        b">7\n",
        b">.hidden\n",
        b">a\xffb\n",
        b">1-same\n",
    ]
    assert names_of(records) == {
        0: "good", 1: "1-same", 2: "2-Same", 3: "3", 4: "4", 5: "5-7", 6: "6-.hidden", 7: "7", 8: "8-1-same",
    }  # fmt: skip
    assert names_of([b"no header\n", b">x\n"]) == {}


@given(st.lists(st.binary(max_size=12).map(lambda name: b">" + name + b"\n"), max_size=40))
def test_names_are_safe_and_no_two_are_alike(records: list[bytes]) -> None:
    names = names_of(records)
    assert all(is_plain_name(name) for name in names.values())
    folders = [names.get(i, str(i)).lower() for i in range(len(records))]
    assert len(set(folders)) == len(folders)


# --- the fold of events --------------------------------------------------------------------------------------------
SNAPSHOT: dict[str, Any] = {
    "job_id": "ab", "name": "n", "state": "running", "tasks": 3, "accepted": 1, "failed": 0, "placed": True,
}  # fmt: skip


def test_an_event_that_comes_twice_counts_once() -> None:
    standing = Standing()
    assert standing.take("snapshot", SNAPSHOT)
    assert standing.take("task_changed", {"index": 1, "state": "running", "progress": 7.0})
    assert standing.under_way == {1: 1.0}
    assert standing.take("accepted", {"index": 1})
    assert not standing.take("accepted", {"index": 1})
    assert standing.take("failed", {"index": 2})
    assert (standing.accepted, standing.failed, standing.under_way) == (2, 1, {})


def test_a_new_snapshot_replaces_all_counts() -> None:
    standing = Standing()
    standing.take("snapshot", SNAPSHOT)
    standing.take("accepted", {"index": 1})
    standing.take("snapshot", SNAPSHOT | {"accepted": 2})
    assert standing.accepted == 2
    assert standing.take("accepted", {"index": 2})
    assert not standing.take("an event of a later release", {})
    standing.take("closed", {"state": "settled"})
    assert (standing.accepted, standing.status) == (3, 0)


@pytest.mark.parametrize(
    ("change", "status"),
    [({"state": "settled", "accepted": 3}, 0), ({"state": "settled", "accepted": 2, "failed": 1}, 1),
     ({"state": "cancelled", "accepted": 3}, 1), ({"state": "open", "accepted": None, "failed": None}, 1)],
)  # fmt: skip
def test_only_a_job_with_every_task_accepted_is_a_success(change: dict[str, Any], status: int) -> None:
    standing = Standing()
    standing.take("snapshot", SNAPSHOT | change)
    assert standing.status == status


def test_the_table_of_exit_statuses_is_true() -> None:
    from nexapod.cli import errors

    table = errors.__doc__ or ""
    for number in ("0", "1", "2", "3", "4", "5", "130"):
        assert f"\n    {number} " in table
    kinds = [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, errors.CliError)]
    assert {kind.status for kind in kinds} <= {1, 3, 4, 5}
    assert all(kind("facts").remedy for kind in kinds)
