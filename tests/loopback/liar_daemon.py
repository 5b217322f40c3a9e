"""The real daemon with one part replaced: `python liar_daemon.py LIE --home ... --network ... --listen ...`.

    wrong      its executor runs every task, then changes the outputs
    hoard      it takes leases and renews them, and its executor never ends
    copycat    it computes nothing: it commits to junk, asks everybody for results, and claims the first that it sees

The copycat accepts no connections, so that it is never a steward: a steward sees the results of a task before its
tie-break runs, and one that lies in the tie-break colludes with the first liar, which two-of-two agreement does not
claim to withstand.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import trio

from nexapod.config import Config
from nexapod.daemon.app import Parts, make_executors, run
from nexapod.executor.contract import Availability, Ended, Executor, OnReport, TaskRun
from nexapod.protocol import messages, statements
from nexapod.protocol.errors import PeerError
from nexapod.protocol.events import Effect, Event, Received, Send, Tick
from nexapod.protocol.messages import Collect, Have, Offer, Query
from nexapod.protocol.node import Node
from nexapod.protocol.statements import Bid, Commit, Reveal, commitment
from nexapod.protocol.types import ExecutorName, Millis, StatementId, TaskId
from nexapod.store.home import Home

PRY_MS = 200


class Wrapped:
    """An executor around an honest one."""

    name: ExecutorName = "wasm"

    def __init__(self, honest: Executor) -> None:
        self.honest = honest

    async def probe(self) -> Availability:
        return await self.honest.probe()

    async def run(self, run: TaskRun, on_report: OnReport) -> Ended:
        return await self.honest.run(run, on_report)

    async def pause(self, label: str) -> bool:
        return await self.honest.pause(label)

    async def resume(self, label: str) -> bool:
        return await self.honest.resume(label)

    async def survivors(self) -> frozenset[str]:
        return await self.honest.survivors()

    async def reap_orphans(self, keep: frozenset[str] = frozenset()) -> int:
        return await self.honest.reap_orphans(keep)

    async def aclose(self) -> None:
        await self.honest.aclose()


class Wrong(Wrapped):
    """Flips one bit of every output."""

    async def run(self, run: TaskRun, on_report: OnReport) -> Ended:
        ended = await self.honest.run(run, on_report)
        for path in sorted(p for p in run.output.rglob("*") if p.is_file()):
            data = bytearray(path.read_bytes() or b"\0")
            data[len(data) // 2] ^= 1
            path.write_bytes(data)
        return ended


class Hoard(Wrapped):
    """Bids and never works."""

    async def run(self, run: TaskRun, on_report: OnReport) -> Ended:
        await trio.sleep_forever()
        raise AssertionError("unreachable")


class Junk(Wrapped):
    """Has a result at once, and it is not one."""

    async def run(self, run: TaskRun, on_report: OnReport) -> Ended:
        (run.output / "prediction.tsv").write_text(run.label)
        return Ended("ok", 0)


class CopycatNode(Node):
    """Looks for results that others have shown, and claims them as its own."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._signer = arguments[0]
        self._copied: set[TaskId] = set()
        self._pried: Millis = 0

    @property
    def deadline(self) -> Millis | None:
        own = super().deadline
        return self._pried + PRY_MS if own is None else min(own, self._pried + PRY_MS)

    def handle(self, event: Event, now: Millis) -> list[Effect]:
        effects = super().handle(event, now)
        if isinstance(event, Received):
            effects += self._copies(event.frame)
        if isinstance(event, Tick) and self._pried + PRY_MS <= now:
            self._pried = now
            effects += self._questions()
        return effects

    def _questions(self) -> list[Effect]:
        found: list[Effect] = []
        for job, entry in self.jobs.items():
            for shard in range(entry.spec.shards):
                for peer in self.ctx.stewards(job, shard):
                    for question in (Have(job, shard, (), True), Collect(job, shard, ()), Query(job, shard)):
                        found.append(Send(peer, messages.encode(question), ()))
        return found

    def _copies(self, frame: bytes) -> list[Effect]:
        try:
            message = messages.decode(frame)
            shown = [statements.decode(e, self.verify) for e in message.envelopes] if isinstance(message, Offer) else []
        except PeerError:
            return []  # somebody else's garbage: nothing to copy
        found: list[Effect] = []
        for statement in shown:
            if isinstance(statement.body, Reveal) and statement.author != self.me:
                found += self._claim(statement.body)
        return found

    def _claim(self, seen: Reveal) -> list[Effect]:
        """Bid, commit and reveal in one breath."""
        task = TaskId(seen.job, seen.task)
        if task in self._copied:
            return []
        self._copied.add(task)
        bid = statements.make(Bid(task.job, task.shard, (task.index,), 0, StatementId(task.job), 1), self._signer)
        salt = self.ctx.entropy(32)
        sealed = commitment(task.job, task.index, self.me, salt, seen.root)
        commit = statements.make(Commit(task.job, task.index, bid.id, sealed), self._signer)
        reveal = statements.make(replace(seen, commit=commit.id, salt=salt), self._signer)
        offer = messages.encode(Offer((bid.envelope, commit.envelope, reveal.envelope)))
        self.ctx.trace("copied", job=task.job, task=task.index)
        return [Send(peer, offer, ()) for peer in self.ctx.stewards(task.job, task.shard)]


EXECUTORS: dict[str, type[Wrapped]] = {"wrong": Wrong, "hoard": Hoard, "copycat": Junk}


def parts_of(lie: str) -> Parts:
    """The daemon's parts, with the one that lies."""

    def executors(home: Home, seed: bytes) -> dict[str, Executor]:
        honest = make_executors(home, seed)
        return {"wasm": EXECUTORS[lie](honest["wasm"])}

    return Parts(executors, CopycatNode if lie == "copycat" else Node)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lie", choices=sorted(EXECUTORS))
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--network", required=True)
    parser.add_argument("--listen", action="append", default=[])
    parser.add_argument("--bootstrap", action="append", default=[])
    parser.add_argument("--slots", type=int, default=1)
    parser.add_argument("--log-format", default="json")
    options = parser.parse_args()
    config = Config(
        home=options.home,
        network=options.network,
        listen=() if options.lie == "copycat" else tuple(options.listen),
        bootstrap=tuple(options.bootstrap),
        slots=options.slots,
        log_format=options.log_format,
    )
    return run(config, parts_of(options.lie))


if __name__ == "__main__":
    sys.exit(main())
