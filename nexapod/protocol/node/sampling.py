"""What peers learn of one another: Hello on each new link, and a Sample from one link in turn.

The cost does not depend on the size of the network: SAMPLE_MAX peers each SAMPLE_MS, and as many again for an answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from nexapod.protocol import limits
from nexapod.protocol.context import Context
from nexapod.protocol.errors import PeerError
from nexapod.protocol.node.directory import Directory
from nexapod.protocol.node.recovery import NODE_RECORD, OFFER_SEQ, PROFILE_SEQ
from nexapod.protocol.primitives import Millis, PeerId, peer_id_of_key
from nexapod.protocol.records import Record
from nexapod.protocol.types import Offer, Profile
from nexapod.protocol.wire import statements
from nexapod.protocol.wire.messages import Hello, Sample
from nexapod.protocol.wire.statements import Statement, Unverified

Check = Callable[[PeerId, Unverified], Statement | None]
"""Verifies a statement at the cost of the peer that sent it; None: it has nothing left to pay with."""


class Sampling:
    """This node's own profile and offer, and everybody else's into the directory. `seqs`: those signed before."""

    def __init__(self, ctx: Context, directory: Directory, check: Check, seqs: dict[bytes, int]) -> None:
        self._ctx = ctx
        self._directory = directory
        self._check = check
        self._seqs = seqs
        self._turn = 0
        self._asked: PeerId | None = None
        self.profile: Statement | None = None
        self.offer: Statement | None = None
        self.deadline: Millis = ctx.now + limits.SAMPLE_MS

    # --- of this node ----------------------------------------------------------------------------------------------
    def profile_changed(self, profile: Profile) -> Profile:
        """Sign it and tell all links. Returns it as signed."""
        seq = self._next(PROFILE_SEQ, profile.stamp)
        self.profile = self._ctx.sign(replace(profile, seq=seq))
        self._tell_all()
        signed: Profile = self.profile.body
        return signed

    def offer_changed(self, offer: Offer | None) -> None:
        """Sign it, or withdraw the one before, and tell all links."""
        if offer is not None:
            offer = replace(offer, seq=self._next(OFFER_SEQ, offer.seq))
        self.offer = None if offer is None else self._ctx.sign(offer)
        self._tell_all()

    def _next(self, name: bytes, stamp: Millis) -> int:
        # At least the wall clock, where the driver gives one: a node that has lost its records is still believed.
        seq = self._seqs[name] = max(self._seqs.get(name, 0) + 1, stamp)
        self._ctx.save(Record(NODE_RECORD, name, seq.to_bytes(8, "big")))
        return seq

    def _tell_all(self) -> None:
        self._directory.set_own(self.profile, self.offer)
        for peer in self._directory.links():
            self._say_hello(peer)

    def _say_hello(self, peer: PeerId) -> None:
        profile, offer = self.profile, self.offer
        self._ctx.send(
            peer,
            Hello(
                limits.PROTOCOL_MINOR,
                None if profile is None else profile.envelope,
                None if offer is None else offer.envelope,
            ),
        )

    # --- of others -------------------------------------------------------------------------------------------------
    def peer_up(self, peer: PeerId) -> None:
        self._say_hello(peer)

    def on_hello(self, peer: PeerId, message: Hello) -> None:
        """A peer says what it is: only that of itself."""
        if message.offer is None:
            self._directory.withdraw_offer(peer)
        for kind, envelope in (("profile", message.profile), ("offer", message.offer)):
            if envelope is None:
                continue
            unverified = statements.read(envelope)
            if unverified.kind != kind or author_of(unverified) != peer:
                raise PeerError("bad-hello", f"not a {kind} of its sender's")
            self._learn(unverified, peer)

    def on_sample(self, peer: PeerId, message: Sample, allowance: int) -> None:
        """Others' profiles and offers; `allowance`: bytes that an answer may have.

        Nobody is heard on others that was not asked, but for the one who asks in the same breath.
        """
        if message.answer or peer == self._asked:
            for envelope in message.envelopes:
                self._on_relayed(peer, statements.read(envelope))
        if message.answer:
            self._send_sample(peer, answer=False, bytes_max=allowance)
        elif peer == self._asked:
            self._asked = None

    def _on_relayed(self, peer: PeerId, unverified: Unverified) -> None:
        if unverified.kind not in ("profile", "offer"):
            raise PeerError("bad-sample", f"a {unverified.kind} among profiles and offers")
        self._learn(unverified, peer)

    def _learn(self, unverified: Unverified, sender: PeerId) -> None:
        kind: Literal["profile", "offer"] = "profile" if unverified.kind == "profile" else "offer"
        if not self._directory.is_news(kind, author_of(unverified), unverified.raw, sender):
            return
        statement = self._check(sender, unverified)
        if statement is not None and self._directory.learn(statement, sender):
            self._ctx.trace(f"{kind}_learned", peer=statement.author, sender=sender)

    # --- time ------------------------------------------------------------------------------------------------------
    def tick(self) -> None:
        """Ask one linked peer in turn, and tell it as much."""
        if self._ctx.now < self.deadline:
            return
        self.deadline = self._ctx.now + limits.SAMPLE_MS
        links = self._directory.links()
        if not links:
            return
        self._turn += 1
        self._asked = links[self._turn % len(links)]
        self._send_sample(self._asked, answer=True, bytes_max=limits.DELIVER_BYTES_MAX)

    def _send_sample(self, peer: PeerId, *, answer: bool, bytes_max: int) -> None:
        told: list[bytes] = []
        for statement in self._directory.sample(limits.SAMPLE_MAX, peer, self._ctx.now):
            envelope = statement.envelope
            bytes_max -= len(envelope) + 8
            if bytes_max < 0:
                break
            told.append(envelope)
        if told or answer:
            self._ctx.send(peer, Sample(tuple(told), answer))


def author_of(unverified: Unverified) -> PeerId:
    """Who says to have signed a statement by one author."""
    return peer_id_of_key(unverified.signatures[0][0])
