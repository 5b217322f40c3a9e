"""The stored test vectors hold for this code, and are what tests/vectors/make.py would write."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import msgpack
import pytest

from nexapod.protocol import certificate, groups, messages, statements, tickets
from nexapod.protocol.errors import PeerError
from nexapod.protocol.types import (
    BlobRef,
    Digest,
    File,
    JobId,
    PeerId,
    TaskId,
    blob_of,
    kad_key,
    key_of_peer_id,
    peer_id_of_key,
)

FOLDER = Path(__file__).parent.parent / "vectors"


def _load_maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("nexapod_vectors", FOLDER / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MAKER = _load_maker()


def _stored(name: str) -> Any:
    return json.loads((FOLDER / name).read_text())


def _named(name: str) -> list[Any]:
    return [pytest.param(vector, id=vector["name"]) for vector in _stored(name)]


VALUES = _stored("values.json")


def test_making_the_vectors_again_gives_the_same_files() -> None:
    made = MAKER.build()
    assert {name: (FOLDER / name).read_text() for name in made} == made
    assert {path.name for path in FOLDER.glob("*.json")} == {*made, "version1.json"}


@pytest.mark.parametrize("vector", _named("statements.json"))
def test_a_stored_statement_decodes_to_its_body_and_signs_to_its_bytes(vector: Any) -> None:
    envelope = bytes.fromhex(vector["envelope"])
    statement = statements.decode(envelope, MAKER.verify)
    assert (statement.kind, statement.author) == (vector["kind"], vector["author"])
    assert statement.id.hex() == vector["id"]
    assert MAKER.to_json(statement.body) == vector["body"]
    version, kind, key, body, signature = msgpack.unpackb(envelope)
    assert (version, kind, key) == (2, vector["kind"], key_of_peer_id(vector["author"]))
    assert (body.hex(), signature.hex()) == (vector["body_bytes"], vector["signature"])
    [signer] = [s for s in MAKER.KEYS.values() if s.peer == vector["author"]]
    assert signer.seed.hex() == vector["seed"]
    assert statements.make(statement.body, signer) == statement


def test_every_kind_of_statement_has_a_vector() -> None:
    assert {vector["kind"] for vector in _stored("statements.json")} == set(statements.SCHEMAS)


@pytest.mark.parametrize("vector", [pytest.param(v, id=v["message"]) for v in _stored("messages.json")])
def test_a_stored_message_decodes_to_its_fields_and_encodes_to_its_bytes(vector: Any) -> None:
    frame = bytes.fromhex(vector["frame"])
    message = messages.decode(frame)
    assert type(message).__name__ == vector["message"]
    assert MAKER.to_json(message) == vector["fields"]
    assert messages.encode(message) == frame
    assert msgpack.unpackb(frame)[0] == vector["code"]


def test_every_message_has_a_vector() -> None:
    assert [vector["message"] for vector in _stored("messages.json")] == [
        kind.__name__ for kind in messages.Message.__args__
    ]


@pytest.mark.parametrize("vector", _named("refused.json"))
def test_a_malformed_envelope_is_refused_by_the_rule_that_it_breaks(vector: Any) -> None:
    shown = vector["envelope"]
    data = bytes.fromhex(shown) if isinstance(shown, str) else bytes.fromhex(shown["fill"]) * shown["size"]
    with pytest.raises(PeerError) as caught:
        statements.decode(data, MAKER.verify)
    assert caught.value.rule == vector["rule"]
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("vector", _named("version1.json"))
def test_a_statement_of_the_first_version_is_refused_by_its_version(vector: Any) -> None:
    with pytest.raises(PeerError) as caught:
        statements.decode(bytes.fromhex(vector["envelope"]), MAKER.verify)
    assert (caught.value.rule, caught.value.penalty) == ("unknown-version", 1)


@pytest.mark.parametrize("vector", _named("certificates.json"))
def test_a_stored_certificate_is_judged_as_stored(vector: Any) -> None:
    report = certificate.check(bytes.fromhex(vector["certificate"]), MAKER.verify)
    assert report.ok == vector["ok"]
    if report.ok:
        found = [
            {"task": t.index, "outcome": t.outcome, "root": t.root.hex(), "judges": list(t.judges)}
            for t in report.tasks
        ]
        assert found == vector["tasks"]


def test_stored_peer_ids_and_places_in_the_key_space() -> None:
    for vector in VALUES["peers"]:
        assert peer_id_of_key(bytes.fromhex(vector["public_key"])) == vector["peer"]
    for vector in VALUES["kad_keys"]:
        assert f"{kad_key(vector['peer']):064x}" == vector["key"]


def test_stored_shard_keys_and_their_stewards() -> None:
    for vector in VALUES["shard_keys"]:
        job = JobId(bytes.fromhex(vector["job"]))
        assert f"{tickets.shard_key(job, vector['shard']):064x}" == vector["key"]
    peers = [vector["peer"] for vector in VALUES["peers"]]
    keys = {vector["shard"]: int(vector["key"], 16) for vector in VALUES["shard_keys"]}
    for vector in VALUES["stewards"]:
        nearest = sorted(peers, key=lambda p, key=keys[vector["shard"]]: kad_key(p) ^ key)  # type: ignore[misc]
        assert nearest[:3] == vector["peers"]


def test_stored_tickets_delays_and_seeds() -> None:
    for vector in VALUES["tickets"]:
        task = TaskId(JobId(bytes.fromhex(vector["job"])), vector["task"])
        assert tickets.ticket(task, vector["peer"]) == int(vector["ticket"])
    for vector in VALUES["bid_delays"]:
        value = int(vector["ticket"])
        assert tickets.rank(value, vector["eligible"]) == vector["rank"]
        assert tickets.bid_delay(value, vector["eligible"], vector["wanted"]) == vector["ms"]
    for vector in VALUES["seeds"]:
        task = TaskId(JobId(bytes.fromhex(vector["job"])), vector["task"])
        assert tickets.task_seed(task).hex() == vector["seed"]


def test_stored_names_of_blobs() -> None:
    for vector in VALUES["blobs"]:
        data = bytes.fromhex(vector["bytes"]["fill"]) * vector["bytes"]["size"]
        assert str(blob_of(data)) == vector["blob"]
    assert [vector["bytes"]["size"] for vector in VALUES["blobs"]] == [0, 1, 1 << 20, (1 << 20) + 1]


def test_stored_output_roots_commitments_and_groups() -> None:
    for vector in VALUES["output_roots"]:
        files = tuple(File(f["path"], BlobRef.parse(f["blob"])) for f in vector["outputs"])
        assert statements.output_root(vector["outcome"], vector["exit"], files).hex() == vector["root"]
    for vector in VALUES["commitments"]:
        sealed = statements.commitment(
            JobId(bytes.fromhex(vector["job"])),
            vector["task"],
            PeerId(vector["worker"]),
            bytes.fromhex(vector["salt"]),
            Digest(bytes.fromhex(vector["root"])),
        )
        assert sealed.hex() == vector["sealed"]
    for vector in VALUES["groups"]:
        assert groups.group_of(vector["peer"], vector["addr"]) == vector["group"]
