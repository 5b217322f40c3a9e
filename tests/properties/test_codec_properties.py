"""Decoding is total: any bytes give a value or a PeerError. What we write, we read back."""

from __future__ import annotations

import msgpack
from hypothesis import example, given, settings
from hypothesis import strategies as st
from samples import MESSAGES, STATEMENTS

from nexapod.protocol import codec, messages, statements
from nexapod.protocol.errors import PeerError
from nexapod.sim.keys import verify

quick = settings(max_examples=300, deadline=None)
raws = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


def believe(peer: object, data: bytes, signature: bytes) -> bool:
    """Every signature holds: so that what lies behind it is reached."""
    return True


def read_statement(data: bytes) -> None:
    for check in (verify, believe):
        try:
            statements.decode(data, check)
        except PeerError:
            continue


def read_message(data: bytes) -> None:
    try:
        messages.decode(data)
    except PeerError:
        return


@quick
@given(st.binary(max_size=300))
@example(b"")
@example(b"\xc1")
@example(b"\x91" * 5000)
@example(b"\xd7\xff" + b"\xff" * 8)
@example(b"\xdd\xff\xff\xff\xff")
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    read_statement(data)
    read_message(data)


@quick
@given(raws)
def test_any_msgpack_is_read_or_refused(raw: object) -> None:
    packed = msgpack.packb(raw, use_bin_type=True)
    read_statement(packed)
    read_message(packed)


@quick
@given(st.sampled_from(STATEMENTS), st.integers(0, 10**6), st.integers(1, 255))
def test_a_changed_envelope_is_refused(statement: statements.Statement, at: int, change: int) -> None:
    data = bytearray(statement.envelope)
    data[at % len(data)] ^= change
    read_statement(bytes(data))
    try:
        other = statements.decode(bytes(data), verify)
    except PeerError:
        return
    raise AssertionError(f"{other} was taken for true")


@quick
@given(st.sampled_from(STATEMENTS), raws, st.integers(0, 10**6))
def test_a_body_with_one_field_replaced_is_read_or_refused(
    statement: statements.Statement, raw: object, at: int
) -> None:
    version, kind, author, body, signature = msgpack.unpackb(statement.envelope, raw=False)
    fields = msgpack.unpackb(body, raw=False)
    fields[at % len(fields)] = raw
    read_statement(codec.pack([version, kind, author, codec.pack(fields), signature]))


@quick
@given(st.sampled_from(MESSAGES), raws, st.integers(0, 10**6), st.integers(1, 255))
def test_a_changed_message_is_read_or_refused(message: messages.Message, raw: object, at: int, change: int) -> None:
    frame = bytearray(messages.encode(message))
    frame[at % len(frame)] ^= change
    read_message(bytes(frame))
    code, fields = msgpack.unpackb(messages.encode(message), raw=False)
    fields[at % len(fields)] = raw
    read_message(codec.pack([code, fields]))


def test_every_kind_of_statement_is_read_back() -> None:
    assert {s.kind for s in STATEMENTS} == set(statements.SCHEMAS)
    for statement in STATEMENTS:
        assert statements.decode(statement.envelope, verify) == statement


def test_every_kind_of_message_is_read_back() -> None:
    assert {type(x).__name__ for x in MESSAGES} == set(messages.KINDS)
    for message in MESSAGES:
        assert messages.decode(messages.encode(message)) == message


@quick
@given(st.lists(st.binary(min_size=1, max_size=60_000), max_size=12))
def test_statements_packed_into_offers_come_out_whole_and_in_order(envelopes: list[bytes]) -> None:
    offers = messages.offers(envelopes)
    assert [e for offer in offers for e in offer.envelopes] == envelopes
    for offer in offers:
        assert messages.decode(messages.encode(offer)) == offer
