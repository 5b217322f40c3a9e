"""nexapod.config.storage: sizes and rates as people write them, and what is said of those that cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from nexapod.config import ConfigError, Flags, load
from nexapod.config.storage import Bandwidth, Storage, parse_rate

MIB = 1 << 20


def read(tmp_path: Path, text: str) -> tuple[Storage, Bandwidth]:
    (tmp_path / "config.toml").write_text(text)
    config = load(Flags(), {"HOME": str(tmp_path), "NEXAPOD_CONFIG": str(tmp_path / "config.toml")})
    return config.storage, config.bandwidth


def test_nothing_said_is_no_cap_and_the_disk_s_own_quota(tmp_path: Path) -> None:
    assert read(tmp_path, "") == (Storage(None, None), Bandwidth(None, None, None, None))


def test_all_keys(tmp_path: Path) -> None:
    text = """
    [storage]
    blobs_max = "1.5GiB"
    disk_free_min = "0B"
    [bandwidth]
    up_max = "10MiB/s"
    down_max = 0
    peer_up_max = "100 kB/s"
    peer_down_max = "0MiB/s"
    """
    assert read(tmp_path, text) == (Storage(1536 * MIB, 0), Bandwidth(10 * MIB, None, 100_000, None))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('[storage]\nblobs_max = "plenty"', "is not a size"),
        ("[storage]\nblobs_max = 20", "as text"),
        ('[storage]\nblobs_max = "1MiB"', "is not possible: at least 67108864"),
        ('[storage]\nblob_max = "1GiB"', "did you mean 'blobs_max'"),
        ('[bandwidth]\nup_max = "10MiB"', "is not a rate: write it like '10MiB/s'"),
        ('[bandwidth]\nup_max = "10MiB/h"', "is not a rate"),
        ('[bandwidth]\nup_max = "1KiB/s"', "at least 64KiB/s"),
        ("[bandwidth]\nup_max = true", "as text"),
        ("[bandwidth]\nup_max = 5", "as text"),
        ('[bandwidth]\nup = "1MiB/s"', "allowed: down_max, peer_down_max, peer_up_max, up_max"),
    ],
)
def test_what_cannot_be_is_said_with_its_line(tmp_path: Path, line: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, line)
    assert said in str(caught.value)
    assert "line 2" in str(caught.value) or ":2" in str(caught.value)


def test_a_rate_is_a_size_a_second() -> None:
    assert parse_rate("2 MB/s") == 2_000_000
    with pytest.raises(ValueError, match="not a size"):
        parse_rate("fast/s")
