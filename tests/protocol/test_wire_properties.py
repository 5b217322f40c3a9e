"""What holds for every statement and message: decoding is total, exact in both directions, and as the document says."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import document_decoder as document
import pytest
import wire_strategies as wire
from hypothesis import given, settings
from hypothesis import strategies as st

from nexapod.protocol import limits
from nexapod.protocol.errors import PeerError
from nexapod.protocol.primitives import Digest, JobId, PeerId
from nexapod.protocol.wire import bodies, fields, messages, statements, text
from nexapod.sim.keys import HashSigner, verify

SOME = settings(max_examples=5, deadline=None, derandomize=True, database=None)
MANY = settings(max_examples=60, deadline=None, derandomize=True, database=None)
ALICE, BOB, CAROL = (HashSigner(3, name) for name in ("alice", "bob", "carol"))
JOB = JobId(bytes(range(32)))
SCHEMAS = {kind: fields.record(cls) for kind, cls in statements.CLASSES.items()}
"""Without what fits the fields of a job to each other: that is for the vectors."""
COMMIT = statements.make(bodies.Commit(JOB, 0, (bodies.CommitItem(1, Digest(bytes(32))),)), ALICE)
ADMISSION = statements.make(
    bodies.Admission(JOB, 0, 1, ((BOB.peer, "group"),), ((ALICE.peer, Digest(bytes(32))),)), ALICE
)


def rule_of(decode: Any, data: bytes) -> str:
    """The rule that refuses the bytes; "" when none does. Nothing but a PeerError may come out."""
    try:
        decode(data)
    except PeerError as error:
        return error.rule
    return ""


# --- total ---------------------------------------------------------------------------------------------------------
@MANY
@given(st.binary(max_size=200))
def test_any_bytes_decode_or_are_refused(data: bytes) -> None:
    rule_of(messages.decode, data)
    rule_of(lambda envelope: statements.decode(envelope, verify), data)


@MANY
@given(wire.ANYTHING)
def test_any_value_decodes_or_is_refused(value: Any) -> None:
    data = wire.pack(value)
    for schema in (*statements.SCHEMAS.values(), *messages.SCHEMAS):
        rule_of(lambda raw, schema=schema: schema.decode(fields.unpack(raw, 10_000)), data)


def test_bytes_with_many_headers_are_read_or_refused_in_bounded_memory() -> None:
    for head in (b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff"):
        assert rule_of(messages.decode, head + bytes(100)) == "not-msgpack"
    assert rule_of(messages.decode, b"\x91" * 100_000) == "not-msgpack"


# --- round trips ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", statements.KINDS)
def test_every_body_comes_back_as_it_was(kind: statements.Kind) -> None:
    schema = SCHEMAS[kind]

    @SOME
    @given(wire.raw_of(schema))
    def holds(raw: Any) -> None:
        data = wire.pack(raw)
        body = schema.decode(fields.unpack(data, limits.ENVELOPE_BYTES_MAX))
        assert fields.pack(schema.encode(body)) == data
        assert document.record(statements.CLASSES[kind].__name__)(document.unpack(data, limits.ENVELOPE_BYTES_MAX))

    holds()


@pytest.mark.parametrize("code", range(len(messages.CLASSES)), ids=messages.KINDS)
def test_every_message_comes_back_as_it_was(code: int) -> None:
    @SOME
    @given(wire.raw_of(messages.SCHEMAS[code]))
    def holds(raw: Any) -> None:
        frame = wire.pack([code, raw])
        message = messages.decode(frame)
        assert type(message) is messages.CLASSES[code]
        assert messages.encode(message) == frame
        assert document.message(frame)[0] == messages.KINDS[code]

    holds()


@pytest.mark.parametrize("kind", sorted(set(statements.KINDS) - {"job"}))
def test_every_statement_comes_back_as_it_was(kind: statements.Kind) -> None:
    @settings(SOME, max_examples=3)
    @given(wire.raw_of(SCHEMAS[kind]))
    def holds(raw: Any) -> None:
        body = SCHEMAS[kind].decode(fields.unpack(wire.pack(raw), limits.ENVELOPE_BYTES_MAX))
        made = statements.make(body, ALICE)
        assert statements.decode(made.envelope, verify) == made

    holds()


# --- code and document agree on what is wrong ----------------------------------------------------------------------
def _document_rule(read: Any, data: bytes) -> str:
    try:
        read(data)
    except document.Refused as refused:
        return str(refused.rule)
    return ""


@MANY
@given(
    st.integers(0, len(messages.CLASSES) - 1).flatmap(
        lambda code: wire.damaged(wire.raw_of(messages.SCHEMAS[code]).map(lambda raw: [code, raw]))
    )
)
def test_a_damaged_message_is_refused_by_the_documents_rule(frame: bytes) -> None:
    assert rule_of(messages.decode, frame) == _document_rule(document.message, frame)


@MANY
@given(
    st.sampled_from(sorted(SCHEMAS)).flatmap(
        lambda kind: st.tuples(st.just(kind), wire.damaged(wire.raw_of(SCHEMAS[kind])))
    )
)
def test_a_damaged_body_is_refused_by_the_documents_rule(case: tuple[statements.Kind, bytes]) -> None:
    kind, data = case
    name, most = statements.CLASSES[kind].__name__, limits.ENVELOPE_BYTES_MAX
    ours = rule_of(lambda raw: SCHEMAS[kind].decode(fields.unpack(raw, most)), data)
    assert ours == _document_rule(lambda raw: document.record(name)(document.unpack(raw, most)), data)


def test_an_error_names_the_field_that_is_wrong() -> None:
    frame = wire.pack([messages.KINDS.index("Lease"), [JOB, 0, 0, [[0, bytes(32), None], [1, bytes(31), None]], {}]])
    with pytest.raises(PeerError, match="items: worker: expected 32 to 32 bytes, got bytes"):
        messages.decode(frame)


# --- text ----------------------------------------------------------------------------------------------------------
def test_the_table_alone_decides_what_text_is_allowed() -> None:
    for edge in wire.forbidden_edges():
        assert not text.allowed(chr(edge)), f"{edge:04X}"
    # U+1FAE8 came with Unicode 15, U+0378 is not assigned yet: an interpreter's own tables would differ about both.
    for visible in ("\U0001fae8", "\u0378", "é", "漢", "\t", "\n", "\u00a0", "\u200c", "\u200d"):
        assert text.allowed(visible)


def test_the_table_is_in_order_apart_from_the_planes_ends() -> None:
    ends = [(low, high) for low, high in text.FORBIDDEN if low & 0xFFFF == 0xFFFE]
    others = [pair for pair in text.FORBIDDEN if pair not in ends]
    assert ends == sorted(ends)
    assert [edge for pair in others for edge in pair] == sorted(edge for pair in others for edge in pair)


@MANY
@given(st.text(max_size=30), st.integers(0, 20))
def test_cleaned_text_can_be_sent(given_text: str, bytes_max: int) -> None:
    cleaned = text.clean(given_text, bytes_max)
    assert fields.text(bytes_max).decode(cleaned) == cleaned


# --- growing: extension slots ----------------------------------------------------------------------------------------
def test_a_statement_of_a_newer_minor_version_is_read_named_and_kept_with_what_it_adds() -> None:
    newer = statements.make(replace(COMMIT.body, ext=((9, b"3.1"),)), ALICE)
    read = statements.decode(newer.envelope, verify)
    assert replace(read.body, ext=()) == COMMIT.body
    assert (read.id == newer.id, read.id == COMMIT.id) == (True, False)
    assert statements.decode(read.envelope, verify) == newer


def test_cosigning_keeps_extensions() -> None:
    newer = statements.make(replace(ADMISSION.body, ext=((9, b"3.1"),)), ALICE)
    both = statements.merge(statements.cosign(newer, BOB), statements.cosign(newer, CAROL))
    assert statements.decode(both.envelope, verify).body.ext == ((9, b"3.1"),)
    assert both.id == newer.id


# --- longer encodings ------------------------------------------------------------------------------------------------
def test_an_envelope_written_longer_is_the_same_statement() -> None:
    longer = b"\xdc\x00\x04\xcc\x03" + COMMIT.envelope[2:]
    assert statements.decode(longer, verify) == COMMIT
    assert document.unpack(longer, 10_000) == document.unpack(COMMIT.envelope, 10_000)


def test_a_body_written_longer_is_another_statement_that_says_the_same() -> None:
    raw = COMMIT.raw[:-1] + b"\xde\x00\x00"
    signature = ALICE.sign(statements.signed_bytes("commit", raw))
    [[key, _]] = fields.unpack(COMMIT.envelope, 10_000)[3]
    read = statements.decode(wire.pack([3, 5, raw, [[key, signature]]]), verify)
    assert (read.body, read.raw) == (COMMIT.body, raw)
    assert read.id != COMMIT.id


# --- what is looked at first -----------------------------------------------------------------------------------------
class Asked:
    """Counts what a decoder asks of a key."""

    def __init__(self, *, holds: bool) -> None:
        self.holds, self.peers = holds, list[PeerId]()

    def __call__(self, peer: PeerId, data: bytes, signature: bytes) -> bool:
        self.peers.append(peer)
        return self.holds


def test_reading_a_frame_checks_no_signature_and_tells_what_relevance_needs() -> None:
    unverified = statements.read(ADMISSION.envelope)
    assert (unverified.kind, unverified.id) == ("admission", ADMISSION.id)


def test_a_frame_that_is_wrong_costs_no_signature_check() -> None:
    asked = Asked(holds=True)
    assert rule_of(lambda data: statements.decode(data, asked), COMMIT.envelope + b"\0") == "not-msgpack"
    assert asked.peers == []


def test_signatures_come_before_the_body() -> None:
    envelope = wire.pack([3, 5, b"\xc1", [[bytes(32), bytes(64)]]])
    refused, let_pass = Asked(holds=False), Asked(holds=True)
    assert rule_of(lambda data: statements.decode(data, refused), envelope) == "bad-signature"
    assert rule_of(lambda data: statements.decode(data, let_pass), envelope) == "not-msgpack"


def test_every_signature_of_a_cosigned_statement_must_hold() -> None:
    both = statements.cosign(ADMISSION, BOB)
    asked = Asked(holds=True)
    statements.decode(both.envelope, asked)
    assert sorted(asked.peers) == sorted(both.signers)
    lying = replace(both, signatures=(both.signatures[0], (both.signatures[1][0], bytes(64))))
    assert rule_of(lambda data: statements.decode(data, verify), lying.envelope) == "bad-signature"


def test_a_signature_is_checked_once_however_often_it_comes() -> None:
    asked = Asked(holds=True)
    for _ in range(3):
        statements.decode(COMMIT.envelope, asked)
    assert len(asked.peers) == 1


# --- packing into frames ---------------------------------------------------------------------------------------------
@given(st.lists(st.integers(1, limits.ENVELOPE_BYTES_MAX), max_size=40), st.integers(0, 1000))
@settings(max_examples=20, deadline=None, derandomize=True, database=None)
def test_deliveries_fit_their_frames_and_keep_the_order(sizes: list[int], seed: int) -> None:
    envelopes = [random.Random(seed).randbytes(1) * size for size in sizes]
    batches = messages.deliveries(envelopes)
    assert [envelope for batch in batches for envelope in batch.envelopes] == envelopes
    assert all(len(messages.encode(batch)) <= limits.FRAME_BYTES_MAX for batch in batches)
