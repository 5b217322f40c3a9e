"""The vectors of protocol 3 are current, hold for the code, and are read by a decoder that knows the document alone."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import document_decoder as document
import msgpack
import pytest
import tables

from nexapod.protocol.errors import PeerError
from nexapod.protocol.primitives import key_of_peer_id
from nexapod.protocol.wire import messages, statements

FOLDER = Path(__file__).parent / "vectors"


def _maker() -> ModuleType:
    """By its path: the vectors of version 2 have a module of the same name."""
    spec = importlib.util.spec_from_file_location("protocol_vectors", FOLDER / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


maker = _maker()


def _stored(name: str) -> Any:
    return json.loads((FOLDER / name).read_text())


VALUES = _stored("values.json")
STATEMENTS = [pytest.param(v, id=v["name"]) for v in _stored("statements.json")]
MESSAGES = [pytest.param(v, id=v["message"]) for v in _stored("messages.json")]
REFUSED = [pytest.param(v, id=f"{v['what']}: {v['name']}") for v in _stored("refused.json")]


def _bytes(vector: Any) -> bytes:
    return bytes(vector["zeros"]) if "zeros" in vector else bytes.fromhex(vector["bytes"])


# --- current -------------------------------------------------------------------------------------------------------
def test_making_the_vectors_again_gives_the_same_files() -> None:
    made = maker.build()
    assert {name: (FOLDER / name).read_text() for name in made} == made
    assert {path.name for path in FOLDER.glob("*.json")} == set(made)


def test_the_documents_tables_are_those_of_the_declarations() -> None:
    text = tables.DOCUMENT.read_text(encoding="utf-8")
    assert tables.printed(text) == text, "run tests/protocol/tables.py"


def test_every_kind_message_and_refusal_has_a_vector() -> None:
    assert {v["kind"] for v in _stored("statements.json")} == set(statements.KINDS)
    assert [v["message"] for v in _stored("messages.json")] == list(messages.KINDS)
    listed = {rule.strip("`") for row in document.rows("## 3. Statements, names and hashes") for rule in _rules(row[0])}
    assert {v["rule"] for v in _stored("refused.json")} == listed


def _rules(cell: str) -> list[str]:
    return [rule.strip("` ") for rule in cell.split(",")]


# --- the code ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("vector", STATEMENTS)
def test_a_stored_statement_decodes_to_its_body_and_signs_to_its_bytes(vector: Any) -> None:
    statement = statements.decode(bytes.fromhex(vector["envelope"]), maker.verify)
    assert (statement.kind, list(statement.signers)) == (vector["kind"], vector["signers"])
    assert statement.id.hex() == vector["id"]
    assert maker.to_json(statement.body) == vector["body"]
    assert statement.raw.hex() == vector["body_bytes"]
    keys = {signer.peer: name for name, signer in maker.KEYS.items()}
    assert maker.make(statement.body, *(keys[signer] for signer in statement.signers)) == statement


@pytest.mark.parametrize("vector", MESSAGES)
def test_a_stored_message_decodes_to_its_fields_and_encodes_to_its_bytes(vector: Any) -> None:
    frame = bytes.fromhex(vector["frame"])
    message = messages.decode(frame)
    assert (type(message).__name__, maker.to_json(message)) == (vector["message"], vector["fields"])
    assert msgpack.unpackb(frame, strict_map_key=False)[0] == vector["code"]
    assert messages.encode(message) == frame


@pytest.mark.parametrize("vector", REFUSED)
def test_what_is_refused_is_refused_by_its_rule(vector: Any) -> None:
    with pytest.raises(PeerError) as caught:
        _decode(vector["what"], _bytes(vector))
    assert caught.value.rule == vector["rule"]
    assert caught.value.penalty == _points(vector["rule"])


def _decode(what: str, data: bytes) -> Any:
    return statements.decode(data, maker.verify) if what == "statement" else messages.decode(data)


def _points(rule: str) -> int:
    return {int(row[2]) for row in document.rows("## 3. Statements, names and hashes") if rule in row[0]}.pop()


# --- the document alone --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("vector", STATEMENTS)
def test_the_document_alone_reads_and_verifies_every_statement(vector: Any) -> None:
    read = document.statement(bytes.fromhex(vector["envelope"]))
    assert read == {name: vector[name] for name in ("kind", "id", "signers", "body")}


@pytest.mark.parametrize("vector", MESSAGES)
def test_the_document_alone_reads_every_message(vector: Any) -> None:
    assert document.message(bytes.fromhex(vector["frame"])) == (vector["message"], vector["fields"])


@pytest.mark.parametrize("vector", REFUSED)
def test_the_document_alone_refuses_by_the_same_rules(vector: Any) -> None:
    read = document.statement if vector["what"] == "statement" else document.message
    with pytest.raises(document.Refused) as caught:
        read(_bytes(vector))
    assert caught.value.rule == vector["rule"]


def test_every_type_of_the_tables_can_be_parsed() -> None:
    for fields in document.RECORDS.values():
        for _, rule in fields:
            document.parse(rule)


@pytest.mark.parametrize("vector", VALUES["output_roots"])
def test_the_document_alone_makes_output_roots(vector: Any) -> None:
    assert document.output_root(vector["outcome"], vector["exit"], vector["outputs"]) == vector["root"]


@pytest.mark.parametrize("vector", VALUES["commitments"])
def test_the_document_alone_makes_commitments(vector: Any) -> None:
    job, worker, salt, root = (bytes.fromhex(vector[name]) for name in ("job", "worker", "salt", "root"))
    resumed = vector["resumed"] and bytes.fromhex(vector["resumed"])
    assert document.commitment(job, vector["task"], worker, salt, root, resumed) == vector["sealed"]


@pytest.mark.parametrize("vector", VALUES["texts"])
def test_the_document_alone_says_which_text_is_allowed(vector: Any) -> None:
    try:
        document.text(0, 100)(vector["text"])
        allowed = True
    except document.Refused:
        allowed = False
    assert allowed is vector["allowed"]


def test_the_document_alone_makes_the_values_that_seats_bind_themselves_to() -> None:
    for vector in VALUES["bound_values"]:
        assert document.digest(b"nexapod/value\0", bytes.fromhex(vector["value"])) == vector["bound"]


def test_the_document_alone_orders_seats() -> None:
    for vector in VALUES["seats"]:
        panel = [bytes.fromhex(key) for key in vector["panel"]]
        found = document.seats(bytes.fromhex(vector["job"]), vector["shard"], panel)
        assert [key.hex() for key in found] == vector["order"]


def test_the_document_alone_makes_beacons_draws_and_turns() -> None:
    for vector in VALUES["beacons"]:
        shown = [(bytes.fromhex(key), bytes.fromhex(value)) for key, value in vector["values"]]
        assert document.beacon_value(bytes.fromhex(vector["admission"]), shown) == vector["value"]
    for vector in VALUES["draws"]:
        named = (bytes.fromhex(vector["value"]), bytes.fromhex(vector["job"]), vector["shard"], vector["group"])
        assert document.roster_hash(*named) == vector["roster_hash"]
        assert document.tickets(*named, len(vector["tickets"])) == vector["tickets"]
    for vector in VALUES["turns"]:
        assert document.turn(bytes.fromhex(vector["job"]), bytes.fromhex(vector["worker"])) == vector["turn"]


def test_the_document_alone_tells_operator_groups() -> None:
    for vector in VALUES["groups"]:
        assert document.group(vector["grouping"], vector["peer"], vector["addr"]) == vector["group"], vector


def test_peer_ids_are_keys() -> None:
    for vector in VALUES["peers"]:
        assert document.peer(bytes.fromhex(vector["public_key"])) == vector["peer"]
        assert key_of_peer_id(vector["peer"]).hex() == vector["public_key"]
