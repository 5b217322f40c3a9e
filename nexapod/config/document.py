"""Strict reading of TOML that people write: each key is taken once, with its type and bounds; what is left is unknown.

Problems are collected, not raised, so that a person sees all of them at once, each with its line and the nearest key
that exists. Knows nothing of what the keys mean.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from nexapod.config.errors import ConfigError, Problem

FILE_BYTES_MAX: Final = 4 << 20
SPELT_BITS_MAX: Final = 256
_KEY = r"""(?:"(?:[^"\\]|\\.)*"|'[^']*'|[A-Za-z0-9_-]+)"""
_PATH = rf"{_KEY}(?:\s*\.\s*{_KEY})*"
_HEADER = re.compile(rf"\s*\[\[?\s*({_PATH})\s*\]\]?")
_ENTRY = re.compile(rf"\s*({_PATH})\s*=")
_PART = re.compile(_KEY)
_KINDS: Final[Mapping[type, str]] = {
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    list: "a list",
    dict: "a table",
}


def kind_of(value: object) -> str:
    """What a TOML value is, in a person's words."""
    return _KINDS.get(type(value), "a date or time")


def spelt(value: object) -> str:
    """A value in an error. Python does not write numbers of thousands of digits, alone or in a list."""
    if isinstance(value, int) and value.bit_length() > SPELT_BITS_MAX:
        return f"a number of {value.bit_length()} bits"
    try:
        return repr(value)
    except ValueError:
        return kind_of(value)


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint: which of the known words was probably meant, or what they are."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"allowed: {', '.join(names)}" if names else "nothing is allowed here"


def line_numbers(text: str) -> dict[tuple[str, ...], int]:
    """Where each table and key is written: a reading aid, so what it cannot follow it leaves out."""
    found: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    quote = ""
    for number, line in enumerate(text.splitlines(), start=1):
        inside = bool(quote)
        for mark in ('"""', "'''"):
            if (not quote or quote == mark) and line.count(mark) % 2:
                quote = "" if quote else mark
        if inside:
            continue
        header = _HEADER.match(line)
        entry = None if header else _ENTRY.match(line)
        if header:
            table = _parts(header.group(1))
            found.setdefault(table, number)
        elif entry:
            found.setdefault((*table, *_parts(entry.group(1))), number)
    return found


def _parts(path: str) -> tuple[str, ...]:
    return tuple(p[1:-1] if p[0] in "\"'" else p for p in _PART.findall(path))


