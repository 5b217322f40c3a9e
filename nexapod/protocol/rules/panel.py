"""Which peers a submitter names as a job's stewards (docs/protocol.md, Choice).

Only peers that it reached itself, by their own consent. Chosen by chance, so that nobody can place himself; spread over
address blocks and over those who introduced them, so that nobody's many identities are most of it.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from nexapod.protocol import limits
from nexapod.protocol.errors import LocalError
from nexapod.protocol.primitives import Millis, PeerId, key_of_peer_id
from nexapod.protocol.rules.groups import BLOCK_PREFIXES, REGION_PREFIXES, block
from nexapod.protocol.types import Group, Grouping, JobSpec, Offer
from nexapod.protocol.wire.statements import Statement

_OTHERS_MIN: Final = 3
"""With fewer others than this, the submitter is a steward of its own job."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A peer that would be a steward, as the submitter knows it."""

    offer: Statement
    addr: str
    """Remote multiaddr of the link to it; "" when unknown."""
    uptime_ms: Millis
    """For how long, in all, it was seen up."""
    introducer: PeerId | None = None
    """Who told of it; None: nobody did (configured, found on the local network, came by itself)."""
    reached: bool = True
    """This node dialled it and got through."""
    friend: bool = False
    """The user vouches for it."""

    @property
    def peer(self) -> PeerId:
        return self.offer.author

    @property
    def source(self) -> PeerId:
        """Through whom it is known: an introducer and those whom it introduced have one source."""
        return self.introducer or self.peer


@dataclass(frozen=True, slots=True)
class Choice:
    """Offers for the job's panel, friends first, and in words what its result will rest on."""

    panel: tuple[Statement, ...]
    rests_on: str


