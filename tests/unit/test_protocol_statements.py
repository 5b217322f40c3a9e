"""nexapod.protocol.statements: what is signed, what is refused. The stored vectors cover the rest."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import msgpack
import pytest
from protocol_kit import decode, job, job_spec, make, pid, replica, signer, verdict, verify

from nexapod.protocol import statements
from nexapod.protocol.errors import PeerError
from nexapod.protocol.limits import ENVELOPE_BYTES_MAX, MODULE_BYTES_MAX
from nexapod.protocol.statements import Cancel, check_body, is_content_id, output_root, registry_host
from nexapod.protocol.types import File, JobId, Run, blob_of, key_of_peer_id


def test_a_statement_is_named_by_its_envelope_without_the_signature() -> None:
    statement = make(Cancel(JobId(bytes(32)), "why"), 1)
    version, kind, author, body, signature = msgpack.unpackb(statement.envelope)
    assert statement.id == hashlib.sha256(msgpack.packb([version, kind, author, body])).digest()
    assert signature == signer(1).sign(b"nexapod/2/cancel\0" + body)
    assert (statement.author, author) == (pid(1), key_of_peer_id(pid(1)))


def test_every_kind_comes_back_as_it_was_made() -> None:
    of = job()
    made = replica(of, 3)
    for statement in (of, *made.all, verdict(of, 0, [made])):
        assert decode(statement.envelope) == statement


def test_nothing_is_believed_whose_signature_does_not_hold() -> None:
    statement = job()
    with pytest.raises(PeerError) as caught:
        statements.decode(statement.envelope, lambda *_: False)
    assert (caught.value.rule, caught.value.penalty) == ("bad-signature", 50)


def test_the_signature_is_checked_before_the_body_is_read() -> None:
    body = b"\xc1"
    envelope = msgpack.packb([2, "commit", key_of_peer_id(pid(1)), body, b"nonsense"])
    with pytest.raises(PeerError, match="bad-signature"):
        statements.decode(envelope, verify)


def test_a_newer_version_costs_a_peer_next_to_nothing() -> None:
    with pytest.raises(PeerError) as caught:
        statements.decode(msgpack.packb([3, "job", b"", b"", b""]), verify)
    assert (caught.value.rule, caught.value.penalty) == ("unknown-version", 1)


def test_the_output_root_does_not_depend_on_the_order_of_the_files() -> None:
    a, b = File("a", blob_of(b"1")), File("b", blob_of(b"2"))
    root = output_root("ok", 0, (a, b))
    assert root == output_root("ok", 0, (b, a))
    others = [
        output_root("failed", 0, (a, b)),
        output_root("ok", 1, (a, b)),
        output_root("ok", 0, (a,)),
        output_root("ok", 0, (a, File("b", blob_of(b"3")))),
        output_root("ok", 0, (a, File("c", blob_of(b"2")))),
    ]
    assert len({root, *others}) == 6


def test_a_commitment_is_worth_nothing_to_another_worker_or_task() -> None:
    of = job(tasks=2)
    sealed = {replica(of, worker, task).commit.body.sealed for worker in (3, 4) for task in (0, 1)}
    assert len(sealed) == 4
    assert replica(of, 3).commit.body.sealed != replica(of, 3, salt=b"\1" * 32).commit.body.sealed


def test_a_body_is_checked_as_others_will_check_it() -> None:
    check_body(job_spec())
    with pytest.raises(PeerError, match="tasks: expected an integer"):
        check_body(job_spec(tasks=0))
    with pytest.raises(PeerError, match="too-large"):
        check_body(job_spec(run=Run("wasm", module=blob_of(b"m"), command=("x" * 4096,) * 64)))


def test_a_module_is_no_larger_than_a_runner_can_compile() -> None:
    largest = replace(blob_of(b"m"), size=MODULE_BYTES_MAX)
    check_body(job_spec(run=Run("wasm", module=largest)))
    with pytest.raises(PeerError, match="a module has at most"):
        check_body(job_spec(run=Run("wasm", module=replace(largest, size=MODULE_BYTES_MAX + 1))))


def test_signing_what_nobody_would_take_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError):
        make(Cancel(JobId(bytes(32)), "x" * ENVELOPE_BYTES_MAX), 1)


def test_images_are_named_by_content_alone() -> None:
    digest = "sha256:" + "0a" * 32
    assert is_content_id(digest)
    for wrong in ("sha256:" + "0A" * 32, "sha256:", "md5:" + "0a" * 32, "python:3.11", ""):
        assert not is_content_id(wrong)
        assert registry_host(wrong) is None
    assert registry_host(f"localhost:5000/a/b-c@{digest}") == "localhost:5000"
    assert registry_host(f"ghcr.io/lab/tool@{digest}") == "ghcr.io"
    for wrong in (f"tool@{digest}", f"ghcr.io/Lab/tool@{digest}", f"ghcr.io/../x@{digest}", f"-x/y@{digest}", digest):
        assert registry_host(wrong) is None
