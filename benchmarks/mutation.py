"""Which small changes of the core's rules does the simulator notice? A mutant at a time, each in a process of its own.

    python benchmarks/mutation.py --sample 60 --seeds 200

A mutant is one module with one expression or statement changed (`<` for `<=`, `and` for `or`, a condition that always
holds, a call left out ...). It runs worlds, most of them of the scenario `seated`, until one breaks a rule: it is
killed. One that survives all of them is either a change that no rule forbids, or something that no world shows. Tests
do not count here: what is asked is what the simulator alone would find.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib.abc
import importlib.util
import json
import os
import random
import signal
import sys
import time
import types
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CORE = "nexapod.protocol"
MODULES = (
    *(f"steward.{name}" for name in ("voting", "judging", "refreshing", "granting", "leases", "assigning", "claims")),
    *(f"steward.{name}" for name in ("cosigning", "signed", "proposing", "ballots", "rounds", "pledges", "gate")),
    *(f"steward.{name}" for name in ("tenure", "replacing", "adopting", "telling", "presence", "state", "steward")),
    *("worker.handover", "worker.granting", "facts.freezes", "facts.verdicts", "facts.cosigned", "facts.successions"),
    *("rules.agreement", "rules.succession", "rules.entitlement", "evidence"),
    *(f"certificate.{name}" for name in ("check", "tally", "build", "framing", "shards")),
)
HANG_S = 20
"""Of processor time, in one world."""
MIXED_EVERY = 10
"""So many worlds of `seated`, then one of `mixed`."""
_COMPARED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
_NAMES = {"any": "all", "all": "any", "min": "max", "max": "min"}
_WORDS = {"sign": "refuse", "refuse": "sign", "wait": "sign", "accepted": "failed", "failed": "accepted"}
_TELLING = ("trace", "tables", "table")
"""Calls and functions that only report."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change: `number` counts the places of a module that can be changed."""

    module: str
    number: int
    line: int
    what: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a mutant. `by`: the rule that it broke; "" when it survived."""

    mutant: Mutant
    by: str
    worlds: int
    cpu_s: float


class _Mutation(ast.NodeTransformer):
    """Changes the place of one number, or none (-1), and lists all."""

    def __init__(self, chosen: int = -1) -> None:
        self.chosen = chosen
        self.found: list[tuple[int, str]] = []

    def _is_chosen(self, node: ast.AST, what: str) -> bool:
        self.found.append((getattr(node, "lineno", 0), what))
        return len(self.found) - 1 == self.chosen

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        if node.name in _TELLING:
            return node
        node.body = [statement for child in node.body for statement in self._statement(child)]
        return node

    def _statement(self, node: ast.stmt) -> list[ast.stmt]:
        if isinstance(node, ast.Assert) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            return [node]
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            if _name(node.value.func) in _TELLING:
                return [node]
            if self._is_chosen(node, f"leave out {ast.unparse(node)[:60]}"):
                return [ast.copy_location(ast.Pass(), node)]
        if isinstance(node, ast.Raise):
            return [ast.copy_location(ast.Pass(), node)] if self._is_chosen(node, "do not raise") else [node]
        visited = self.visit(node)
        return visited if isinstance(visited, list) else [visited]

    def _block(self, body: list[ast.stmt]) -> list[ast.stmt]:
        return [statement for child in body for statement in self._statement(child)]

    def visit_If(self, node: ast.If) -> ast.AST:
        node.test = self._condition(node.test)
        node.body, node.orelse = self._block(node.body), self._block(node.orelse)
        return node

    def visit_While(self, node: ast.While) -> ast.AST:
        node.test = self.visit(node.test)
        node.body = self._block(node.body)
        return node

    def visit_For(self, node: ast.For) -> ast.AST:
        node.iter = self.visit(node.iter)
        node.body = self._block(node.body)
        return node

    def _condition(self, test: ast.expr) -> ast.expr:
        for value in (True, False):
            if self._is_chosen(test, f"if {value} for {ast.unparse(test)[:60]}"):
                return ast.copy_location(ast.Constant(value), test)
        visited: ast.expr = self.visit(test)
        return visited

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        for place, op in enumerate(node.ops):
            other = _COMPARED.get(type(op))
            if other is not None and self._is_chosen(node, f"{other.__name__} in {ast.unparse(node)[:60]}"):
                node.ops[place] = other()
        return self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        if self._is_chosen(node, f"and/or in {ast.unparse(node)[:60]}"):
            node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        return self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        if isinstance(node.op, ast.Not) and self._is_chosen(node, f"no not in {ast.unparse(node)[:60]}"):
            return self.visit(node.operand)
        return self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        if isinstance(node.op, (ast.Add, ast.Sub)) and self._is_chosen(node, f"+/- in {ast.unparse(node)[:60]}"):
            node.op = ast.Sub() if isinstance(node.op, ast.Add) else ast.Add()
        return self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        name = _name(node.func)
        if isinstance(node.func, ast.Name) and name in _NAMES and self._is_chosen(node, f"{_NAMES[name]} for {name}"):
            node.func.id = _NAMES[name]
        return node if name in _TELLING else self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if isinstance(node.value, bool):
            if self._is_chosen(node, f"not {node.value}"):
                return ast.copy_location(ast.Constant(not node.value), node)
        elif isinstance(node.value, int):
            if self._is_chosen(node, f"{node.value + 1} for {node.value}"):
                return ast.copy_location(ast.Constant(node.value + 1), node)
        elif node.value in _WORDS and self._is_chosen(node, f"{_WORDS[str(node.value)]} for {node.value}"):
            return ast.copy_location(ast.Constant(_WORDS[str(node.value)]), node)
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.value = None if node.value is None else self.visit(node.value)
        return node

    def visit_arguments(self, node: ast.arguments) -> ast.AST:
        return node

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        return node


def _name(func: ast.expr) -> str:
    return func.attr if isinstance(func, ast.Attribute) else func.id if isinstance(func, ast.Name) else ""


# --- which mutants ---------------------------------------------------------------------------------------------------
def path_of(module: str) -> Path:
    return ROOT / "nexapod/protocol" / (module.replace(".", "/") + ".py")


def mutants_of(module: str) -> list[Mutant]:
    """All of a module, in the order of its places."""
    mutation = _Mutation()
    mutation.visit(ast.parse(path_of(module).read_text(encoding="utf-8")))
    return [Mutant(module, number, line, what) for number, (line, what) in enumerate(mutation.found)]


def sampled(modules: Sequence[str], count: int, seed: int) -> list[Mutant]:
    """As many of each module as its share of all mutants, at least one; 0: all."""
    every = {module: mutants_of(module) for module in modules}
    total = sum(len(mutants) for mutants in every.values())
    rng = random.Random(seed)
    chosen: list[Mutant] = []
    for mutants in every.values():
        some = len(mutants) if count == 0 else max(1, round(count * len(mutants) / total))
        chosen += rng.sample(mutants, min(some, len(mutants)))
    rng.shuffle(chosen)
    return chosen


# --- running one -----------------------------------------------------------------------------------------------------
class _Mutated(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module changed."""

    def __init__(self, mutant: Mutant) -> None:
        self._mutant = mutant

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> object:
        wanted = fullname == f"{CORE}.{self._mutant.module}"
        return importlib.util.spec_from_loader(fullname, self) if wanted else None

    def exec_module(self, module: types.ModuleType) -> None:
        path = path_of(self._mutant.module)
        tree = _Mutation(self._mutant.number).visit(copy.deepcopy(ast.parse(path.read_text(encoding="utf-8"))))
        exec(compile(ast.fix_missing_locations(tree), str(path), "exec"), module.__dict__)


