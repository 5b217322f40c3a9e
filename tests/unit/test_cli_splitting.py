"""nexapod.cli.records and splitting: every record in exactly one piece, in order, however the file lies in blocks."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import os
import re
from bisect import bisect_left
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nexapod.cli import records, splitting
from nexapod.cli.hashing import hash_file
from nexapod.cli.records import By, SplitError, scan
from nexapod.cli.splitting import Cut, Split, pieces, shard_bounds, split_file
from nexapod.protocol.limits import CHUNK_BYTES, SHARD_TASKS
from nexapod.protocol.primitives import blob_of

FORMATS: list[By] = ["lines", "fasta", "sdf", "csv"]
BLANK = b" \t\r\n\v\f"


@pytest.fixture
def write(tmp_path: Path) -> Callable[[bytes], Path]:
    def to_file(data: bytes) -> Path:
        (tmp_path / "data").write_bytes(data)
        return tmp_path / "data"

    return to_file


def cut_up(path: Path, cut: Cut) -> list[bytes]:
    """What each task is given."""
    data, split = path.read_bytes(), split_file(path, cut)
    return [data[: split.header] + data[offset : offset + length] for offset, length in pieces(split.index)]


def refused(path: Path, cut: Cut) -> str:
    with pytest.raises(SplitError) as caught:
        split_file(path, cut)
    return str(caught.value)


# --- what a record is ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("by", "data", "expected"),
    [
        ("lines", b"one\r\n\n  \ntwo\nthree", [b"one\r\n\n  \n", b"two\n", b"three"]),
        ("lines", b"\n \n a\nb\n", [b" a\n", b"b\n"]),
        ("lines", b"\xef\xbb\xbfa\nb", [b"a\n", b"b"]),
        ("fasta", b"\n>a x\nAC\nGT\n\n>b\nTT\n>c\nGG", [b">a x\nAC\nGT\n\n", b">b\nTT\n", b">c\nGG"]),
        ("fasta", b">a\r\nAC\r\n>\r\n>b >c\r\nG>T\r\n", [b">a\r\nAC\r\n", b">\r\n", b">b >c\r\nG>T\r\n"]),
        ("fasta", b"\xef\xbb\xbf>a\nAC\n>b\nGT\n", [b">a\nAC\n", b">b\nGT\n"]),
        ("sdf", b"m1\n\nM  END\n$$$$\n\n\nM  END\n$$$$\n", [b"m1\n\nM  END\n$$$$\n", b"\n\nM  END\n$$$$\n"]),
        ("sdf", b"m1\r\n$$$$\r\nm2\r\n$$$$", [b"m1\r\n$$$$\r\n", b"m2\r\n$$$$"]),
        ("sdf", b"m1\n$$$$\nm2\nM  END\n", [b"m1\n$$$$\n", b"m2\nM  END\n"]),
        ("sdf", b"$$$$\n$$$$ \nm3\n a$$$$\n$$$$\n \n\n", [b"$$$$\n", b"$$$$ \n", b"m3\n a$$$$\n$$$$\n \n\n"]),
        ("csv", b"a,b\n\nc,d", [b"a,b\n\n", b"c,d"]),
        ("csv", b'a,"x\ny"\r\nb,"say ""no\n"""\nc\n', [b'a,"x\ny"\r\n', b'b,"say ""no\n"""\n', b"c\n"]),
        ("csv", b'"1\n";"2"\n"3";""\n', [b'"1\n";"2"\n', b'"3";""\n']),
    ],
)
def test_records(write: Callable[[bytes], Path], by: By, data: bytes, expected: list[bytes]) -> None:
    assert cut_up(write(data), Cut(by, size=1)) == expected


TOKENS: dict[By, list[bytes]] = {
    "lines": [b"\n", b"\r\n", b" ", b"x", b"yz"],
    "fasta": [b"\n", b"\r\n", b">", b"A", b" "],
    "sdf": [b"\n", b"\r\n", b"$$$$", b"$", b"M", b" "],
    "csv": [b"\n", b"\r\n", b'"', b'""', b",", b"v", b" "],
}


