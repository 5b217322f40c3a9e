"""A second decoder of protocol 3, from docs/protocol.md alone: it reads the document's tables and no line of nexapod.

Whatever it cannot read by them, the document does not say. What the tables do not carry (section 2's types, section 3's
hashes and order of refusals) is written out below as the text has it.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import base58
import nacl.exceptions
import nacl.signing

DOCUMENT = (Path(__file__).parent.parent.parent / "docs" / "protocol.md").read_text(encoding="utf-8")
Read = Callable[[Any], Any]


class Refused(Exception):
    """What the document says is refused, by the rule that refuses it."""

    def __init__(self, rule: str) -> None:
        super().__init__(rule)
        self.rule = rule


def need(holds: object, rule: str = "bad-field") -> None:
    if not holds:
        raise Refused(rule)


# --- section 2: msgpack --------------------------------------------------------------------------------------------
class Map(list[tuple[Any, Any]]):
    """A map as it was written."""


class Reader:
    """One msgpack value, by the format's own specification and the document's bounds."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, size: int) -> bytes:
        need(self.at + size <= len(self.data), "not-msgpack")
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, size: int, *, signed: bool = False) -> int:
        return int.from_bytes(self.take(size), "big", signed=signed)

    def value(self, depth: int = 0) -> Any:
        head = self.number(1)
        if head <= 0x7F or head >= 0xE0:
            return head if head <= 0x7F else head - 256
        if head <= 0x8F:
            return self.map(head & 15, depth)
        if head <= 0x9F:
            return self.array(head & 15, depth)
        if head <= 0xBF:
            return self.text(head & 31)
        plain: dict[int, Callable[[], Any]] = {
            0xC0: lambda: None,
            0xC2: lambda: False,
            0xC3: lambda: True,
            0xCA: lambda: float(len(self.take(4))),
            0xCB: lambda: float(len(self.take(8))),
        }
        for power in range(4):
            plain[0xCC + power] = lambda power=power: self.number(1 << power)
            plain[0xD0 + power] = lambda power=power: self.number(1 << power, signed=True)
        for power in range(3):
            plain[0xC4 + power] = lambda power=power: self.take(self.number(1 << power))
            plain[0xD9 + power] = lambda power=power: self.text(self.number(1 << power))
        for power in (1, 2):
            plain[0xDB + power] = lambda power=power: self.array(self.number(1 << power), depth)
            plain[0xDD + power] = lambda power=power: self.map(self.number(1 << power), depth)
        need(head in plain, "not-msgpack")
        return plain[head]()

    def text(self, size: int) -> str:
        try:
            return self.take(size).decode("utf-8")
        except UnicodeDecodeError:
            raise Refused("not-msgpack") from None

    def array(self, count: int, depth: int) -> list[Any]:
        need(depth < 8 and count <= len(self.data), "not-msgpack")
        return [self.value(depth + 1) for _ in range(count)]

    def map(self, count: int, depth: int) -> Map:
        need(depth < 8 and count <= 8, "not-msgpack")
        pairs = Map((self.value(depth + 1), self.value(depth + 1)) for _ in range(count))
        need(not any(isinstance(part, list) for pair in pairs for part in pair), "not-msgpack")
        return pairs


def unpack(data: bytes, size_max: int) -> Any:
    need(len(data) <= size_max, "too-large")
    reader = Reader(data)
    value = reader.value()
    need(reader.at == len(data), "not-msgpack")
    return value


def pack(value: Any) -> bytes:
    """The shortest form of what ids and roots are made from."""
    if value is None:
        return b"\xc0"
    if isinstance(value, int):
        return _pack_number(value)
    if isinstance(value, bytes):
        size = next(n for n in range(3) if len(value) < 1 << (8 << n))
        return bytes([0xC4 + size]) + len(value).to_bytes(1 << size, "big") + value
    if isinstance(value, str):
        raw = value.encode("utf-8")
        if len(raw) < 32:
            return bytes([0xA0 + len(raw)]) + raw
        size = 0 if len(raw) < 256 else 1
        return bytes([0xD9 + size]) + len(raw).to_bytes(1 << size, "big") + raw
    assert isinstance(value, list)
    head = bytes([0x90 + len(value)]) if len(value) < 16 else b"\xdc" + len(value).to_bytes(2, "big")
    return head + b"".join(map(pack, value))


