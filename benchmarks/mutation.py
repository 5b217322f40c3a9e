"""Which small changes of the core's rules does the simulator notice? A mutant at a time, each in a process of its own.

    python benchmarks/mutation.py --sample 60 --seeds 200

A mutant is one module with one expression or statement changed (`<` for `<=`, `and` for `or`, a condition that always
holds, a call left out ...: mutants.py). It runs worlds, most of them of the scenario `seated`, until one breaks a rule:
it is killed. Tests do not count here: what is asked is what the simulator alone would find.

First every world is run once as the code is, and it is noted which lines it executes and what its trace's digest is.
So a mutant runs only worlds that come to its line, and of one that survives it is known why:
- no world comes to its line (`unreached`): the worlds lack a situation;
- no world's trace is another than without it (`same`): in these worlds it is equivalent;
- something is done otherwise, and no rule is broken (`unseen`): no rule forbids it, or no checker sees it.
ARGUED (argued.py) names those that were read and are equivalent, or a matter of speed; they are counted apart.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from argued import ARGUED
from mutants import CORE, MODULES, ROOT, Mutant, Mutated, function_lines, path_of, sampled, text_at

HANG_S: Final = 20
"""Of processor time, in one world."""
MIXED_EVERY: Final = 10
"""So many worlds of `seated`, then one of `mixed`."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """One world as the code is: what it executes of the modules that are mutated, and what comes of it."""

    scenario: str
    seed: int
    features: tuple[str, ...]
    digest: str
    lines: frozenset[tuple[str, int]]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a mutant. `by`: the rule that it broke; "" when it survived. `reaching`: worlds that come to its
    line, of all. `others`: of those that were run, in how many something was done otherwise."""

    mutant: Mutant
    by: str
    worlds: int
    reaching: int
    others: int
    cpu_s: float

    @property
    def fate(self) -> str:
        if self.by:
            return "killed"
        return "unreached" if not self.reaching else "unseen" if self.others else "same"

    @property
    def argued(self) -> str:
        """Why it changes nothing that a rule says; "" if nobody has said so."""
        return ARGUED.get((self.mutant.module, text_at(self.mutant), self.mutant.what), "")


def worlds(seeds: int) -> Iterator[tuple[str, int]]:
    for seed in range(seeds):
        yield ("mixed", seed) if seed % MIXED_EVERY == MIXED_EVERY - 1 else ("seated", seed)