def plainly(by: By, data: bytes) -> list[int] | None:
    """The same rules once more, on the whole file at once and byte by byte where it matters. None: refused."""
    lines = data.splitlines(keepends=True) if by != "csv" else _csv_rows(data)
    if lines is None:
        return None
    starts = [0, *itertools.accumulate(len(line) for line in lines)]
    said = [bool(line.strip(BLANK)) for line in lines]
    if by in ("lines", "csv"):
        return [start for start, says in zip(starts, said, strict=False) if says]
    if by == "fasta":
        return [start for start, line in zip(starts, lines, strict=False) if line.startswith(b">")]
    ends = [number for number, line in enumerate(lines) if line.startswith(b"$$$$")]
    begins = [0, *(number + 1 for number in ends)]
    if not any(said[begins[-1] :]):
        begins.pop()
    return [starts[number] for number in begins] if ends else None


def _csv_rows(data: bytes) -> list[bytes] | None:
    rows, row, inside = [], bytearray(), False
    for byte in data:
        row.append(byte)
        inside ^= byte == ord('"')
        if byte == ord("\n") and not inside:
            rows.append(bytes(row))
            row.clear()
    if inside:
        return None
    rows += [bytes(row)] if row else []
    return None if any(b"\n" in row.rstrip(b"\n") and _stray(row) for row in rows) else rows


def _stray(row: bytes) -> bool:
    """Whether a quote opens after, or closes before, what is no border of a field."""
    for found in re.finditer(rb'"((?:[^"]|"")*)"', row):
        before, after = row[found.start() - 1 : found.start()], row[found.end() : found.end() + 1]
        if before not in (b"", b",", b";", b"|", b"\t", b" ") or after not in (
            b"", b",", b";", b"|", b"\t", b" ", b"\r", b"\n"
        ):  # fmt: skip
            return True
    return False


@pytest.mark.parametrize("by", FORMATS)
@given(data=st.data())
def test_the_blocks_of_a_file_do_not_matter(by: By, data: st.DataObject) -> None:
    content = b"".join(data.draw(st.lists(st.sampled_from(TOKENS[by]), max_size=40)))
    if by == "lines":
        # bytes.splitlines also ends a line at a lone CR, which no format does.
        content = content.replace(b"\r\n", b"\n")
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=8)))
    blocks = [content[a:b] for a, b in itertools.pairwise([0, *cuts, len(content)]) if a < b]
    reading = scan(by, 0)
    found: list[int] | None = []
    try:
        for block in blocks:
            found += reading.feed(block)
        found += reading.end()
    except SplitError:
        found = None
    assert found == plainly(by, content), blocks


# --- pieces --------------------------------------------------------------------------------------------------------
def test_how_many_records_make_a_piece(write: Callable[[bytes], Path]) -> None:
    path = write(b"".join(b"%d\n" % n for n in range(10)))
    assert [len(piece.split()) for piece in cut_up(path, Cut("lines", size=4))] == [4, 4, 2]
    assert [len(piece.split()) for piece in cut_up(path, Cut("lines", pieces=4))] == [2, 3, 2, 3]
    assert [len(piece.split()) for piece in cut_up(path, Cut("lines", pieces=99))] == [1] * 10
    assert [len(piece.split()) for piece in cut_up(path, Cut("lines", bytes_max=7))] == [3, 3, 3, 1]


def test_a_record_larger_than_a_piece_is_a_piece(write: Callable[[bytes], Path]) -> None:
    path = write(b"12\n1234567\n1\n2\n3\n12345678\n")
    assert cut_up(path, Cut("lines", bytes_max=5)) == [b"12\n", b"1234567\n", b"1\n2\n", b"3\n", b"12345678\n"]
    assert cut_up(path, Cut("lines", bytes_max=1)) == path.read_bytes().splitlines(keepends=True)
    assert cut_up(path, Cut("lines", bytes_max=2**32 - 1)) == [path.read_bytes()]