def _pack_number(value: int) -> bytes:
    if -32 <= value <= 127:
        return bytes([value % 256])
    if value >= 0:
        size = next(n for n in range(4) if value < 1 << (8 << n))
        return bytes([0xCC + size]) + value.to_bytes(1 << size, "big")
    size = next(n for n in range(4) if -value <= 1 << ((8 << n) - 1))
    return bytes([0xD0 + size]) + value.to_bytes(1 << size, "big", signed=True)


# --- the document's tables -----------------------------------------------------------------------------------------
def rows(heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its heads."""
    below = DOCUMENT[DOCUMENT.index(f"\n{heading}\n") :].splitlines()[2:]
    first = next(number for number, line in enumerate(below) if line.startswith("|"))
    found = []
    for line in below[first + 2 :]:
        if not line.startswith("|"):
            break
        found.append([cell.strip().strip("`") for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return found


FORBIDDEN = [(int(low, 16), int(high, 16)) for low, high in rows("### Forbidden code points")]
KINDS = {int(code): (kind, signed == "cosigned", body) for code, kind, signed, body in rows("### Kinds of statement")}
MESSAGES = {int(code): name for code, name, _ in rows("### Messages")}
RECORDS = {
    name: [(field, rule) for field, rule, _ in rows(f"#### {name}")]
    for name in re.findall(r"^#### (\w+)$", DOCUMENT, re.MULTILINE)
}


# --- section 2: types ----------------------------------------------------------------------------------------------
def whole(low: int, high: int) -> Read:
    def read(raw: Any) -> int:
        need(type(raw) is int and low <= raw <= high)
        return int(raw)

    return read


def text(low: int, high: int) -> Read:
    def read(raw: Any) -> str:
        need(type(raw) is str and low <= len(raw.encode()) <= high)
        need(not any(low <= ord(character) <= high for character in raw for low, high in FORBIDDEN))
        return str(raw)

    return read


def binary(low: int, high: int) -> Read:
    def read(raw: Any) -> str:
        need(type(raw) is bytes and low <= len(raw) <= high)
        return bytes(raw).hex()

    return read


def path(raw: Any) -> str:
    checked = str(text(1, 255)(raw))
    need(not set(checked) & set("\t\n\\"), "bad-path")
    need(all(part not in ("", ".", "..") for part in checked.split("/")), "bad-path")
    return checked


def peer(raw: Any) -> str:
    key = bytes.fromhex(binary(32, 32)(raw))
    return base58.b58encode(bytes.fromhex("002408011220") + key).decode()


def boolean(raw: Any) -> bool:
    need(type(raw) is bool)
    return bool(raw)


def blob(raw: Any) -> str:
    digest, size = exactly([binary(32, 32), whole(0, 1099511627776)])(raw)
    return f"{digest}:{size}"


def file(raw: Any) -> dict[str, str]:
    return dict(zip(("path", "blob"), exactly([path, blob])(raw), strict=True))


def extensions(raw: Any) -> list[Any]:
    need(isinstance(raw, Map) and len(raw) <= 8)
    keys = [key for key, _ in raw]
    need(all(type(key) is int and 0 <= key <= 255 for key in keys) and keys == sorted(set(keys)))
    need(all(type(value) is bytes for _, value in raw) and sum(len(value) for _, value in raw) <= 1024)
    return [[key, value.hex()] for key, value in raw]


def array(low: int, high: int, item: Read) -> Read:
    def read(raw: Any) -> list[Any]:
        need(type(raw) is list and low <= len(raw) <= high)
        return [item(part) for part in raw]

    return read


def exactly(items: list[Read]) -> Read:
    def read(raw: Any) -> list[Any]:
        need(type(raw) is list and len(raw) == len(items))
        return [item(part) for item, part in zip(items, raw, strict=True)]

    return read


def optional(item: Read) -> Read:
    return lambda raw: None if raw is None else item(raw)


def word(words: dict[int, str]) -> Read:
    def read(raw: Any) -> str:
        need(type(raw) is int and raw in words)
        return words[raw]

    return read


def record(name: str) -> Read:
    def read(raw: Any) -> dict[str, Any]:
        declared = [(field, parse(rule)) for field, rule in RECORDS[name]]
        need(type(raw) is list and len(raw) == len(declared))
        return {field: read_field(part) for (field, read_field), part in zip(declared, raw, strict=True)}

    return read


PLAIN: dict[str, Read] = {
    "u32": whole(0, 4294967295),
    "u63": whole(0, 9223372036854775807),
    "bool": boolean,
    "name": text(1, 256),
    "path": path,
    "digest": binary(32, 32),
    "peer": peer,
    "blob": blob,
    "file": file,
    "extensions": extensions,
}


def parse(rule: str) -> Read:
    """A type as the tables write it."""
    tokens = Tokens(rule)
    read = tokens.type()
    assert tokens.rest == "", f"{rule!r}: {tokens.rest!r}"
    return read


class Tokens:
    """What is left of a type's text."""

    def __init__(self, rest: str) -> None:
        self.rest = rest

    def take(self, pattern: str) -> re.Match[str] | None:
        found = re.match(pattern, self.rest)
        if found is not None:
            self.rest = self.rest[found.end() :]
        return found

    def type(self) -> Read:
        if self.take(r"nil or "):
            return optional(self.type())
        if found := self.take(r"list (\d+)\.\.(\d+) of "):
            return array(int(found[1]), int(found[2]), self.type())
        if found := self.take(r"(int|text|bin) (-?\d+)\.\.(-?\d+)"):
            made: dict[str, Callable[[int, int], Read]] = {"int": whole, "text": text, "bin": binary}
            return made[found[1]](int(found[2]), int(found[3]))
        if found := self.take(r"bin (\d+)"):
            return binary(int(found[1]), int(found[1]))
        if found := self.take(r"word (\d+ [a-z-]+(?:, \d+ [a-z-]+)*)"):
            pairs = (part.split(" ") for part in found[1].split(", "))
            return word({int(number): name for number, name in pairs})
        if self.take(r"\["):
            return self.sequence()
        found = self.take(r"\w+")
        assert found is not None, self.rest
        return PLAIN.get(found[0]) or record(found[0])

    def sequence(self) -> Read:
        items = [self.type()]
        while self.take(r", "):
            items.append(self.type())
        assert self.take(r"\]"), self.rest
        return exactly(items)


# --- section 3 -----------------------------------------------------------------------------------------------------
def message(frame: bytes) -> tuple[str, dict[str, Any]]:
    """(name, fields) of a frame."""
    raw = unpack(frame, 262144)
    need(type(raw) is list and len(raw) == 2, "bad-message")
    need(type(raw[0]) is int and raw[0] in MESSAGES, "unknown-message")
    name = MESSAGES[raw[0]]
    return name, record(name)(raw[1])


def statement(envelope: bytes) -> dict[str, Any]:
    """What an envelope says, its id and who signed it."""
    raw = unpack(envelope, 65536)
    need(type(raw) is list and len(raw) == 4, "bad-envelope")
    version, code, body, signed = raw
    need(type(version) is int and version == 3, "unknown-version")
    need(type(code) is int and code in KINDS, "unknown-kind")
    kind, cosigned, name = KINDS[code]
    _check_frame(body, signed, 64 if cosigned else 1)
    data = b"nexapod/3/" + kind.encode("ascii") + b"\0" + body
    need(all(_holds(key, data, signature) for key, signature in signed), "bad-signature")
    fields = record(name)(unpack(body, 65536))
    if kind == "job":
        check_job(fields)
    named = hashlib.sha256(pack([3, code, None if cosigned else signed[0][0], body])).digest()
    return {
        "kind": kind,
        "id": named.hex(),
        "signers": [peer(key) for key, _ in signed],
        "body": fields,
    }


def _check_frame(body: Any, signed: Any, most: int) -> None:
    rule = "bad-envelope"
    need(type(body) is bytes and type(signed) is list and 1 <= len(signed) <= most, rule)
    for pair in signed:
        need(type(pair) is list and len(pair) == 2 and all(type(part) is bytes for part in pair), rule)
        need(len(pair[0]) == 32 and len(pair[1]) == 64, rule)
    keys = [key for key, _ in signed]
    need(keys == sorted(set(keys)), rule)


def _holds(key: bytes, data: bytes, signature: bytes) -> bool:
    try:
        nacl.signing.VerifyKey(key).verify(data, signature)
    except (nacl.exceptions.BadSignatureError, ValueError):
        return False
    return True


def check_job(job: dict[str, Any]) -> None:
    """What no single field of a job shows."""
    need(all(_job_rules(job)))


def _job_rules(job: dict[str, Any]) -> Iterator[bool]:
    run, limits, split = job["run"], job["limits"], job["split"]
    docker = run["executor"] == "docker"
    yield (run["module"] is None) == docker and (run["image"] is not None) == docker
    if run["module"] is not None:
        yield int(run["module"].split(":")[1]) <= 100663296
    if run["image"] is not None:
        content = re.fullmatch(r"sha256:[0-9a-f]{64}", run["image"])
        yield bool(content or re.fullmatch(r"[a-z0-9.:-]+/[a-z0-9._/-]+@sha256:[0-9a-f]{64}", run["image"]))
    if run["image_blobs"]:
        yield run["image"] == "sha256:" + run["image_blobs"][0].split(":")[0]
    yield not run["workdir"] or (docker and run["workdir"].startswith("/"))
    yield docker or not limits["gpus"]
    paths = [given["path"] for given in (*job["inputs"], *([split] if split else []))]
    yield len(set(paths)) == len(paths)
    yield job["validate"]["agree"] <= job["validate"]["max_replicas"]
    known = [weighed for weighed, _ in job["policy"]["weights"]]
    yield len(set(known)) == len(known)
    yield re.fullmatch(r"([0-9]{1,3}\.[0-9]{1,3})?", job["requires"]["gpu_capability"]) is not None
    if split is not None:
        edges = split["bounds"]
        yield int(split["index"].split(":")[1]) == 12 * job["tasks"]
        yield edges == sorted(edges) and len(edges) == -(-job["tasks"] // 256) + 1
        yield split["header"] <= edges[0] and edges[-1] <= int(split["blob"].split(":")[1])


# --- sections 3.1 to 3.3 -------------------------------------------------------------------------------------------
def digest(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()


def u32(number: int) -> bytes:
    return number.to_bytes(4, "big")


def output_root(outcome: str, exit_status: int, outputs: list[dict[str, str]]) -> str:
    listing = []
    for output in sorted(outputs, key=lambda output: output["path"].encode()):
        named, size = output["blob"].split(":")
        listing.append([output["path"], int(size), bytes.fromhex(named)])
    return digest(b"nexapod/output\0", pack([outcome, exit_status, listing]))


def commitment(job: bytes, task: int, worker: bytes, salt: bytes, root: bytes, resumed: bytes | None) -> str:
    return digest(b"nexapod/commit\0", job, u32(task), worker, salt, root, resumed or bytes(32))


def seed(job: bytes, task: int) -> str:
    return digest(b"nexapod/seed\0", job, u32(task))


def seats(job: bytes, shard: int, panel: list[bytes]) -> list[bytes]:
    return sorted(panel, key=lambda key: digest(b"nexapod/seat\0", job, u32(shard), key))


def beacon_value(admission: bytes, shown: list[tuple[bytes, bytes]]) -> str:
    return digest(b"nexapod/beacon\0", admission, *(part for pair in shown for part in pair))


def roster_hash(value: bytes, job: bytes, shard: int, group: str) -> str:
    return digest(b"nexapod/roster\0", value, job, u32(shard), group.encode())[:16]


def tickets(value: bytes, job: bytes, shard: int, group: str, count: int) -> list[str]:
    stream = hashlib.shake_128(b"nexapod/draw\0" + value + job + u32(shard) + group.encode()).digest(8 * count)
    return [stream[8 * place : 8 * place + 8].hex() for place in range(count)]


def turn(job: bytes, worker: bytes) -> int:
    return int(digest(b"nexapod/turn\0", job, worker)[:4], 16)


def group(grouping: str, name: str, addr: str) -> str | None:
    """Section 3.4. The address that an observer sees, as a multiaddr."""
    if grouping == "peer":
        return name
    found = None if "/p2p-circuit" in addr else re.match(r"(?:/ip6zone/[^/]+)?/ip([46])/([^/]+)", addr)
    try:
        seen = ipaddress.ip_address(found[2]) if found else None
    except ValueError:
        return None
    if isinstance(seen, ipaddress.IPv6Address) and seen.ipv4_mapped is not None:
        seen = seen.ipv4_mapped
    if seen is None or seen.is_loopback or seen.is_unspecified or seen.is_multicast:
        return None
    return str(ipaddress.ip_network((seen, 24 if seen.version == 4 else 48), strict=False))
