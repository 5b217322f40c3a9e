"""Prints the field tables of docs/protocol.md from the declarations in nexapod/protocol.

.venv/bin/python tests/protocol/tables.py            write them between the document's markers
.venv/bin/python tests/protocol/tables.py --check    say whether they are what would be written
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from nexapod.protocol import limits
from nexapod.protocol.wire import fields, messages, statements, text

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "protocol.md"


def row(*cells: object) -> str:
    """One row of a table; a bar inside a cell would end it."""
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def table(*heads: str, rows: Iterable[tuple[object, ...]]) -> Iterator[str]:
    """A table with its heads."""
    yield row(*heads)
    yield "|" + "---|" * len(heads)
    yield from (row(*cells) for cells in rows)
    yield ""


def summary(cls: type) -> str:
    """The first paragraph of a record's docstring, in one line."""
    return " ".join(inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0].split())


def record_table(cls: type) -> Iterator[str]:
    """A record's fields in the order of the wire."""
    yield f"#### {cls.__name__}"
    yield ""
    yield summary(cls)
    yield ""
    rows = [(f"`{field.name}`", f"`{field.check.name}`", field.meaning) for field in fields.fields_of(cls)]
    if fields.has_extensions(cls):
        rows.append(("`ext`", "`extensions`", "the extension slot"))
    yield from table("field", "type", "meaning", rows=rows)


def records() -> list[type]:
    """Every declared record: bodies, messages, and after each what it is made of; each once."""
    found: dict[type, None] = {}

    def visit(check: fields.Check[Any]) -> None:
        if check.record is not None:
            found.setdefault(check.record)
        for part in check.parts:
            visit(part)

    for schema in (*statements.SCHEMAS.values(), *messages.SCHEMAS):
        visit(schema)
    return list(found)


def lines() -> Iterator[str]:
    """The generated part of the document."""
    yield "### Kinds of statement"
    yield ""
    kinds = [
        (code, f"`{kind}`", "cosigned" if kind in statements.COSIGNED else "one author", f"`{cls.__name__}`")
        for code, (kind, cls) in enumerate(statements.CLASSES.items())
    ]
    yield from table("code", "kind", "signed by", "body", rows=kinds)
    yield "### Messages"
    yield ""
    said = [(code, f"`{cls.__name__}`", summary(cls)) for code, cls in enumerate(messages.CLASSES)]
    yield from table("code", "message", "what it says", rows=said)
    yield "### Forbidden code points"
    yield ""
    ranges = [(f"`{low:04X}`", f"`{high:04X}`") for low, high in text.FORBIDDEN]
    yield from table("from", "to", rows=ranges)
    yield "### Records"
    yield ""
    for cls in records():
        yield from record_table(cls)


def limit_lines() -> Iterator[str]:
    """Every bound and timeout, with its unit by the name's end."""
    units = (("_MS", "ms"), ("_BYTES_MAX", "bytes"), ("_BYTES", "bytes"))
    rows = [
        (f"`{name}`", value, next((unit for end, unit in units if name.endswith(end)), ""))
        for name, value in vars(limits).items()
        if name.isupper() and isinstance(value, int)
    ]
    yield from table("limit", "value", "unit", rows=sorted(rows))


PARTS: Final[dict[str, Callable[[], Iterable[str]]]] = {"fields": lines, "limits": limit_lines}


def printed(document: str) -> str:
    """The document with its generated parts as they must be."""
    for part, made in PARTS.items():
        begin, end = f"<!-- {part}: begin -->", f"<!-- {part}: end -->"
        before, rest = document.split(begin)
        _, after = rest.split(end)
        document = f"{before}{begin}\n" + "\n".join(made()).rstrip("\n") + f"\n{end}{after}"
    return document


def main(arguments: list[str]) -> int:
    """Write the tables, or say that they are not current."""
    document = DOCUMENT.read_text(encoding="utf-8")
    wanted = printed(document)
    if "--check" in arguments:
        return int(document != wanted)
    DOCUMENT.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
