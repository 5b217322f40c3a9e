"""Blame is a type: whose mistake an error is decides who must act on it."""

from __future__ import annotations


class ProtocolError(Exception):
    """Base of the two: never raised itself."""


class LocalError(ProtocolError):
    """We misused the protocol: a bug or a bad request of this machine's user. Says what to do next."""


class PeerError(ProtocolError):
    """Another peer broke the protocol.

    `rule` is a short, fixed name (safe to log and to count), `penalty` how bad it is in points; a peer whose points
    pass `limits.PENALTY_MAX` is disconnected. The message never contains the peer's bytes unescaped.
    """

    def __init__(self, rule: str, detail: str = "", *, penalty: int = 10) -> None:
        super().__init__(f"{rule}: {detail}" if detail else rule)
        self.rule = rule
        self.detail = detail
        self.penalty = penalty
