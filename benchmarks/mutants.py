"""The small changes of the core's rules that mutation.py tries: which there are, and a module with one of them made."""

from __future__ import annotations

import ast
import copy
import importlib.abc
import importlib.util
import random
import re
import types
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
CORE: Final = "nexapod.protocol"
SHARD: Final = ("voting", "judging", "refreshing", "granting", "leases", "assigning", "claims", "cosigning", "signed")
MODULES: Final = (
    *(f"steward.shard.{name}" for name in SHARD),
    *(f"steward.shard.{name}" for name in ("proposing", "adopting", "telling", "intake", "state", "steward")),
    *(f"steward.gate.{name}" for name in ("rounds", "pledges", "drawing", "admitting", "gate", "bids")),
    *(f"steward.tenure.{name}" for name in ("tenure", "replacing", "presence", "ballots", "caretaking", "petitions")),
    *("worker.handover", "worker.granting", "facts.freezes", "facts.verdicts", "facts.cosigned", "facts.successions"),
    *("facts.admissions", "facts.commits", "facts.adoptions"),
    *("rules.agreement", "rules.succession", "rules.entitlement", "rules.beacon", "evidence"),
    *(f"certificate.{name}" for name in ("check", "tally", "build", "framing", "shards")),
)
"""Where the rules of quorum, seats, leases, judging, revealing and certificates are."""
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
_ORDERED = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)
_TIME = re.compile(r"\b(now|when|until|due)\b|_ms\b|_MS\b|_at\b")
"""Of times `<` and `<=` are a millisecond apart: no rule tells that, as whatever is due may be up to 10 ms later."""
_NAMES = {"any": "all", "all": "any", "min": "max", "max": "min"}
_WORDS = {"sign": "refuse", "refuse": "sign", "wait": "sign", "accepted": "failed", "failed": "accepted"}
_TELLING = ("trace", "tables", "table", "proposals_table", "TableReport", "PeerError")
"""Calls and functions that only report, and how many points a wrong word costs."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change: `number` counts the places of a module that can be changed."""

    module: str
    number: int
    line: int
    what: str


COUNT_MAX: Final = 16
"""A larger constant is a size or a time, which one more makes no other."""


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

    def visit_With(self, node: ast.With) -> ast.AST:
        node.body = self._block(node.body)
        return node

    def visit_match_case(self, node: ast.match_case) -> ast.AST:
        node.guard = None if node.guard is None else self._condition(node.guard)
        node.body = self._block(node.body)
        return node

    def visit_IfExp(self, node: ast.IfExp) -> ast.AST:
        node.test = self._condition(node.test)
        node.body, node.orelse = self.visit(node.body), self.visit(node.orelse)
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
            if isinstance(op, _ORDERED) and _TIME.search(ast.unparse(node)):
                continue
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
            if abs(node.value) <= COUNT_MAX and self._is_chosen(node, f"{node.value + 1} for {node.value}"):
                return ast.copy_location(ast.Constant(node.value + 1), node)
        elif node.value in _WORDS and self._is_chosen(node, f"{_WORDS[str(node.value)]} for {node.value}"):
            return ast.copy_location(ast.Constant(_WORDS[str(node.value)]), node)
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.value = None if node.value is None else self.visit(node.value)
        return node

    def visit_arguments(self, node: ast.arguments) -> ast.AST:
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        """Its body; how it is declared is no rule."""
        node.body = self._block(node.body)
        return node

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        return node


def _name(func: ast.expr) -> str:
    return func.attr if isinstance(func, ast.Attribute) else func.id if isinstance(func, ast.Name) else ""


# --- which there are -------------------------------------------------------------------------------------------------
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


class Mutated(importlib.abc.MetaPathFinder, importlib.abc.Loader):
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


# --- where they are --------------------------------------------------------------------------------------------------
@lru_cache
def _lines(module: str) -> tuple[str, ...]:
    return tuple(path_of(module).read_text(encoding="utf-8").splitlines())


def text_at(mutant: Mutant) -> str:
    """The line that it changes: what names it while others above it come and go."""
    return _lines(mutant.module)[mutant.line - 1].strip()


@lru_cache
def function_lines(module: str) -> frozenset[int]:
    """The lines of a module that are executed when something is called; the others are when it is imported."""
    found: set[int] = set()
    for node in ast.walk(ast.parse("\n".join(_lines(module)))):
        if isinstance(node, ast.FunctionDef | ast.Lambda):
            first = node.body[0].lineno if isinstance(node, ast.FunctionDef) else node.lineno
            found.update(range(first, (node.end_lineno or first) + 1))
    return frozenset(found)