@dataclass(frozen=True, slots=True)
class _Spread:
    """How a panel is to be spread. `grouping` peer: whoever runs the network vouches for all of it."""

    grouping: Grouping
    accept_unknown: bool

    def region_max(self, size: int) -> int:
        return max(1, size // 8)

    def source_max(self, size: int) -> int:
        return size if self.accept_unknown else max(1, size // 3)


def choose(
    candidates: Iterable[Candidate],
    spec: JobSpec,
    *,
    grouping: Grouping,
    me_offer: Statement | None,
    draw: Callable[[int], bytes],
    friends: Sequence[PeerId] = (),
    accept_unknown: bool = False,
    bytes_max: int = limits.ENVELOPE_BYTES_MAX,
) -> Choice:
    """A panel for a job (whose `panel` is still empty).

    `me_offer`: the submitter's own, if it would serve. `draw`: so many bytes of entropy. `friends`: who must be in it.
    `bytes_max`: what the job's envelope has room for.
    Raises LocalError, which says what is missing and what to do.
    """
    usable = _usable(candidates, spec, grouping, me_offer, friends)
    pinned = _pinned(usable, friends)
    by_chance = _by_chance([c for c in usable if c not in pinned], draw(32))
    spread = _Spread(grouping, accept_unknown)
    _check_sources(usable, pinned, spread)
    for size in _sizes(len(usable), len(set(friends))):
        members = _pick(pinned, by_chance, size, spec, spread)
        own = () if me_offer is None or size >= _OTHERS_MIN else (me_offer,)
        offers = (*(member.offer for member in members), *own)
        if len(members) == size and offers and _all_hold(offers, spec) and _bytes(offers) <= bytes_max:
            return Choice(offers, _rests_on(members, bool(own), grouping))
    if _bytes([candidate.offer for candidate in pinned[: len(set(friends))]]) > bytes_max:
        raise LocalError(
            "The offers of so many friends do not fit into one job: name fewer of them, or shorten the job."
        )
    raise LocalError(_missing(usable, spec, me_offer))


def _sizes(others: int, least: int) -> list[int]:
    """How many others to try for: the usual, then more if the job needs them, then fewer; all whom the user named."""
    usual = max(least, min(limits.PANEL_USUAL, others))
    return [*range(usual, min(limits.PANEL_MAX, others) + 1), *range(usual - 1, least - 1, -1)]


# --- who comes into question ----------------------------------------------------------------------------------------
def _usable(
    candidates: Iterable[Candidate],
    spec: JobSpec,
    grouping: Grouping,
    me_offer: Statement | None,
    friends: Collection[PeerId],
) -> list[Candidate]:
    """One a peer, by its newest offer, in a fixed order: reached, of this network, and willing now."""
    newest: dict[PeerId, Candidate] = {}
    for candidate in sorted(candidates, key=lambda c: (c.offer.body.seq, c.offer.id)):
        newest[candidate.peer] = candidate
    if me_offer is not None:
        newest.pop(me_offer.author, None)
    found = [c for c in newest.values() if c.reached and _is_willing(c.offer.body, spec)]
    placed = [c for c in found if grouping == "peer" or _is_pinned(c, friends) or block(c.addr, BLOCK_PREFIXES)]
    return sorted(placed, key=lambda c: key_of_peer_id(c.peer))


def _is_willing(offer: Offer, spec: JobSpec) -> bool:
    return offer.network == spec.network and offer.until > spec.stamp


def _is_pinned(candidate: Candidate, friends: Collection[PeerId]) -> bool:
    return candidate.friend or candidate.peer in friends


def _pinned(usable: Sequence[Candidate], friends: Sequence[PeerId]) -> list[Candidate]:
    """Friends, those that the user names for this job first."""
    by_peer = {candidate.peer: candidate for candidate in usable}
    absent = [peer for peer in friends if peer not in by_peer]
    if absent:
        raise LocalError(
            f"{', '.join(absent)} cannot be a steward of this job: there is no link to it that this machine dialled, "
            "or it offers no stewardship. Start it and connect to it, or submit without it."
        )
    named = [by_peer[peer] for peer in dict.fromkeys(friends)]
    return [*named, *(c for c in usable if c.friend and c.peer not in friends)][: limits.PANEL_MAX]


def _by_chance(candidates: Sequence[Candidate], seed: bytes) -> list[Candidate]:
    """In an order drawn by weight: the smallest of w equal chances comes first as often as its weight says."""

    def chance(candidate: Candidate) -> tuple[int, bytes]:
        key = key_of_peer_id(candidate.peer)
        weight = min(max(candidate.uptime_ms // limits.UPTIME_UNIT_MS, 1), limits.UPTIME_UNITS_MAX)
        chances = hashlib.shake_128(b"nexapod/panel\0" + seed + key).digest(8 * weight)
        return min(struct.unpack(f">{weight}Q", chances)), key

    return sorted(candidates, key=chance)


def _check_sources(usable: Sequence[Candidate], pinned: Sequence[Candidate], spread: _Spread) -> None:
    if spread.grouping == "peer" or spread.accept_unknown or pinned:
        return
    introduced = any(candidate.introducer is not None for candidate in usable)
    if introduced and len({candidate.source for candidate in usable}) == 1:
        raise LocalError(
            f"All peers that would be stewards are known through one, {usable[0].source}: they could all be its own. "
            "Connect to a peer that somebody else runs, name a friend, or accept this with --accept-unknown."
        )


# --- the panel ------------------------------------------------------------------------------------------------------
def _pick(
    pinned: Sequence[Candidate], by_chance: Sequence[Candidate], size: int, spec: JobSpec, spread: _Spread
) -> list[Candidate]:
    """At most `size` of them that could each hold their share of a panel of that size, spread as they should be."""
    share = _share(spec, size)
    members = list(pinned[:size])
    places = _Places(spread, size)
    for member in members:
        places.keep((member.addr,), counts=False)
    for candidate in by_chance:
        if len(members) >= size:
            break
        if holds(candidate.offer.body, spec) >= share and places.take((candidate.addr,), candidate.source):
            members.append(candidate)
    return members


class _Places:
    """Who may still come to a panel of that size."""

    def __init__(self, spread: _Spread, size: int) -> None:
        self._everybody = spread.grouping == "peer"
        self._region_max = spread.region_max(size)
        self._source_max = spread.source_max(size)
        self._blocks: set[Group] = set()
        self._regions: Counter[Group] = Counter()
        self._sources: Counter[PeerId] = Counter()

    def keep(self, addrs: Iterable[str], *, counts: bool) -> None:
        """One that is there, wherever it is. `counts`: for its region, too."""
        self._blocks |= _blocks(addrs, BLOCK_PREFIXES)
        if counts:
            self._regions.update(_blocks(addrs, REGION_PREFIXES))

    def take(self, addrs: Collection[str], source: PeerId | None = None) -> bool:
        """Whether a peer at these addresses may come, too; then it has."""
        if self._everybody:
            return True
        blocks, regions = _blocks(addrs, BLOCK_PREFIXES), _blocks(addrs, REGION_PREFIXES)
        crowded = any(self._regions[region] >= self._region_max for region in regions)
        if not blocks or crowded or not blocks.isdisjoint(self._blocks):
            return False
        if source is not None:
            if self._sources[source] >= self._source_max:
                return False
            self._sources[source] += 1
        self._blocks |= blocks
        self._regions.update(regions)
        return True


def _blocks(addrs: Iterable[str], prefixes: tuple[int, int]) -> set[Group]:
    return {found for addr in addrs if (found := block(addr, prefixes)) is not None}


# --- those who come later --------------------------------------------------------------------------------------------
def newcomers(
    candidates: Iterable[Candidate],
    spec: JobSpec,
    count: int,
    *,
    kept: Mapping[PeerId, Collection[str]],
    grouping: Grouping,
    draw: Callable[[int], bytes],
) -> tuple[Candidate, ...]:
    """At most `count` further members beside those that are kept, and where these can be dialled: drawn and spread as
    a panel is, or identities made to come first, and many of one block, would come to be most of it."""
    usable = [one for one in _usable(candidates, spec, grouping, None, ()) if one.peer not in kept]
    size = len(kept) + count
    places, share = _beside(kept.values(), grouping, size), _share(spec, size)
    found: list[Candidate] = []
    friends = [one for one in usable if one.friend]
    for one in (*friends, *_by_chance([one for one in usable if not one.friend], draw(32))):
        addrs = one.offer.body.addrs
        honest = grouping == "peer" or _blocks((one.addr,), BLOCK_PREFIXES) <= _blocks(addrs, BLOCK_PREFIXES)
        if len(found) < count and honest and holds(one.offer.body, spec) >= share and places.take(addrs, one.source):
            found.append(one)
    return tuple(found)


def are_spread(
    added: Iterable[Collection[str]], kept: Collection[Collection[str]], grouping: Grouping, size: int
) -> bool:
    """Whether new members leave a panel of that size spread as it should be, by where their offers say that they can be
    dialled: whoever is asked to sign a renewal need not have met them."""
    places = _beside(kept, grouping, size)
    return all(places.take(addrs) for addrs in added)


def _beside(kept: Iterable[Collection[str]], grouping: Grouping, size: int) -> _Places:
    places = _Places(_Spread(grouping, accept_unknown=False), size)
    for addrs in kept:
        places.keep(addrs, counts=True)
    return places


def _all_hold(offers: Sequence[Statement], spec: JobSpec) -> bool:
    share = _share(spec, len(offers))
    return all(holds(offer.body, spec) >= share for offer in offers)


def _bytes(offers: Iterable[Statement]) -> int:
    """What they take in a job's envelope: each with the header of its bin."""
    return sum(len(offer.envelope) + 3 for offer in offers)


def _share(spec: JobSpec, members: int) -> int:
    """Shards that a member should be able to hold: the mean, and what chance puts on one beside it."""
    if members == 0:
        return 0
    mean = -(-spec.shards * min(limits.SEATS, members) // members)
    return min(spec.shards, mean + (2 * math.isqrt(mean) if spec.shards > 1 else 0))


def holds(offer: Offer, spec: JobSpec) -> int:
    """Shards of a job that an offer has room for; 0: not even for what all of them need."""
    room = offer.storage - _common_bytes(spec)
    return 0 if room < 0 else min(offer.shards, room // max(1, _shard_bytes(spec)))


def _common_bytes(spec: JobSpec) -> int:
    split = 0 if spec.split is None else spec.split.blob.size + spec.split.index.size
    return spec.input_bytes - split


def _shard_bytes(spec: JobSpec) -> int:
    """One shard's own inputs, and its outputs: as large as usual, as the limit says little of what a task leaves."""
    split = 0 if spec.split is None else -(-(spec.split.blob.size + spec.split.index.size) // spec.shards)
    tasks = min(spec.tasks, limits.SHARD_TASKS)
    return split + tasks * min(spec.limits.output, limits.PANEL_OUTPUT_BYTES)


# --- in words -------------------------------------------------------------------------------------------------------
def _rests_on(members: Sequence[Candidate], own: bool, grouping: Grouping) -> str:
    friends = sum(member.friend for member in members)
    if not members:
        return "No other steward is known: the result rests on this machine alone, and the job stops when it is off."
    if len(members) < _OTHERS_MIN:
        count = "Only one other steward is" if len(members) == 1 else f"Only {len(members)} other stewards are"
        rest = "this machine and these" if own else "these"
        return f"{count} known: the result rests on {rest}. Connect to more peers for one that rests on more."
    among = f", {friends} of them friends" if friends else ""
    kept = f"The job is kept by {len(members)} stewards{among}"
    if grouping == "peer":
        return f"{kept}; whoever runs this network vouches for its members."
    sources = len({member.source for member in members})
    return f"{kept}, known through {sources} {'source' if sources == 1 else 'different sources'}."


def _missing(usable: Sequence[Candidate], spec: JobSpec, me_offer: Statement | None) -> str:
    if not usable and me_offer is None:
        return (
            "No steward for the job: no peer that this machine has dialled offers stewardship, and this machine offers "
            "none itself. Connect to other peers, or allow stewardship here."
        )
    needed = _common_bytes(spec) + _shard_bytes(spec) * _share(spec, max(1, len(usable)))
    return (
        f"The job does not fit its stewards: with {len(usable)} other peers each would have to keep about "
        f"{max(1, needed >> 20)} MiB and {_share(spec, max(1, len(usable)))} shards of it, and too few offer that. "
        "Connect to more peers, raise their stewardship quota, or split the job."
    )
