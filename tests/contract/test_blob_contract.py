"""The API's routes about blobs, over the fake and over the daemon's own blob service with a real store."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from api_fake import FakeBackend
from pydantic import TypeAdapter
from test_api_contract import assert_problem, served

from nexapod.api import models
from nexapod.blobs.errors import BlobUnavailable
from nexapod.blobs.room import Quota
from nexapod.blobs.store import BlobStore
from nexapod.daemon.blob_service import BlobService
from nexapod.protocol.limits import CHUNK_BYTES
from nexapod.protocol.primitives import BlobRef, blob_of


class Real(BlobService, FakeBackend):
    """The daemon's blob service and store; the rest of the backend is the fake's."""

    def __init__(self, folder: Path, quota: Quota | None = None) -> None:
        FakeBackend.__init__(self)
        self.store = BlobStore(folder / "blobs", quota)
        BlobService.__init__(self, self.store, self._from_elsewhere)

    async def _from_elsewhere(self, ref: BlobRef) -> None:
        if ref not in self.elsewhere:
            raise BlobUnavailable(f"blob {ref}: no peer to ask")
        await self.store.put_bytes(self.elsewhere[ref])

    def damage(self, ref: BlobRef) -> None:
        self.store.path(ref).chmod(0o600)
        self.store.path(ref).write_bytes(b"wrong")


class Fake(FakeBackend):
    def damage(self, ref: BlobRef) -> None:
        self.blobs[ref] = b"wrong"


@asynccontextmanager
async def serving(kind: str, folder: Path) -> AsyncIterator[tuple[Any, httpx.AsyncClient]]:
    backend = Real(folder) if kind == "real" else Fake()
    async with served(backend, folder / "api.sock") as client:
        yield backend, client


async def upload(client: httpx.AsyncClient, data: bytes) -> BlobRef:
    answer = await client.post("/v1/blobs", content=data)
    assert answer.status_code == 201, answer.text
    return BlobRef.parse(answer.json()["ref"])


def checked(answer: httpx.Response, shape: Any) -> Any:
    assert answer.status_code == 200, answer.text
    TypeAdapter(shape).validate_json(answer.content)
    return answer.json()


KINDS = pytest.mark.parametrize("kind", ["fake", "real"])
ABSENT = blob_of(b"absent")


@KINDS
async def test_blobs_are_listed_and_shown(kind: str, tmp_path: Path) -> None:
    async with serving(kind, tmp_path) as (_, client):
        refs = [await upload(client, os.urandom(size)) for size in (10, CHUNK_BYTES + 1)]
        rows = checked(await client.get("/v1/blobs"), list[models.BlobStat])
        assert {row["ref"] for row in rows} == set(map(str, refs))
        assert len(checked(await client.get("/v1/blobs?first=1&count=5"), list[models.BlobStat])) == 1
        assert checked(await client.get("/v1/blobs?count=0"), list[models.BlobStat]) == []
        shown = checked(await client.get(f"/v1/blobs/{refs[1]}/stat"), models.BlobStat)
        assert (shown["chunks"], shown["chunks_here"], shown["whole"], shown["pinned"]) == (2, 2, True, False)
        assert_problem(await client.get(f"/v1/blobs/{ABSENT}/stat"), 404, "not-found")
        assert_problem(await client.get("/v1/blobs/rubbish/stat"), 422, "invalid")
        assert_problem(await client.get("/v1/blobs?count=1000000"), 422, "invalid")


@KINDS
async def test_pins(kind: str, tmp_path: Path) -> None:
    async with serving(kind, tmp_path) as (_, client):
        ref = await upload(client, b"data")
        for _ in range(2):
            assert checked(await client.post(f"/v1/blobs/{ref}/pin"), models.BlobStat)["pinned"]
        assert checked(await client.get(f"/v1/blobs/{ref}/stat"), models.BlobStat)["pinned"]
        for was in (True, False):
            assert checked(await client.post(f"/v1/blobs/{ref}/unpin"), models.Unpinned)["was_pinned"] is was
        assert not checked(await client.get(f"/v1/blobs/{ref}/stat"), models.BlobStat)["pinned"]
        assert_problem(await client.post(f"/v1/blobs/{ABSENT}/pin"), 404, "not-found")
        assert not checked(await client.post(f"/v1/blobs/{ABSENT}/unpin"), models.Unpinned)["was_pinned"]


@KINDS
async def test_what_is_damaged_is_set_aside(kind: str, tmp_path: Path) -> None:
    async with serving(kind, tmp_path) as (backend, client):
        ref = await upload(client, b"data")
        assert checked(await client.post(f"/v1/blobs/{ref}/verify"), models.BlobCheck)["sound"]
        backend.damage(ref)
        found = checked(await client.post(f"/v1/blobs/{ref}/verify"), models.BlobCheck)
        assert (found["sound"], found["damaged_chunks"]) == (False, 1)
        assert (await client.head(f"/v1/blobs/{ref}")).status_code == 404
        assert_problem(await client.post(f"/v1/blobs/{ref}/verify"), 404, "not-found")


@KINDS
async def test_a_blob_of_another_peer_is_fetched(kind: str, tmp_path: Path) -> None:
    async with serving(kind, tmp_path) as (backend, client):
        backend.elsewhere[blob_of(b"far away")] = b"far away"
        ref = blob_of(b"far away")
        for _ in range(2):
            found = checked(await client.post(f"/v1/blobs/{ref}/fetch?wait_s=5"), models.BlobFetch)
            assert (found["here"], found["chunks"], found["chunks_here"]) == (True, 1, 1)
        assert (await client.get(f"/v1/blobs/{ref}")).content == b"far away"
        assert_problem(await client.post(f"/v1/blobs/{ABSENT}/fetch"), 404, "not-found")
        assert_problem(await client.post(f"/v1/blobs/{ABSENT}/fetch?wait_s=999"), 422, "invalid")


async def test_a_fetch_that_takes_long_is_asked_for_again(tmp_path: Path) -> None:
    async with serving("real", tmp_path) as (backend, client):

        async def never(ref: BlobRef) -> None:
            await trio.sleep_forever()

        backend._fetch = never
        found = checked(await client.post(f"/v1/blobs/{ABSENT}/fetch?wait_s=0"), models.BlobFetch)
        assert (found["here"], found["chunks_here"]) == (False, 0)


async def test_no_room_is_said_with_what_to_do(tmp_path: Path) -> None:
    backend = Real(tmp_path, Quota(blobs_max=1000))
    async with served(backend, tmp_path / "api.sock") as client:
        ref = await upload(client, bytes(900))
        body = assert_problem(await client.post("/v1/blobs", content=bytes(200)), 503, "busy")
        assert "storage.blobs_max" in body["detail"]
        assert body["remedy"]
        assert (await client.head(f"/v1/blobs/{ref}")).status_code == 200, "an upload is not evicted by the next one"
