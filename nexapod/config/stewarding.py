"""The tables [steward] and [submit] of config.toml: what of others' jobs is kept here, and on whom one's own rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from nexapod.config.document import Table
from nexapod.config.storage import read_size
from nexapod.protocol.limits import PANEL_MAX, SHARDS_MAX
from nexapod.protocol.primitives import PeerId, key_of_peer_id

STORAGE_MIN: Final = 1 << 20
SHARDS_DEFAULT: Final = 1024


@dataclass(frozen=True, slots=True)
class StewardSettings:
    """What this machine offers as a steward. `storage`: bytes of one job, None: a part of the blobs' quota."""

    enabled: bool = True
    storage: int | None = None
    shards: int = SHARDS_DEFAULT
    """Of one job."""


@dataclass(frozen=True, slots=True)
class SubmitSettings:
    """What holds for a submission that does not say otherwise."""

    friends: tuple[PeerId, ...] = ()
    """Peers that are stewards of every job submitted here."""
    accept_unknown: bool = False
    """Whether all stewards may be peers that one peer alone has told of."""


def read_steward(table: Table) -> StewardSettings:
    """[steward]; what is wrong is noted in the document."""
    settings = StewardSettings(
        enabled=table.flag("enabled", default=True),
        storage=read_size(table, "storage", STORAGE_MIN),
        shards=table.whole("shards", SHARDS_DEFAULT, 1, SHARDS_MAX),
    )
    table.end()
    return settings


def read_submit(table: Table) -> SubmitSettings:
    """[submit]; what is wrong is noted in the document."""
    friends = table.strings("friends", count_max=PANEL_MAX)
    for friend in friends:
        try:
            key_of_peer_id(PeerId(friend))
        except ValueError:
            table.problem("friends", f"{friend!r} is no peer's id: write it as `nexapod status` shows it")
    settings = SubmitSettings(
        friends=tuple(PeerId(friend) for friend in friends),
        accept_unknown=table.flag("accept_unknown", default=False),
    )
    table.end()
    return settings
