"""The real daemon with one part replaced: `python liar_daemon.py LIE --home ... --network ... --listen ...`.

    wrong      its executor runs every task, then changes the outputs
    hoard      it takes leases and renews them, and its executor never ends
    copycat    it computes nothing: it commits to junk, asks everybody for results, and claims whatever it sees

and every other liar of the simulator (nexapod/sim/liars) around an honest executor: `two-faced-seat`, `mute-seat`...
Each of those says in its log, as `lied`, how often it has done what an honest peer would not.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import trio

from nexapod.config import Config
from nexapod.daemon.app import Parts, make_executors, run
from nexapod.executor.contract import Availability, Ended, Executor, OnReport, TaskRun
from nexapod.mesh import identity
from nexapod.protocol.events import Effect, Event, Trace
from nexapod.protocol.node.node import Node
from nexapod.protocol.primitives import ExecutorName, Millis
from nexapod.sim.liars import KINDS, envelopes
from nexapod.sim.liars.base import Gang, Target
from nexapod.sim.rng import Rng
from nexapod.store.home import Home


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


class LyingNode(Node):
    """The core of a daemon, as one of the simulator's liars has it hear and speak."""

    def __init__(self, kind: str, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        signer = arguments[0]
        gang = Gang(1, [signer])
        self._liar = KINDS[kind](signer, Rng(int.from_bytes(signer.sign(b"liar")[:8], "big")), (), gang)
        self._told = 0

    def handle(self, event: Event, now: Millis) -> list[Effect]:
        liar = self._liar
        liar.others = tuple(Target(peer, "") for peer in sorted(link.peer for link in self.link_reports()))
        own = liar.hears(self, event, now)
        heard = [] if liar.swallows(self, event) else super().handle(event, now)
        effects = [*own, *liar.speaks(self, heard)]
        if liar.attacks > self._told:
            self._told = liar.attacks
            effects.append(Trace("lied", {"attacks": liar.attacks}))
        return effects


EXECUTORS: dict[str, type[Wrapped]] = {"wrong": Wrong, "hoard": Hoard, "copycat": Junk}
LIES = sorted({*EXECUTORS, *KINDS})


def parts_of(lie: str) -> Parts:
    """The daemon's parts, with the one that lies."""

    def executors(home: Home, seed: bytes) -> dict[str, Executor]:
        honest = make_executors(home, seed)
        return {"wasm": EXECUTORS.get(lie, Wrapped)(honest["wasm"])}

    def node(*arguments: Any, **named: Any) -> Node:
        if lie in ("wrong", "hoard"):
            return Node(*arguments, **named)
        return LyingNode(lie, *arguments, **named)

    return Parts(executors, node)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lie", choices=LIES)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--network", required=True)
    parser.add_argument("--listen", action="append", default=[])
    parser.add_argument("--bootstrap", action="append", default=[])
    parser.add_argument("--slots", type=int, default=1)
    parser.add_argument("--log-format", default="json")
    options = parser.parse_args()
    envelopes.verify = identity.verify  # a liar of the simulator reads what is signed with the simulator's keys
    config = Config(
        home=options.home,
        network=options.network,
        listen=tuple(options.listen),
        bootstrap=tuple(options.bootstrap),
        slots=options.slots,
        log_format=options.log_format,
    )
    return run(config, parts_of(options.lie))


if __name__ == "__main__":
    sys.exit(main())
