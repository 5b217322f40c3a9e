"""Changing what a liar's node would send, statement by statement."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from nexapod.protocol.errors import PeerError
from nexapod.protocol.events import Effect, Send
from nexapod.protocol.wire import messages, statements
from nexapod.protocol.wire.messages import Deliver
from nexapod.protocol.wire.statements import Statement
from nexapod.sim.keys import verify


def message_of(frame: bytes) -> messages.Message | None:
    """What a frame says; None for garbage."""
    try:
        return messages.decode(frame)
    except PeerError:
        return None


def statements_of(frame: bytes) -> list[Statement]:
    """The statements that a frame delivers; those that do not hold are left out."""
    message = message_of(frame)
    found = []
    for envelope in message.envelopes if isinstance(message, Deliver) else ():
        try:
            found.append(statements.decode(envelope, verify))
        except PeerError:
            continue
    return found


def lied(before: list[Effect], after: list[Effect]) -> int:
    """How many of the effects are others than they were, or are left out."""
    return len(before) - len(after) + sum(1 for one, other in zip(before, after, strict=False) if one is not other)


def rewritten(
    effects: list[Effect], kind: statements.Kind, change: Callable[[Statement], Statement | None]
) -> list[Effect]:
    """The same effects, with each sent statement of a kind changed, or left out where `change` gives None."""
    return [_rewritten(effect, kind, change) if isinstance(effect, Send) else effect for effect in effects]


def _rewritten(effect: Send, kind: statements.Kind, change: Callable[[Statement], Statement | None]) -> Send:
    message = message_of(effect.frame)
    if not isinstance(message, Deliver):
        return effect
    if all(statements.read(envelope).kind != kind for envelope in message.envelopes):
        return effect
    envelopes = []
    for envelope in message.envelopes:
        if statements.read(envelope).kind != kind:
            envelopes.append(envelope)
            continue
        changed = change(statements.decode(envelope, verify))
        if changed is not None:
            envelopes.append(changed.envelope)
    return replace(effect, frame=messages.encode(Deliver(tuple(envelopes))))