def test_a_header_precedes_every_piece(write: Callable[[bytes], Path]) -> None:
    path = write(b'\xef\xbb\xbfid,"a\nb"\r\n1,x\r\n2,y\r\n3,z\r\n')
    head = b'\xef\xbb\xbfid,"a\nb"\r\n'
    assert cut_up(path, Cut("csv", size=2, header=1)) == [head + b"1,x\r\n2,y\r\n", head + b"3,z\r\n"]
    assert cut_up(path, Cut("csv", size=3)) == [b'id,"a\nb"\r\n1,x\r\n2,y\r\n', b"3,z\r\n"]
    path = write(b"# one\n\n# two\na\nb\n")
    assert cut_up(path, Cut("lines", size=1, header=3)) == [b"# one\n\n# two\na\n", b"# one\n\n# two\nb\n"]


RECORD: dict[By, st.SearchStrategy[bytes]] = {
    "lines": st.sampled_from([b"a\n", b"bb\n\n", b"ccc\r\n", b" d\n"]),
    "fasta": st.sampled_from([b">a\n", b">b\nAC\nGT\n", b">c\r\nAC\r\n\r\n"]),
    "sdf": st.sampled_from([b"$$$$\n", b"\n\nM  END\n$$$$\n", b"m\r\n> <x>\r\n1\r\n$$$$\r\n"]),
    "csv": st.sampled_from([b"1,2\n", b'"a\nb",2\r\n', b'"x""y","z"\n\n', b"5\n"]),
}


@pytest.mark.parametrize("by", FORMATS)
@settings(deadline=None, max_examples=50)  # a large file takes a while to be drawn
@given(data=st.data())
def test_pieces_give_back_every_record_once_and_in_order(
    by: By, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    listed = data.draw(st.lists(RECORD[by], min_size=1, max_size=30)) * data.draw(st.sampled_from([1, 7, 100]))
    header = data.draw(st.sampled_from([b"", b"# head\n"])) if by in ("lines", "csv") else b""
    how = data.draw(st.sampled_from(["size", "bytes_max", "pieces"]))
    amount = data.draw(st.integers(1, 50 if how == "size" else 400))
    path = tmp_path_factory.mktemp("split") / "x"
    path.write_bytes(header + b"".join(listed))
    cut = Cut(by, header=1 if header else 0, **{how: amount})
    split = split_file(path, cut)
    content = path.read_bytes()
    parts = [content[offset : offset + length] for offset, length in pieces(split.index)]
    assert content[: split.header] == header
    assert b"".join(parts) == content[split.header :]
    assert split.records == len(listed)
    borders = list(itertools.accumulate(map(len, listed), initial=0))
    starts = [offset - split.header for offset, _ in pieces(split.index)]
    assert set(starts) <= set(borders)
    numbers = [bisect_left(borders, start) for start in [*starts, borders[-1]]]
    inside = [stop - start for start, stop in itertools.pairwise(numbers)]
    if how == "size":
        assert inside[:-1] == [amount] * (len(parts) - 1)
    elif how == "pieces":
        assert len(parts) == min(amount, len(listed))
        assert max(inside) - min(inside) <= 1
    else:
        assert all(len(part) <= amount or count == 1 for part, count in zip(parts, inside, strict=True))
        later = itertools.pairwise(zip(starts, parts, strict=True))
        first_of = {start: len(record) for start, record in zip(borders, listed, strict=False)}
        assert all(len(part) + first_of[start] > amount for (_, part), (start, _) in later)
    _check_bounds(split, len(content))


def _check_bounds(split: Split, size: int) -> None:
    """What types.Split promises."""
    bounds, cuts = shard_bounds(split.index), pieces(split.index)
    assert len(bounds) == -(-len(cuts) // SHARD_TASKS) + 1
    assert bounds == sorted(bounds)
    assert split.header <= bounds[0]
    assert bounds[-1] <= size
    for number, (offset, length) in enumerate(cuts):
        shard = number // SHARD_TASKS
        assert bounds[shard] <= offset
        assert offset + length <= bounds[shard + 1]


@pytest.mark.parametrize("by", FORMATS)
def test_a_file_of_many_blocks(write: Callable[[bytes], Path], by: By) -> None:
    one = {
        "lines": b"x" * 997 + b"\n",
        "fasta": b">a\n" + b"A" * 990 + b"\n",
        "sdf": b"m\n" * 400 + b"$$$$\n",
        "csv": b'1,"' + b"\n" * 990 + b'"\n',
    }[by]
    path = write(one * 4000)
    assert path.stat().st_size > 3 * CHUNK_BYTES
    split = split_file(path, Cut(by, size=3))
    assert pieces(split.index)[:2] == [(0, 3 * len(one)), (3 * len(one), 3 * len(one))]
    assert (split.pieces, split.records) == (1334, 4000)
    assert split.ref == hash_file(path) == blob_of(path.read_bytes())
    assert len(cut_up(path, Cut(by, pieces=10))) == 10


@given(rows=st.lists(st.lists(st.text(' \n",;\rab', max_size=4), min_size=2, max_size=3), min_size=1, max_size=20))
@example(rows=[["\n", ""], ["", "\n"]])
def test_csv_as_pythons_writer_has_it(tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]]) -> None:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    path = tmp_path_factory.mktemp("csv") / "x"
    path.write_bytes(text.getvalue().encode())
    parts = cut_up(path, Cut("csv", size=1))
    read = [row for part in parts for row in csv.reader(io.StringIO(part.decode(), newline=""))]
    assert read == rows