# --- processes of their own ------------------------------------------------------------------------------------------
def _apart(work: Callable[[], Any]) -> tuple[Any, float]:
    """What it gives, and its processor time; None of one that dies or does not end."""
    began = os.times()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        with os.fdopen(writer, "wb") as answers:
            answers.write(json.dumps(work()).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answers:
        answer = answers.read()
    os.waitpid(child, 0)
    ended = os.times()
    return json.loads(answer) if answer else None, ended.children_user - began.children_user


# --- the worlds as the code is ---------------------------------------------------------------------------------------
class _Lines:
    """Notes which lines of some files are executed: of each function until all of it was."""

    def __init__(self) -> None:
        self._modules = {str(path_of(module)): module for module in MODULES}
        self._missing: dict[Any, set[int]] = {}
        self.found: set[tuple[str, int]] = set()

    def call(self, frame: Any, event: str, arg: object) -> Any:
        code = frame.f_code
        module = self._modules.get(code.co_filename)
        if module is None:
            return None
        missing = self._missing.get(code)
        if missing is None:
            missing = self._missing[code] = {line for _, _, line in code.co_lines() if line is not None}
        if not missing:
            return None

        def line(frame: Any, event: str, arg: object) -> Any:
            if frame.f_lineno in missing:
                missing.discard(frame.f_lineno)
                self.found.add((module, frame.f_lineno))
            return line

        line(frame, event, arg)
        return line


def _observed(scenario: str, seed: int) -> list[Any]:
    from nexapod.sim import scenarios

    lines = _Lines()
    sys.settrace(lines.call)
    try:
        result = scenarios.run_seed(scenario, seed)
    finally:
        sys.settrace(None)
    if result.violations:
        print(
            f"left out, as it breaks {result.violations[0].invariant} without any mutant: {result.replay}", flush=True
        )
        return [scenario, seed, result.features, "", []]
    return [scenario, seed, result.features, result.digest, sorted(lines.found)]


def baselines(seeds: int, folder: Path) -> list[Baseline]:
    """Of all worlds; kept in a file beside others of other versions of the code."""
    sources = sorted((ROOT / "nexapod").glob("**/*.py"))
    version = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    kept = folder / f"nexapod-mutation-{version}.json"
    known: list[Any] = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else []
    have = {(scenario, seed) for scenario, seed, *_ in known}
    missing = [world for world in worlds(seeds) if world not in have]
    if missing:
        found, _ = _apart(lambda: [_observed(*world) for world in missing])
        assert found is not None, "a world does not run without any mutant"
        known += found
        kept.write_text(json.dumps(known), encoding="utf-8")
    wanted = set(worlds(seeds))
    return [
        Baseline(scenario, seed, tuple(features), digest, frozenset((module, line) for module, line in lines))
        for scenario, seed, features, digest, lines in known
        if (scenario, seed) in wanted and digest
    ]


def reaching(mutant: Mutant, known: Sequence[Baseline]) -> list[Baseline]:
    """The worlds that come to its line, of each kind of trouble one before the second of any."""
    found = list(known)
    if mutant.line in function_lines(mutant.module):
        found = [world for world in known if (mutant.module, mutant.line) in world.lines]
    turns: Counter[tuple[str, ...]] = Counter()
    ranked = []
    for world in found:
        ranked.append((turns[world.features], world.seed, world))
        turns[world.features] += 1
    return [world for *_, world in sorted(ranked, key=lambda entry: entry[:2])]


# --- running one -----------------------------------------------------------------------------------------------------
def broken_by(mutant: Mutant, tried: Sequence[Baseline]) -> tuple[str, int, int]:
    """In this process: the first rule that a world of a mutant breaks, how many worlds that took, and in how many of
    them something was done otherwise."""
    sys.meta_path.insert(0, Mutated(mutant))
    from nexapod.sim import checkers, scenarios

    checkers.VIOLATIONS_MAX = 1  # type: ignore[misc]
    others = 0
    for count, world in enumerate(tried, 1):
        signal.setitimer(signal.ITIMER_VIRTUAL, HANG_S)
        try:
            result = scenarios.run_seed(world.scenario, world.seed)
        except Exception as error:
            return f"raises {type(error).__name__}", count, others + 1
        others += result.digest != world.digest
        if result.violations:
            return result.violations[0].invariant, count, others
    return "", len(tried), others


def judged(mutant: Mutant, known: Sequence[Baseline], most: int) -> Verdict:
    """In a process of its own, since the core is imported anew; one that hangs is killed, in both senses."""
    tried = reaching(mutant, known)
    if not tried:
        return Verdict(mutant, "", 0, 0, 0, 0.0)
    answer, cpu_s = _apart(lambda: broken_by(mutant, tried[:most]))
    by, count, others = answer or ("hangs or does not load", 0, 0)
    return Verdict(mutant, by, count, len(tried), others, cpu_s)


# --- the report ----------------------------------------------------------------------------------------------------
def report(verdicts: Sequence[Verdict]) -> None:
    """By module, and every survivor."""
    modules = sorted({verdict.mutant.module for verdict in verdicts})
    for module in modules:
        own = [verdict for verdict in verdicts if verdict.mutant.module == module]
        print(f"{module:24} {sum(1 for one in own if one.by)} of {len(own)} killed")
    for verdict in verdicts:
        if not verdict.by:
            mutant = verdict.mutant
            why = f"  ({verdict.argued})" if verdict.argued else ""
            print(f"survives, {verdict.fate:9}: {mutant.module}:{mutant.line}: {mutant.what}{why}")
    killed = [verdict for verdict in verdicts if verdict.by]
    print("killed by:", dict(Counter(verdict.by for verdict in killed).most_common()))
    print("survivors:", dict(Counter(verdict.fate for verdict in verdicts if not verdict.by).most_common()))
    argued = sum(1 for verdict in verdicts if not verdict.by and verdict.argued)
    print(f"{len(killed)} of {len(verdicts)} killed ({100 * len(killed) // max(1, len(verdicts))} %)", end="")
    print(f"; of those that are not argued to change no rule, {100 * len(killed) // max(1, len(verdicts) - argued)} %")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, default=60, help="mutants in all; 0 for every one")
    parser.add_argument("--seeds", type=int, default=200, help="worlds there are")
    parser.add_argument("--worlds", type=int, default=200, help="of those that come to its line, at most, for each")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--at", action="append", default=[], help="MODULE:LINE: all mutants of a line, and no others")
    parser.add_argument("--within-s", type=int, default=0, help="start no further mutant after so long; 0: no bound")
    parser.add_argument("--out", type=Path, help="append one JSON object a mutant")
    parser.add_argument(
        "--baselines", type=Path, default=Path(tempfile.gettempdir()), help="the folder to keep them in"
    )
    parser.add_argument("modules", nargs="*", help=f"below {CORE}; all that hold rules, if none is named")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    known = baselines(options.seeds, options.baselines)
    began, verdicts = time.monotonic(), []
    chosen = sampled(options.modules or MODULES, 0 if options.at else options.sample, options.seed)
    for mutant in chosen:
        if options.at and f"{mutant.module}:{mutant.line}" not in options.at:
            continue
        if options.within_s and time.monotonic() - began > options.within_s:
            break
        verdict = judged(mutant, known, options.worlds)
        verdicts.append(verdict)
        print(f"{verdict.by or verdict.fate:24} {verdict.worlds:4} {verdict.cpu_s:6.1f} s {mutant}", flush=True)
        if options.out is not None:
            with options.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps({**asdict(verdict), "fate": verdict.fate, "argued": verdict.argued}) + "\n")
    report(verdicts)


if __name__ == "__main__":
    main()
