"""Rules of the house that no linter knows, as tests."""

from __future__ import annotations

import ast
import re
import tokenize
import tomllib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest

from nexapod import version

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "nexapod"
LINES_MAX = 700
MODULES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
EMPTY_ALLOWED = {"__init__.py"}
PRINTING = {"nexapod/executor/wasm/runner.py", "nexapod/executor/wasm/cache.py"}
"""A process of its own, without the daemon's log: what it says to its stderr is all that it can say."""
PAUSING = {"tests/loopback/test_mesh_containment.py"}
"""Shows faults of the library that give no sign to wait for: some are that nothing happens."""
POLL_HELPER = re.compile(r"^_?(wait|poll|until|eventually)")


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@lru_cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _tracked_texts() -> Iterator[Path]:
    """What is published: code, documents and settings, not what tools leave behind."""
    suffixes = {".py", ".md", ".toml", ".yml", ".yaml", ".json", ".cfg", ".sh", ".in", ".cff", ".txt", ".html", ".js"}
    for path in sorted(ROOT.rglob("*")):
        parts = path.relative_to(ROOT).parts
        if any(
            (part.startswith(".") and part != ".github") or part in ("__pycache__", "node_modules") for part in parts
        ):
            continue
        if path.is_file() and (path.suffix in suffixes or path.name in ("Makefile", "Dockerfile")):
            yield path


# --- code ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("path", MODULES + TESTS, ids=_name)
def test_every_module_says_what_it_is_for(path: Path) -> None:
    tree = _tree(path)
    if path.name in EMPTY_ALLOWED and not tree.body:
        return
    assert ast.get_docstring(tree), f"{_name(path)} has no module docstring"


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_no_module_is_long(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= LINES_MAX, f"{_name(path)} has {lines} lines: it is more than one thing"


@pytest.mark.parametrize("path", [p for p in MODULES if "cli" not in p.relative_to(PACKAGE).parts], ids=_name)
def test_only_the_command_line_prints(path: Path) -> None:
    if _name(path) in PRINTING:
        return
    printing = [
        node.lineno
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert not printing, f"{_name(path)} prints in lines {printing}: log an event instead"


def _sleeps(tree: ast.AST, function: str = "", *, looped: bool = False) -> Iterator[tuple[int, str]]:
    """(line, enclosing function) of every call of a sleep outside a loop. In a loop it is a look and another look."""
    for node in ast.iter_child_nodes(tree):
        inside, again = function, looped
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            inside, again = node.name, False
        elif isinstance(node, ast.While | ast.For | ast.AsyncFor):
            again = True
        called = node.func if isinstance(node, ast.Call) else None
        if isinstance(called, ast.Attribute) and called.attr in ("sleep", "sleep_until") and not again:
            yield node.lineno, function  # type: ignore[attr-defined]
        yield from _sleeps(node, inside, looped=again)


def _is_a_pause(path: Path, line: int) -> bool:
    """`sleep(0)` lets others run; `# a pause: why` on the line says that the passing of time is what is tested."""
    text = path.read_text(encoding="utf-8").splitlines()[line - 1]
    return "sleep(0)" in text or "# a pause:" in text


@pytest.mark.parametrize("path", [p for p in TESTS if p.name.startswith("test_")], ids=_name)
def test_tests_wait_for_a_condition_and_never_for_time_to_pass(path: Path) -> None:
    if _name(path) in PAUSING:
        return
    found = [
        line
        for line, function in _sleeps(_tree(path))
        if not POLL_HELPER.match(function) and not _is_a_pause(path, line)
    ]
    assert not found, f"{_name(path)} sleeps in lines {found}: wait for a condition, with a deadline"


@pytest.mark.parametrize("path", MODULES + TESTS, ids=_name)
def test_nothing_is_left_to_do_in_comments(path: Path) -> None:
    marks = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
    with path.open("rb") as file:
        found = [
            t.start[0]
            for t in tokenize.tokenize(file.readline)
            if t.type == tokenize.COMMENT and marks.search(t.string)
        ]
    assert not found, f"{_name(path)}, lines {found}"


# --- what the repository must not tell -------------------------------------------------------------------------------
FORBIDDEN = re.compile(r"(?<![\w/.-])/wo" + r"rk\b|\.\./sha" + r"red\b|/tmp/com" + r"mon\b")
"""Paths of a machine that the repository was written on. Put together here, so that this file does not match."""


def test_no_path_of_a_private_machine_is_mentioned() -> None:
    found = []
    for path in _tracked_texts():
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
            if FORBIDDEN.search(line):
                found.append(f"{_name(path)}:{number}")
    assert not found, found


# --- documents -----------------------------------------------------------------------------------------------------
def test_every_decision_is_in_the_index_and_every_entry_leads_somewhere() -> None:
    folder = ROOT / "docs" / "decisions"
    numbered = {path.name for path in folder.glob("[0-9][0-9][0-9][0-9]-*.md")}
    index = (folder / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"\]\((\d{4}-[^)]+\.md)\)", index)
    assert sorted(listed) == sorted(numbered)
    for name in sorted(numbered):
        text = (folder / name).read_text(encoding="utf-8")
        for part in ("## Context", "## Decision", "## Rejected", "## Consequences"):
            assert part in text, f"{name} lacks {part!r}"


def test_links_between_documents_lead_somewhere() -> None:
    broken = []
    for path in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]):
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
            if "://" not in target and not target.startswith("mailto:") and not (path.parent / target).exists():
                broken.append(f"{_name(path)} -> {target}")
    assert not broken, broken


# --- the release ---------------------------------------------------------------------------------------------------
def test_there_is_one_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == version.__version__
    assert re.search(rf"^version: {re.escape(version.__version__)}$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert f"[{version.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
