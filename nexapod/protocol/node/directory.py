"""Who is there: a bounded random sample of the peers of the network, and the links of this node.

What a peer says of itself on its own link ranks above what others tell of it: an entry that was only relayed never
displaces one that was met. What is relayed is bounded for each operator group that relays, within its own share, so
that one that floods displaces only what it told before. A linked peer's entry is never dropped. Uptimes are this
process's own observations. Knows nothing of jobs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from nexapod.protocol import limits
from nexapod.protocol.primitives import Millis, PeerId
from nexapod.protocol.rules.groups import group_of
from nexapod.protocol.rules.panel import Candidate
from nexapod.protocol.tables import TableReport, longest
from nexapod.protocol.types import Group, Grouping, Profile
from nexapod.protocol.wire.statements import Statement

Forwarder = str
"""Who told of a peer: an operator group, or a peer id where the address shows none."""


@dataclass(slots=True)
class Link:
    """A link that is there. `addr`: the remote multiaddr, "" when unknown."""

    addr: str
    dialled: bool
    since: Millis


@dataclass(slots=True)
class Entry:
    """One peer as this node knows it. `profile` and `offer` are the newest statements of it."""

    introducer: PeerId | None
    """Who told of it first; None: it came by itself, or this node's user named it."""
    share: Forwarder | None = None
    """Whose share of what is relayed it takes up; None: it was met."""
    profile: Statement | None = None
    offer: Statement | None = None
    met: Millis | None = None
    lost: Millis | None = None
    up_ms: Millis = 0
    """How long earlier links to it lasted."""

    def newest(self, kind: Literal["profile", "offer"]) -> Statement | None:
        return self.profile if kind == "profile" else self.offer


