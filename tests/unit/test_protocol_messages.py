"""nexapod.protocol.messages: frames in and out, and offers that fit a frame."""

from __future__ import annotations

import msgpack
import pytest

from nexapod.protocol import codec, limits, messages
from nexapod.protocol.errors import PeerError
from nexapod.protocol.messages import Offer, Query
from nexapod.protocol.types import JobId

JOB = JobId(bytes(32))


@pytest.mark.parametrize(
    ("frame", "rule"),
    [
        (b"", "not-msgpack"),
        (msgpack.packb([7]), "bad-message"),
        (msgpack.packb({"7": []}), "bad-message"),
        (msgpack.packb([99, []]), "unknown-message"),
        (msgpack.packb([True, []]), "unknown-message"),
        (msgpack.packb(["7", []]), "unknown-message"),
        (msgpack.packb([7, [bytes(32)]]), "bad-field"),
        (msgpack.packb([7, [bytes(32), -1]]), "bad-field"),
        (bytes(limits.FRAME_BYTES_MAX + 1), "too-large"),
    ],
)
def test_a_frame_that_is_no_message_is_refused_by_name(frame: bytes, rule: str) -> None:
    with pytest.raises(PeerError) as caught:
        messages.decode(frame)
    assert caught.value.rule == rule


def test_a_message_is_its_code_and_its_fields() -> None:
    frame = messages.encode(Query(JOB, 3))
    assert codec.unpack(frame, 1000) == [7, [bytes(32), 3]]
    assert messages.decode(frame) == Query(JOB, 3)


def test_saying_more_than_a_frame_holds_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="Offer of"):
        messages.encode(Offer((bytes(limits.FRAME_BYTES_MAX),)))


def test_no_statements_make_no_offer() -> None:
    assert messages.offers([]) == []


def test_offers_keep_the_order_and_fit_a_frame() -> None:
    envelopes = [bytes([n]) * limits.ENVELOPE_BYTES_MAX for n in range(10)]
    batches = messages.offers(envelopes)
    assert [e for batch in batches for e in batch.envelopes] == envelopes
    assert len(batches) > 1
    assert all(len(messages.encode(batch)) <= limits.FRAME_BYTES_MAX for batch in batches)


def test_an_offer_has_a_bounded_number_of_statements() -> None:
    batches = messages.offers([b"x"] * (limits.MESSAGE_STATEMENTS_MAX + 1))
    assert [len(batch.envelopes) for batch in batches] == [limits.MESSAGE_STATEMENTS_MAX, 1]
    assert messages.decode(messages.encode(batches[0])) == batches[0]