def worlds(seeds: int) -> Iterator[tuple[str, int]]:
    for seed in range(seeds):
        yield ("mixed", seed) if seed % MIXED_EVERY == MIXED_EVERY - 1 else ("seated", seed)


def broken_by(mutant: Mutant | None, seeds: int) -> tuple[str, int]:
    """In this process: the first rule that a world of a mutant breaks, and how many worlds that took."""
    if mutant is not None:
        sys.meta_path.insert(0, _Mutated(mutant))
    from nexapod.sim import scenarios

    for count, (scenario, seed) in enumerate(worlds(seeds), 1):
        signal.setitimer(signal.ITIMER_VIRTUAL, HANG_S)
        try:
            result = scenarios.run_seed(scenario, seed)
        except Exception as error:
            return f"raises {type(error).__name__}", count
        if result.violations:
            return result.violations[0].invariant, count
    return "", seeds


def judged(mutant: Mutant, seeds: int) -> Verdict:
    """In a process of its own, since the core is imported anew; one that hangs is killed, in both senses."""
    began = os.times()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os.write(writer, json.dumps(broken_by(mutant, seeds)).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answers:
        answer = answers.read()
    os.waitpid(child, 0)
    ended = os.times()
    by, count = json.loads(answer) if answer else ("hangs or does not load", 0)
    return Verdict(mutant, by, count, ended.children_user - began.children_user)


# --- the report ----------------------------------------------------------------------------------------------------
def report(verdicts: Sequence[Verdict]) -> None:
    """By module, and every survivor."""
    modules = sorted({verdict.mutant.module for verdict in verdicts})
    for module in modules:
        own = [verdict for verdict in verdicts if verdict.mutant.module == module]
        print(f"{module:24} {sum(1 for one in own if one.by)} of {len(own)} killed")
    for verdict in verdicts:
        if not verdict.by:
            print(f"survives: {verdict.mutant.module}:{verdict.mutant.line}: {verdict.mutant.what}")
    killed = [verdict for verdict in verdicts if verdict.by]
    print("killed by:", dict(Counter(verdict.by for verdict in killed).most_common()))
    print(f"{len(killed)} of {len(verdicts)} killed ({100 * len(killed) // max(1, len(verdicts))} %)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, default=60, help="mutants in all; 0 for every one")
    parser.add_argument("--seeds", type=int, default=200, help="worlds, at most, for each")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--within-s", type=int, default=0, help="start no further mutant after so long; 0: no bound")
    parser.add_argument("--out", type=Path, help="append one JSON object a mutant")
    parser.add_argument("modules", nargs="*", help=f"below {CORE}; all that hold rules, if none is named")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    began, verdicts = time.monotonic(), []
    for mutant in sampled(options.modules or MODULES, options.sample, options.seed):
        if options.within_s and time.monotonic() - began > options.within_s:
            break
        verdict = judged(mutant, options.seeds)
        verdicts.append(verdict)
        print(f"{verdict.by or 'SURVIVES':24} {verdict.worlds:4} {verdict.cpu_s:6.1f} s {mutant}", flush=True)
        if options.out is not None:
            with options.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(verdict)) + "\n")
    report(verdicts)


if __name__ == "__main__":
    main()