class Directory:
    """The peers that this node knows of. `entropy(n)` gives n unpredictable bytes. Implements context.Peers."""

    def __init__(
        self, me: PeerId, network: str, grouping: Grouping, entropy: Callable[[int], bytes], now: Millis = 0
    ) -> None:
        self.me = me
        self.network = network
        self._grouping: Grouping = grouping
        self._entropy = entropy
        self._started = now
        self._entries: dict[PeerId, Entry] = {}
        self._links: dict[PeerId, Link] = {}
        self._order: tuple[PeerId, ...] | None = None
        self._relayed: dict[Forwarder, list[PeerId]] = {}
        """Entries that were never met, by who told of them."""
        self._own = Entry(None)

    # --- links -----------------------------------------------------------------------------------------------------
    def peer_up(self, peer: PeerId, addr: str, now: Millis, *, dialled: bool) -> None:
        """A link is there. Said again, it replaces what was said of the link before."""
        old = self._links.get(peer)
        self._links[peer] = Link(addr, dialled or (old is not None and old.dialled), old.since if old else now)
        self._order = None
        entry = self._entries.get(peer) or self._enter(peer, None)
        if entry is None:
            return
        if entry.met is None:
            self._leave_relayed(peer, entry)
            entry.met = now
        entry.lost = None

    def peer_down(self, peer: PeerId, now: Millis) -> None:
        """The last link is gone."""
        link = self._links.pop(peer, None)
        if link is None:
            return
        self._order = None
        entry = self._entries.get(peer)
        if entry is not None:
            entry.up_ms += now - link.since
            entry.lost = now

    def unreachable(self, peer: PeerId, now: Millis) -> None:
        """A dial failed."""
        entry = self._entries.get(peer)
        if entry is not None and entry.lost is None and peer not in self._links:
            entry.lost = now

    # --- what peers say --------------------------------------------------------------------------------------------
    def is_news(self, kind: Literal["profile", "offer"], author: PeerId, raw: bytes, sender: PeerId) -> bool:
        """Whether a statement may be worth its signature check: asked before it is made."""
        if author == self.me:
            return False
        entry = self._entries.get(author)
        if entry is None:
            return True
        # A link's own word is enough: nobody else is heard of a peer that is linked.
        if sender != author and author in self._links:
            return False
        old = entry.newest(kind)
        return old is None or old.raw != raw

    def learn(self, statement: Statement, sender: PeerId) -> bool:
        """A peer's profile or offer, told by `sender`. True when it is kept and new."""
        peer, body = statement.author, statement.body
        if body.network != self.network or peer == self.me:
            return False
        entry = self._entries.get(peer)
        if entry is None:
            entry = self._enter(peer, None if sender == peer else sender)
        if entry is None:
            return False
        kind: Literal["profile", "offer"] = "profile" if isinstance(body, Profile) else "offer"
        old = entry.newest(kind)
        if old is not None and old.body.seq >= body.seq:
            return False
        if kind == "profile":
            entry.profile = statement
        else:
            entry.offer = statement
        return True

    def withdraw_offer(self, peer: PeerId) -> None:
        """Said on its own link: it would be no steward (any more)."""
        entry = self._entries.get(peer)
        if entry is not None:
            entry.offer = None

    def set_own(self, profile: Statement | None, offer: Statement | None) -> None:
        self._own.profile, self._own.offer = profile, offer

    def _forwarder(self, sender: PeerId) -> Forwarder:
        return self.group(sender, self._grouping) or sender

    def tables(self) -> tuple[TableReport, ...]:
        return (
            TableReport("peers known", len(self._entries), limits.DIRECTORY_MAX),
            TableReport("peers told of by a group", longest(self._relayed.values()), limits.RELAYED_PER_FORWARDER_MAX),
        )

    # --- room ------------------------------------------------------------------------------------------------------
    def _enter(self, peer: PeerId, introducer: PeerId | None) -> Entry | None:
        """A new entry; None when there is no room for it."""
        share = None if introducer is None else self._forwarder(introducer)
        if share is not None:
            if not self._room_for_relayed(share):
                return None
            self._relayed.setdefault(share, []).append(peer)
        elif len(self._entries) >= limits.DIRECTORY_MAX and not self._evict():
            return None
        entry = self._entries[peer] = Entry(introducer, share)
        return entry

    def _room_for_relayed(self, share: Forwarder) -> bool:
        """A forwarder with its full share, or one where the table is full, displaces an entry of its own at random.

        So the table is a sample of all that was told, and no forwarder pushes out what another told or what was met.
        """
        told = self._relayed.get(share, [])
        full = len(self._entries) >= limits.DIRECTORY_MAX
        if len(told) < limits.RELAYED_PER_FORWARDER_MAX and not full:
            return True
        if not told:
            return self._displace_largest_share()
        self._drop(told[self._below(len(told))])
        return True

    def _displace_largest_share(self) -> bool:
        """Somebody who has told of nobody yet gets a place from the one who has most, if it has several."""
        largest = max(self._relayed, key=lambda name: (len(self._relayed[name]), name), default=None)
        if largest is None or len(self._relayed[largest]) < 2:
            return False
        told = self._relayed[largest]
        self._drop(told[self._below(len(told))])
        return True

    def _evict(self) -> bool:
        """Room for a peer that is met: what was relayed goes first, then who has been gone for longest."""
        if self._relayed:
            largest = max(self._relayed, key=lambda name: (len(self._relayed[name]), name))
            told = self._relayed[largest]
            self._drop(told[self._below(len(told))])
            return True
        gone = [(entry.lost or 0, peer) for peer, entry in self._entries.items() if peer not in self._links]
        if not gone:
            return False
        self._drop(min(gone)[1])
        return True

    def _drop(self, peer: PeerId) -> None:
        self._leave_relayed(peer, self._entries.pop(peer))

    def _leave_relayed(self, peer: PeerId, entry: Entry) -> None:
        if entry.share is None:
            return
        told = self._relayed[entry.share]
        told.remove(peer)
        if not told:
            del self._relayed[entry.share]
        entry.share = None

    def _below(self, count: int) -> int:
        """A random number below `count`, of a bias that does not matter here."""
        return int.from_bytes(self._entropy(4), "big") % count

    # --- context.Peers ---------------------------------------------------------------------------------------------
    def linked(self, peer: PeerId) -> bool:
        return peer == self.me or peer in self._links

    def links(self) -> tuple[PeerId, ...]:
        if self._order is None:
            self._order = tuple(sorted(self._links))
        return self._order

    def some_links(self, count: int, but: PeerId) -> tuple[PeerId, ...]:
        others = [peer for peer in self.links() if peer != but]
        if len(others) <= count:
            return tuple(others)
        return tuple(others.pop(self._below(len(others))) for _ in range(count))

    def group(self, peer: PeerId, grouping: Grouping) -> Group | None:
        """This node sees no address of its own: by the network rule it has no group at itself."""
        if peer == self.me:
            return group_of(peer, "", grouping)
        link = self._links.get(peer)
        return None if link is None else group_of(peer, link.addr, grouping)

    def met(self, peer: PeerId) -> Millis | None:
        entry = self._entries.get(peer)
        return self._started if peer == self.me else entry.met if entry else None

    def lost(self, peer: PeerId) -> Millis | None:
        """A peer that this process never had a link to has been away since its start."""
        if self.linked(peer):
            return None
        entry = self._entries.get(peer)
        return entry.lost if entry and entry.lost is not None else self._started

    def addrs(self, peer: PeerId) -> tuple[str, ...]:
        profile = self.profile(peer)
        if profile is not None and profile.addrs:
            return profile.addrs
        offer = self._entry(peer).offer
        addrs: tuple[str, ...] = offer.body.addrs if offer else ()
        return addrs

    def profile(self, peer: PeerId) -> Profile | None:
        statement = self._entry(peer).profile
        return None if statement is None else statement.body

    # --- more that it says -----------------------------------------------------------------------------------------
    def _entry(self, peer: PeerId) -> Entry:
        return self._own if peer == self.me else self._entries.get(peer) or _UNKNOWN

    def __len__(self) -> int:
        return len(self._entries)

    def peers(self) -> Iterable[tuple[PeerId, Entry, Link | None]]:
        """Everybody but this node, in a fixed order."""
        return [(peer, entry, self._links.get(peer)) for peer, entry in sorted(self._entries.items())]

    def linked_peers(self) -> list[tuple[PeerId, Entry, Link]]:
        """Those with a link, in a fixed order."""
        return [(peer, self._entry(peer), self._links[peer]) for peer in self.links()]

    def offer(self, peer: PeerId) -> Statement | None:
        """Its newest offer."""
        return self._entry(peer).offer

    def seen_up_ms(self, peer: PeerId, now: Millis) -> Millis:
        """For how long this process has seen it up: links that ended, and the one that stands."""
        if peer == self.me:
            return now - self._started
        link = self._links.get(peer)
        return self._entry(peer).up_ms + (now - link.since if link else 0)

    def introducer(self, peer: PeerId) -> PeerId | None:
        """Who told of it before this node met it."""
        return self._entry(peer).introducer

    def candidates(self, now: Millis, stamp: int = 0) -> list[Candidate]:
        """Whom this node could name as stewards: linked peers that it got through to itself, and whose offers hold at
        the wall clock `stamp`; 0: it is not known. In a fixed order."""
        found = []
        for peer in self.links():
            link, offer = self._links[peer], self.offer(peer)
            if link.dialled and offer is not None and offer.body.until > stamp:
                found.append(Candidate(offer, link.addr, self.seen_up_ms(peer, now), self.introducer(peer)))
        return found

    def sample(self, count: int, asker: PeerId, now: Millis) -> list[Statement]:
        """Profiles and offers of at most `count` random peers to tell another of.

        Only of peers that this node has had a link to lately: nobody vouches for hearsay, and who is gone for good is
        forgotten by all.
        """
        told = [
            peer
            for peer, entry in sorted(self._entries.items())
            if peer != asker and entry.profile is not None and self.lately(peer, entry, now)
        ]
        chosen = [told.pop(self._below(len(told))) for _ in range(min(count, len(told)))]
        entries = [self._entries[peer] for peer in chosen]
        return [said for entry in entries for said in (entry.profile, entry.offer) if said is not None]

    def lately(self, peer: PeerId, entry: Entry, now: Millis) -> bool:
        """Whether it is linked, or was within the last half hour."""
        if peer in self._links:
            return True
        return entry.met is not None and entry.lost is not None and now - entry.lost < limits.MEMBER_GONE_MIN_MS

    def unlinked(self, count: int) -> list[tuple[PeerId, tuple[str, ...]]]:
        """Random peers without a link, and where they can be dialled: for whoever keeps up the overlay."""
        others = [peer for peer in sorted(self._entries) if peer not in self._links and self.addrs(peer)]
        chosen = [others.pop(self._below(len(others))) for _ in range(min(count, len(others)))]
        return [(peer, self.addrs(peer)) for peer in chosen]


_UNKNOWN = Entry(None)