class Document:
    """One TOML file, and the problems found in it so far."""

    def __init__(self, source: str, text: str) -> None:
        """Raises ConfigError when it is not TOML at all."""
        self.source = source
        self.problems: list[Problem] = []
        self.lines = line_numbers(text)
        try:
            self.data: dict[str, Any] = tomllib.loads(text)
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            raise ConfigError([Problem(source, 0, "", f"it is not valid TOML: {error}")]) from None
        except ValueError:
            # What is left of it: int() takes no more than a few thousand digits.
            raise ConfigError([Problem(source, 0, "", "a number in it has thousands of digits")]) from None

    @classmethod
    def open(cls, path: Path) -> Document:
        """Raises ConfigError when the file cannot be read, is too large, or is not TOML."""
        try:
            with path.open("rb") as file:
                raw = file.read(FILE_BYTES_MAX + 1)
        except OSError as error:
            raise ConfigError([Problem(str(path), 0, "", f"it cannot be read: {error.strerror}")]) from None
        if len(raw) > FILE_BYTES_MAX:
            raise ConfigError([Problem(str(path), 0, "", f"it is larger than {FILE_BYTES_MAX >> 20} MiB")])
        try:
            return cls(str(path), raw.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise ConfigError([Problem(str(path), 0, "", f"it is not UTF-8 at byte {error.start}")]) from None

    @property
    def root(self) -> Table:
        return Table(self, (), self.data)

    def problem(self, path: tuple[str, ...], what: str) -> None:
        """Note a problem at a key; its line is that of the nearest enclosing place that is known."""
        line = 0
        for depth in range(len(path), 0, -1):
            if path[:depth] in self.lines:
                line = self.lines[path[:depth]]
                break
        self.problems.append(Problem(self.source, line, ".".join(path), what))

    def raise_problems(self) -> None:
        """Raises ConfigError with all problems, in the order of their lines, if there are any."""
        if self.problems:
            raise ConfigError(sorted(self.problems, key=lambda p: p.line))


class Table:
    """One table being read. Each method takes a key and gives its value, or the default and a problem noted."""

    def __init__(self, document: Document, path: tuple[str, ...], data: Mapping[str, Any]) -> None:
        self.document = document
        self.path = path
        self.data = data
        self._known: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return key in self.data

    def problem(self, key: str, what: str) -> None:
        """Note that a key is wrong; "" speaks of the table itself."""
        self.document.problem((*self.path, key) if key else self.path, what)

    def raw(self, key: str) -> Any:
        """The value as TOML has it, None when absent."""
        self._known.add(key)
        return self.data.get(key)

    def require(self, key: str, what: str) -> bool:
        """Whether the key is there; a problem when it is not."""
        self._known.add(key)
        if key not in self.data:
            self.problem(key, f"it is missing: {what}")
        return key in self.data

    def _typed(self, key: str, kinds: tuple[type, ...], wanted: str) -> Any:
        value = self.raw(key)
        if value is None or type(value) in kinds:
            return value
        self.problem(key, f"expected {wanted}, not {kind_of(value)}")
        return None

    def text(self, key: str, default: str = "", *, bytes_max: int = 256, lines: bool = False) -> str:
        """Text of at most so many bytes of UTF-8, without control characters (but line breaks if `lines`)."""
        value = self._typed(key, (str,), "text")
        return default if value is None or not self.check_text(key, value, bytes_max, lines=lines) else str(value)

    def check_text(self, key: str, value: str, bytes_max: int, *, lines: bool = False) -> bool:
        """Whether text is printable and short enough; a problem when it is not."""
        if len(value.encode("utf-8")) > bytes_max:
            self.problem(key, f"it is longer than {bytes_max} bytes")
            return False
        if any(not (c.isprintable() or (lines and c in "\n\t")) for c in value):
            self.problem(key, "control characters are not allowed")
            return False
        return True

    def choice(self, key: str, allowed: Iterable[str], default: str) -> str:
        """One of a few words."""
        words = tuple(allowed)
        value = self._typed(key, (str,), "text: " + " or ".join(repr(w) for w in words))
        if value is None:
            return default
        if value not in words:
            self.problem(key, f"{value!r} is not possible: {nearest(value, words)}")
            return default
        return str(value)

    def flag(self, key: str, default: bool) -> bool:
        """true or false."""
        value = self._typed(key, (bool,), "true or false")
        return default if value is None else bool(value)

    def whole(self, key: str, default: int, low: int, high: int) -> int:
        """A whole number in [low, high]."""
        value = self._typed(key, (int,), "a whole number")
        return default if value is None or not self._within(key, value, low, high) else int(value)

    def number(self, key: str, default: float, low: float, high: float) -> float:
        """A number in [low, high]."""
        value = self._typed(key, (int, float), "a number")
        return default if value is None or not self._within(key, value, low, high) else float(value)

    def _within(self, key: str, value: float, low: float, high: float) -> bool:
        if not low <= value <= high:
            self.problem(key, f"{spelt(value)} is not possible: from {low} to {high} is allowed")
            return False
        return True

    def strings(self, key: str, *, count_max: int, bytes_max: int = 256, lines: bool = False) -> tuple[str, ...]:
        """A list of texts, each as `text` takes it."""
        value = self._typed(key, (list,), "a list of texts")
        if value is None:
            return ()
        if len(value) > count_max:
            self.problem(key, f"{len(value)} entries: at most {count_max} are allowed")
            return ()
        for item in value:
            if type(item) is not str:
                self.problem(key, f"every entry must be text, not {kind_of(item)}")
                return ()
            if not self.check_text(key, item, bytes_max, lines=lines):
                return ()
        return tuple(value)

    def table(self, key: str) -> Table:
        """A table below this one; empty when absent."""
        value = self._typed(key, (dict,), "a table")
        return Table(self.document, (*self.path, key), value or {})

    def end(self) -> None:
        """Every key not taken so far is unknown: say so, with the nearest one that exists."""
        for key in self.data:
            if key not in self._known:
                self.problem(key, f"unknown key; {nearest(key, self._known)}")
