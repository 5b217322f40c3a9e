"""A peer whose statements and messages are well signed and well encoded, and say something else than they should: one
field of each is changed at random. What validates nothing, or trusts what it is told, shows here."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any, Final

from nexapod.protocol.errors import PeerError
from nexapod.protocol.events import Effect, Send
from nexapod.protocol.node.node import Node
from nexapod.protocol.primitives import PeerId
from nexapod.protocol.wire import messages, statements
from nexapod.protocol.wire.messages import Deliver
from nexapod.sim.keys import verify
from nexapod.sim.liars.base import Liar
from nexapod.sim.liars.envelopes import message_of

PERMILLE: Final = 200
KINDS: Final = ("commit", "reveal", "checkpoint", "succession", "admission", "beacon", "freeze", "verdict", "adoption")
MESSAGES: Final = ("Lease", "Grant", "Claim", "Renew", "Status", "Object", "Value", "Release", "Decided", "Ready")


class Mangler(Liar):
    """Changes one field of every fifth thing that it says of a job."""

    def speaks(self, node: Node, effects: list[Effect]) -> list[Effect]:
        return [self._maybe(effect) if isinstance(effect, Send) else effect for effect in effects]

    def _maybe(self, effect: Send) -> Effect:
        if not self.rng.chance(PERMILLE):
            return effect
        message = message_of(effect.frame)
        other: messages.Message | None = None
        if isinstance(message, Deliver):
            other = Deliver(tuple(self._envelope(envelope) for envelope in message.envelopes))
        elif type(message).__name__ in MESSAGES:
            other = self._valid(message)
        if other is None or other == message:
            return effect
        self.attacks += 1
        return replace(effect, frame=messages.encode(other))

    def _envelope(self, envelope: bytes) -> bytes:
        """Of a statement that it has signed itself, another; signed by itself alone."""
        if statements.read(envelope).kind not in KINDS:
            return envelope
        statement = statements.decode(envelope, verify)
        if self.me not in statement.signers:
            return envelope
        try:
            mangled = statements.make(self._mangled(statement.body), self.signer)
            return statements.decode(mangled.envelope, verify).envelope
        except (PeerError, ValueError, KeyError, TypeError, OverflowError, AssertionError):
            return envelope

    def _valid(self, message: Any) -> messages.Message | None:
        """None: what came of it nobody can encode, or would be refused unread."""
        try:
            return messages.decode(messages.encode(self._mangled(message)))
        except (PeerError, ValueError, KeyError, TypeError, OverflowError, AssertionError):
            return None

    # --- changing one thing ----------------------------------------------------------------------------------------
    def _mangled(self, value: Any) -> Any:
        if is_dataclass(value) and not isinstance(value, type):
            names = [one.name for one in fields(value) if one.name not in ("ext", "job")]
            name = self.rng.pick(names)
            return replace(value, **{name: self._mangled(getattr(value, name))})
        if isinstance(value, bool):
            return not value
        if isinstance(value, int):
            return self.rng.pick((value + 1, max(0, value - 1), 0, value + 300))
        if isinstance(value, bytes):
            return type(value)(self.rng.bytes(len(value)))
        if isinstance(value, tuple):
            return self._tuple(value)
        if isinstance(value, str) and value in self._addrs:
            return PeerId(self.rng.pick(self.others).peer)
        return value

    def _tuple(self, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if not value:
            return value
        at = self.rng.below(len(value))
        match self.rng.below(4):
            case 0:
                return (*value[:at], *value[at + 1 :])
            case 1:
                return (*value, value[at])
            case 2:
                return tuple(reversed(value))
            case _:
                return (*value[:at], self._mangled(value[at]), *value[at + 1 :])
