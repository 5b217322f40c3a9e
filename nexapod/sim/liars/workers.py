"""Workers that lie: about results, about time, about what they will do."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from nexapod.protocol.events import Effect, Event, Received, Send
from nexapod.protocol.node.node import Node
from nexapod.protocol.primitives import BlobRef, File, Millis, StatementId, TaskId
from nexapod.protocol.runs import RunResult
from nexapod.protocol.types import JobSpec
from nexapod.protocol.wire import bodies, messages, statements
from nexapod.protocol.wire.messages import Renew
from nexapod.sim.liars.base import Liar
from nexapod.sim.liars.envelopes import lied, message_of, rewritten, statements_of
from nexapod.sim.truth import poison, wrong_result

AT_ONCE_MS: Final = 20
ASKED_MAX: Final = 32
NOTES_MAX: Final = 1_024


class Wrong(Liar):
    """Claims something else than what it should have computed."""

    def runs(self, task: TaskId, spec: JobSpec, honest: RunResult) -> tuple[RunResult, Millis] | None:
        self.attacks += 1
        return wrong_result(task, self.me.encode(), AT_ONCE_MS), AT_ONCE_MS


class Colluder(Liar):
    """One of a gang that claims the same wrong result wherever it can, at once, with all slots that it can."""

    slots = 64

    def runs(self, task: TaskId, spec: JobSpec, honest: RunResult) -> tuple[RunResult, Millis] | None:
        self.attacks += 1
        return wrong_result(task, self.gang.label, AT_ONCE_MS), AT_ONCE_MS


class Silent(Liar):
    """Takes tasks and never ends one."""

    def runs(self, task: TaskId, spec: JobSpec, honest: RunResult) -> tuple[RunResult, Millis] | None:
        self.attacks += 1
        return None


class Hoarder(Silent):
    """Takes as many as it can get, and keeps renewing."""

    slots = 64


class Late(Liar):
    """Takes half an hour for everything."""

    def runs(self, task: TaskId, spec: JobSpec, honest: RunResult) -> tuple[RunResult, Millis] | None:
        self.attacks += 1
        return honest, 1_800_000


class Withholder(Liar):
    """Commits, and never shows."""

    def speaks(self, node: Node, effects: list[Effect]) -> list[Effect]:
        changed = rewritten(effects, "reveal", lambda statement: None)
        self.attacks += lied(effects, changed)
        return changed


class Equivocator(Liar):
    """Commits to one thing towards some seats and to another towards others."""

    def speaks(self, node: Node, effects: list[Effect]) -> list[Effect]:
        changed = [self._other(effect) if self._chosen(effect) else effect for effect in effects]
        self.attacks += lied(effects, changed)
        return changed

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
        self.attacks += 1
        return poison(task, self.me.encode())

    def runs(self, task: TaskId, spec: JobSpec, honest: RunResult) -> tuple[RunResult, Millis] | None:
        return honest, 60_000


class Copycat(Liar):
    """Computes nothing: it commits to junk, asks everybody for results, and reveals whatever it has heard of."""

    def __init__(self, *parts: object) -> None:
        super().__init__(*parts)  # type: ignore[arg-type]
        self.copied = 0
        """Results of others that it has shown as its own."""
        self._asked: set[StatementId] = set()

    def runs(self, task: TaskId, spec: JobSpec, honest: RunResult) -> tuple[RunResult, Millis] | None:
        self.attacks += 1
        return wrong_result(task, self.me.encode(), AT_ONCE_MS), AT_ONCE_MS

    def speaks(self, node: Node, effects: list[Effect]) -> list[Effect]:
        return rewritten([*effects, *self._asks(effects)], "reveal", self._claim)

    def _asks(self, effects: list[Effect]) -> list[Effect]:
        """Whenever it commits, it asks all others how these tasks stand: as a seat would, that lacks them."""
        asked: list[Effect] = []
        for effect in effects:
            for statement in statements_of(effect.frame) if isinstance(effect, Send) else ():
                if statement.kind == "commit" and statement.author == self.me and statement.id not in self._asked:
                    self._asked.add(statement.id)
                    unknown: tuple[tuple[int, messages.Standing], ...] = tuple(
                        (item.task, "unknown") for item in statement.body.items
                    )
                    message = messages.Status(statement.body.job, statement.body.shard, unknown)
                    asked += [self.send(target.peer, message) for target in self.others[:ASKED_MAX]]
        return asked

    def _claim(self, statement: statements.Statement) -> statements.Statement:
        body: bodies.Reveal = statement.body
        items = tuple(replace(item, outputs=self._heard(body, item)) for item in body.items)
        self.copied += sum(one != other for one, other in zip(items, body.items, strict=True))
        return statements.make(replace(body, items=items), self.signer)

    def _heard(self, body: bodies.Reveal, item: bodies.RevealItem) -> tuple[File, ...]:
        return self.gang.notes.get(f"{bytes(body.job).hex()}/{item.task}", item.outputs)  # type: ignore[return-value]

    def hears(self, node: Node, event: Event, now: Millis) -> list[Effect]:
        for statement in statements_of(event.frame) if isinstance(event, Received) else ():
            body = statement.body
            if isinstance(body, bodies.Reveal) and len(self.gang.notes) < NOTES_MAX:
                for item in body.items:
                    self.gang.notes.setdefault(f"{bytes(body.job).hex()}/{item.task}", item.outputs)
        return []


class Squatter(Liar):
    """Renews what it was never given."""

    def speaks(self, node: Node, effects: list[Effect]) -> list[Effect]:
        found: list[Effect] = []
        for effect in effects:
            message = message_of(effect.frame) if isinstance(effect, Send) else None
            if isinstance(effect, Send) and isinstance(message, messages.Claim):
                first = message.shard * 256
                held = tuple(messages.Held(task, "running", 1) for task in range(first, first + 64))
                found += self.attacked([self.send(effect.peer, Renew(message.job, message.shard, held))])
            found.append(effect)
        return found


class Namesake(Liar):
    """Goes on, as it says, from checkpoints that others made and that it was never handed."""

    def speaks(self, node: Node, effects: list[Effect]) -> list[Effect]:
        changed = rewritten(effects, "reveal", self._resumed)
        self.attacks += lied(effects, changed)
        return changed

    def _resumed(self, statement: statements.Statement) -> statements.Statement:
        body: bodies.Reveal = statement.body
        items = tuple(replace(item, resumed=StatementId(self.rng.bytes(32))) for item in body.items)
        return statements.make(replace(body, items=items), self.signer)
