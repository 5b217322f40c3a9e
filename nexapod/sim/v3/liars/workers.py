"""Workers that lie: about results, about time, about what they will do."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from nexapod.protocol.types import BlobRef, Millis, RunResult, TaskId
from nexapod.protocol.v3.events import Effect, Send
from nexapod.protocol.v3.node.node import Node
from nexapod.protocol.v3.types import JobSpec
from nexapod.protocol.v3.wire import bodies, messages, statements
from nexapod.protocol.v3.wire.messages import Deliver, Renew
from nexapod.sim.v3.keys import verify
from nexapod.sim.v3.liars.base import Liar
from nexapod.sim.v3.liars.envelopes import rewritten
from nexapod.sim.v3.truth import poison, wrong_result

AT_ONCE_MS: Final = 20


class Wrong(Liar):
    """Claims something else than what it should have computed."""

    def runs(self, task: TaskId, spec: JobSpec, honest: RunResult) -> tuple[RunResult, Millis] | None:
        return wrong_result(task, self.me.encode(), AT_ONCE_MS), AT_ONCE_MS


class Colluder(Liar):
    """One of a gang that claims the same wrong result wherever it can, at once, with all the slots that it can claim."""

    slots = 64

    def runs(self, task: TaskId, spec: JobSpec, honest: RunResult) -> tuple[RunResult, Millis] | None:
        return wrong_result(task, self.gang.label, AT_ONCE_MS), AT_ONCE_MS


class Silent(Liar):
    """Takes tasks and never ends one."""

    def runs(self, task: TaskId, spec: JobSpec, honest: RunResult) -> tuple[RunResult, Millis] | None:
        return None


class Hoarder(Silent):
    """Takes as many as it can get, and keeps renewing."""

    slots = 64


class Late(Liar):
    """Takes half an hour for everything."""

    def runs(self, task: TaskId, spec: JobSpec, honest: RunResult) -> tuple[RunResult, Millis] | None:
        return honest, 1_800_000


class Withholder(Liar):
    """Commits, and never shows."""

    def speaks(self, node: Node, effects: list[Effect]) -> list[Effect]:
        return rewritten(effects, "reveal", lambda statement: None)


class Equivocator(Liar):
    """Commits to one thing towards some seats and to another towards others."""

    def speaks(self, node: Node, effects: list[Effect]) -> list[Effect]:
        return [self._other(effect) if self._chosen(effect) else effect for effect in effects]

    def _chosen(self, effect: Effect) -> bool:
        return isinstance(effect, Send) and self.rng.chance(500)

    def _other(self, effect: Effect) -> Effect:
        return rewritten([effect], "commit", self._change)[0]

    def _change(self, statement: statements.Statement) -> statements.Statement:
        body: bodies.Commit = statement.body
        items = tuple(replace(item, sealed=type(item.sealed)(self.rng.bytes(32))) for item in body.items)
        return statements.make(replace(body, items=items), self.signer)


class Poisoner(Liar):
    """Keeps something wrong half-way, for others to go on from, and never ends."""

    def keeps(self, task: TaskId) -> BlobRef:
        return poison(task, self.me.encode())

    def runs(self, task: TaskId, spec: JobSpec, honest: RunResult) -> tuple[RunResult, Millis] | None:
        return honest, 60_000


class Copycat(Liar):
    """Computes nothing: it commits to junk, and reveals whatever result it has heard of."""

    def runs(self, task: TaskId, spec: JobSpec, honest: RunResult) -> tuple[RunResult, Millis] | None:
        return wrong_result(task, self.me.encode(), AT_ONCE_MS), AT_ONCE_MS

    def speaks(self, node: Node, effects: list[Effect]) -> list[Effect]:
        return rewritten(effects, "reveal", self._claim)

    def _claim(self, statement: statements.Statement) -> statements.Statement:
        body: bodies.Reveal = statement.body
        heard = self.gang.notes
        items = tuple(
            replace(item, outputs=heard[f"{bytes(body.job).hex()}/{item.task}"])  # type: ignore[arg-type]
            if f"{bytes(body.job).hex()}/{item.task}" in heard
            else item
            for item in body.items
        )
        return statements.make(replace(body, items=items), self.signer)

    def hears(self, node: Node, event: object, now: Millis) -> list[Effect]:
        frame = getattr(event, "frame", b"")
        message = _message(frame)
        for envelope in message.envelopes if isinstance(message, Deliver) else ():
            body = statements.decode(envelope, verify).body
            if isinstance(body, bodies.Reveal) and len(self.gang.notes) < 1024:
                for item in body.items:
                    self.gang.notes.setdefault(f"{bytes(body.job).hex()}/{item.task}", item.outputs)
        return []


class Squatter(Liar):
    """Renews what it was never given."""

    def speaks(self, node: Node, effects: list[Effect]) -> list[Effect]:
        found: list[Effect] = []
        for effect in effects:
            message = _message(effect.frame) if isinstance(effect, Send) else None
            if isinstance(effect, Send) and isinstance(message, messages.Claim):
                first = message.shard * 256
                held = tuple(messages.Held(task, "running", 1) for task in range(first, first + 64))
                found.append(self.send(effect.peer, Renew(message.job, message.shard, held)))
            found.append(effect)
        return found


def _message(frame: bytes) -> messages.Message | None:
    try:
        return messages.decode(frame)
    except Exception:
        return None