# --- what cannot be cut --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("by", "data", "said"),
    [
        ("lines", b"", "it is empty"),
        ("lines", b"\n \n", "it holds no record"),
        ("lines", b"\xef\xbb\xbf\n", "it holds no record"),
        ("fasta", b"\n \nACGT\n>a\n", "line 3: this is not the beginning of a FASTA record"),
        ("fasta", b"  >a\nACGT\n>b\nAC\n", "line 1: blanks stand before the '>'"),
        ("fasta", b"\n\t>a\nACGT\n>b\nAC\n", "line 2: blanks stand before the '>'"),
        ("fasta", b">a\rACGT\r>b\rAC", "end with CR alone"),
        ("sdf", b"molecule\nM  END\n", "it has no line `$$$$`"),
        ("csv", b'a,b\n1,"x\n2,3\n', "line 2: a quote is opened in this record and not closed"),
        ("csv", b'a\n1,5" pipe\n2,6" pipe\n3\n', "line 2: a quote stands inside a field"),
        ("lines", gzip.compress(b"a\n"), "compressed by gzip: unpack it first: gunzip"),
        ("fasta", b"BZh91AY&SY...", "compressed by bzip2"),
        ("csv", b"PK\x03\x04", "a zip archive"),
        ("lines", "a\nb\n".encode("utf-16"), "it is UTF-16: convert it"),
    ],
)
def test_what_is_wrong_is_said(write: Callable[[bytes], Path], by: By, data: bytes, said: str) -> None:
    assert said in refused(write(data), Cut(by, size=1))


def test_a_line_end_between_two_blocks_is_no_lone_cr(write: Callable[[bytes], Path]) -> None:
    line = b"x" * (CHUNK_BYTES - 1) + b"\r\n"
    assert cut_up(write(line * 2), Cut("lines", size=1)) == [line, line]


def test_a_line_that_only_looks_like_an_archive_is_a_line(write: Callable[[bytes], Path]) -> None:
    assert cut_up(write(b"BZhang\n"), Cut("lines", size=1)) == [b"BZhang\n"]


def test_a_header_alone_is_no_data(write: Callable[[bytes], Path]) -> None:
    for data in (b"a,b\n", b"a,b\n\n", b"a,b"):
        assert "no record" in refused(write(data), Cut("csv", size=1, header=1))
    assert "no record" in refused(write(b"a\nb\n"), Cut("lines", size=1, header=3))
    assert "header are larger than 1 MiB" in refused(write(b"x" * CHUNK_BYTES + b"\n1\n"), Cut("csv", size=1, header=1))


@pytest.mark.parametrize(
    "data",
    [
        b'id,dia(")\n1,2\n',
        b'id,dia(")\n1,"foo"\n2,"bar"\n',
        b'id,len (")\n1,5\n2,6\n3,7"\n4,8\n',
        b'\n"id,len\n1,5\n2,"6"\n',
        b'id,len (")\n' + b"1,2\n" * CHUNK_BYTES,
    ],
)
def test_an_unbalanced_quote_in_the_header_is_said(write: Callable[[bytes], Path], data: bytes) -> None:
    said = refused(write(data), Cut("csv", size=1, header=1))
    assert re.match("line [12]: unbalanced quote in the header", said)


@pytest.mark.parametrize("header", [b'"a\nb",c\n', b'\xef\xbb\xbf"a\nb",c\n', b'a 5",b 6"\n', b'a,"5"" pipe"\r\n'])
def test_quotes_in_a_header_are_taken_as_in_a_record(write: Callable[[bytes], Path], header: bytes) -> None:
    assert cut_up(write(header + b"1,2\n3,4\n"), Cut("csv", size=1, header=1)) == [header + b"1,2\n", header + b"3,4\n"]


def test_a_missing_quote_does_not_take_the_memory_of_the_machine(
    write: Callable[[bytes], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "CSV_RECORD_MAX", 2 * CHUNK_BYTES)
    path = write(b'a,b\n1,"x\n' + b"2,3\n" * CHUNK_BYTES)
    assert refused(path, Cut("csv", size=1)).startswith("line 2: this record is longer than")


def test_blanks_without_end_are_refused(write: Callable[[bytes], Path]) -> None:
    assert "blanks" in refused(write(b" " * (CHUNK_BYTES + 1)), Cut("lines", size=1))
    path = write(b"a\n" + b" " * (3 * CHUNK_BYTES))
    assert "line 2: more than a mebibyte of blanks" in refused(path, Cut("lines", size=1))


def test_a_piece_over_four_gibibytes_is_refused_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.write(b">a\nAC\n>b\n")
        file.truncate(2**32 + 100)
    # The hash and scan of 4 GiB of zeros would take long: only the arithmetic is asked.
    heads = splitting.array("Q", [0, 6])
    with pytest.raises(records.BadRecord, match="larger than 4 GiB") as caught:
        splitting._index(heads, path.stat().st_size)
    assert caught.value.offset == 6


def test_too_many_pieces_are_refused_before_all_are_counted(
    write: Callable[[bytes], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(splitting, "TASKS_MAX", 2)
    path = write(b"1\n2\n3\n")
    assert "more than 2 tasks: give each more records" in refused(path, Cut("lines", size=1))
    assert split_file(path, Cut("lines", size=2)).pieces == 2
    assert "more than 2 tasks" in refused(path, Cut("lines", bytes_max=2))


@pytest.mark.parametrize("how", ["append", "rewrite", "replace", "truncate"])
def test_a_file_that_changes_while_it_is_read_is_refused(write: Callable[[bytes], Path], how: str) -> None:
    path = write(b"a\n" * CHUNK_BYTES)
    changed = []

    def told(count: int) -> None:
        if changed:
            return
        changed.append(count)
        if how == "append":
            with path.open("ab") as file:
                file.write(b"more\n")
        elif how == "rewrite":
            with path.open("r+b") as file:
                file.write(b"b")
            os.utime(path, ns=(1, 1))
        elif how == "replace":
            new = path.with_name("new")
            new.write_bytes(path.read_bytes())
            new.replace(path)
        else:
            os.truncate(path, CHUNK_BYTES + 4)

    with pytest.raises(SplitError, match="it changed while it was being read"):
        split_file(path, Cut("lines", size=100), told)
    assert changed
