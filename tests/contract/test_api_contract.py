"""The API over a real unix socket: each route, its errors, and that a backend's answers have the promised shapes."""

from __future__ import annotations

import json
import select
import socket
import stat
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from api_fake import ANN, BOB, ME, FakeBackend
from h11 import RemoteProtocolError
from pydantic import TypeAdapter
from structlog.testing import capture_logs

from nexapod.api import models, task_routes
from nexapod.api import serve as serve_module
from nexapod.api.app import create_app
from nexapod.api.serve import ApiSocketError, bind_unix, load_or_create_token, serve
from nexapod.protocol.limits import CHUNK_BYTES
from nexapod.protocol.primitives import BlobRef, JobId, blob_of

DEADLINE_S = 10.0


@asynccontextmanager
async def served(backend: FakeBackend, path: Path) -> AsyncIterator[httpx.AsyncClient]:
    shutdown = trio.Event()
    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery:

            async def run(task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
                await serve(create_app(backend), path, shutdown=shutdown, task_status=task_status)

            await nursery.start(run)
            transport = httpx.AsyncHTTPTransport(uds=str(path))
            async with httpx.AsyncClient(transport=transport, base_url="http://nexapod", timeout=5) as client:
                yield client
            shutdown.set()


def job_body(backend: FakeBackend, **changes: Any) -> dict[str, Any]:
    module = backend.put(b"\0asm")
    return {"name": "a job", "tasks": 2, "run": {"executor": "wasm", "module": str(module)}} | changes


async def submit(client: httpx.AsyncClient, backend: FakeBackend, **changes: Any) -> JobId:
    answer = await client.post("/v1/jobs", json=job_body(backend, **changes))
    assert answer.status_code == 201, answer.text
    return JobId(bytes.fromhex(answer.json()["job_id"]))


def assert_problem(answer: httpx.Response, status: int, name: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    models.Problem.model_validate(body)
    assert body["type"] == f"urn:nexapod:problem:{name}"
    return body


async def check_shapes(client: httpx.AsyncClient, job: JobId) -> None:
    """Every answer has the shape that models.py promises. For any backend with one job with a failed task 1."""
    shapes: dict[str, Any] = {
        "/v1/status": models.Status,
        "/v1/peers": list[models.Peer],
        "/v1/profile": models.ProfileView,
        "/v1/why": models.Why,
        "/v1/tasks": list[task_routes.LocalTask],
        "/v1/jobs": list[models.JobRow],
        f"/v1/jobs/{job.hex()}": models.JobView,
        f"/v1/jobs/{job.hex()}/results": models.Results,
        f"/v1/jobs/{job.hex()}/why": models.Why,
        f"/v1/jobs/{job.hex()}/tasks/1/log": list[models.ReplicaLog],
    }
    for path, shape in shapes.items():
        answer = await client.get(path)
        assert answer.status_code == 200, (path, answer.text)
        TypeAdapter(shape).validate_json(answer.content)


async def test_every_answer_has_its_shape(tmp_path: Path) -> None:
    backend = FakeBackend()
    async with served(backend, tmp_path / "api.sock") as client:
        job = await submit(client, backend)
        backend.place(job)
        backend.accept(job, 0, {"out.txt": b"1"})
        backend.fail(job, 1, "no two agree")
        await check_shapes(client, job)
        paths = (await client.get("/openapi.json")).json()["paths"]
        assert {"/v1/status", "/v1/jobs/{job}/events", "/v1/blobs/{ref}"} <= set(paths)


async def test_a_blob_goes_in_and_comes_out_in_pieces(tmp_path: Path) -> None:
    backend = FakeBackend()
    data = bytes(range(256)) * (CHUNK_BYTES * 3 // 256) + b"tail"
    async with served(backend, tmp_path / "api.sock") as client:
        answer = await client.post("/v1/blobs", content=data)
        assert answer.status_code == 201
        ref = BlobRef.parse(answer.json()["ref"])
        assert ref == blob_of(data)
        assert (await client.head(f"/v1/blobs/{ref}")).status_code == 200
        back = await client.get(f"/v1/blobs/{ref}")
        assert back.content == data
        assert max(length for _, length in backend.reads) <= CHUNK_BYTES
        assert (await client.get(f"/v1/blobs/{ref}?offset={len(data) - 4}")).content == b"tail"
        assert (await client.get(f"/v1/blobs/{ref}?offset={len(data)}")).content == b""
        assert_problem(await client.get(f"/v1/blobs/{ref}?offset={len(data) + 1}"), 422, "invalid")
        assert_problem(await client.get(f"/v1/blobs/{blob_of(b'other')}"), 404, "not-found")
        assert_problem(await client.get("/v1/blobs/..%2f..%2fetc"), 404, "http")
        assert_problem(await client.get("/v1/blobs/zz"), 422, "invalid")


async def test_an_upload_states_its_true_length(tmp_path: Path) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"abc"

    backend = FakeBackend()
    async with served(backend, tmp_path / "api.sock") as client:
        assert_problem(await client.post("/v1/blobs", content=pieces()), 422, "invalid")
        stream = await trio.open_unix_socket(str(tmp_path / "api.sock"))
        await stream.send_all(b"POST /v1/blobs HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % ((1 << 40) + 1))
        assert (await stream.receive_some(12)).endswith(b" 413")
        await stream.aclose()
    assert not backend.blobs


async def test_an_upload_cut_off_stores_nothing(tmp_path: Path) -> None:
    backend = FakeBackend()
    path = tmp_path / "api.sock"
    async with served(backend, path) as client:
        stream = await trio.open_unix_socket(str(path))
        await stream.send_all(b"POST /v1/blobs HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nabc")
        await stream.aclose()
        assert (await client.get("/v1/status")).status_code == 200
    assert not backend.blobs


async def test_a_job_is_read_strictly_and_keeps_every_field(tmp_path: Path) -> None:
    backend = FakeBackend()
    data, index = backend.put(b"ACDE"), backend.put(struct.pack(">QIQI", 1, 2, 3, 1))
    full = {
        "description": "words", "tags": ["a"], "priority": 3,
        "inputs": [{"path": "in/x.bin", "ref": str(data)}],
        "split": {"path": "record.txt", "ref": str(data), "index": str(index), "bounds": [1, 4], "header": 1},
        "limits": {
            "cpus_milli": 500, "memory": 1 << 24, "output": 5, "disk": 6, "wall_ms": 7, "idle_ms": 8, "pids": 9,
            "gpus": 1, "gpu_memory": 9,
        },
        "requires": {"arch": ["amd64"], "memory": 1, "gpu_model": "H200", "gpu_capability": "9.0"},
        "validate": {"mode": "exact", "agree": 1, "max_replicas": 3}, "retention_ms": 100_000,
    }  # fmt: skip
    async with served(backend, tmp_path / "api.sock") as client:
        # Only a container has a GPU.
        docker = {"run": {"executor": "docker", "image": f"sha256:{'ab' * 32}"}}
        job = await submit(client, backend, **full | docker)
        view = (await client.get(f"/v1/jobs/{job.hex()}/spec")).json()
        assert {key: view[key] for key in full} == full
        assert view["network"] == "test"
        bad: list[dict[str, Any]] = [
            {"colour": "red"},
            {"tasks": 0},
            {"tasks": "2"},
            {"limits": {"memroy": 1}},
            {"name": ""},
            {"name": "a\x1bb"},
            {"run": {"executor": "wasm"}},
            {"limits": {"gpus": 1}},
            {"run": {"executor": "docker", "image": "python:3"}},
            {"inputs": [{"path": "../x", "ref": str(data)}]},
            {"inputs": [{"path": "x", "ref": str(blob_of(b"never uploaded"))}]},
            {"split": {"path": "r", "ref": str(data), "index": str(data), "bounds": [0, 4]}},
            {"split": full["split"] | {"bounds": [0, 4, 4]}},
            {"split": full["split"] | {"bounds": [2, 4]}},
            {"split": full["split"] | {"bounds": [1, 3]}},
            {"split": full["split"] | {"header": 2}},
            {"params": str(data)},
            {"params": str(backend.put(b'[{"a":"1"}]'))},
            {"params": str(backend.put(b'[{"a":1},{"a":2}]'))},
            {"validate": {"agree": 9, "max_replicas": 3}},
            {"friends": ["Ann"]},
            {"friends": [ANN] * 65},
            {"friends": [ME]},
            {"accept_unknown": "yes"},
            {"panel": [ANN]},
        ]
        for change in bad:
            assert_problem(await client.post("/v1/jobs", json=job_body(backend, **change)), 422, "invalid")
        params = backend.put(b'[{"a":"1"},{"a":"2"}]')
        await submit(client, backend, params=str(params))
    assert len(backend.known) == 2


async def test_a_certificate_comes_in_pieces_and_one_that_breaks_off_is_seen(tmp_path: Path) -> None:
    backend = FakeBackend()
    with capture_logs() as logged:
        async with served(backend, tmp_path / "api.sock") as client:
            job = await submit(client, backend, tasks=1)
            path = f"/v1/jobs/{job.hex()}/certificate"
            assert_problem(await client.get(path), 409, "not-ready")
            backend.accept(job, 0, {})
            assert (await client.get(path)).content == b"certificate"
            backend.known[job].broken = True
            with pytest.raises(httpx.RemoteProtocolError):
                await client.get(path)
    assert "error" in {entry["log_level"] for entry in logged}


async def test_a_prefix_names_a_job_when_no_other_shares_it(tmp_path: Path) -> None:
    backend = FakeBackend()
    async with served(backend, tmp_path / "api.sock") as client:
        job = await submit(client, backend)
        twin = JobId(job[:4] + bytes(28))
        backend.known[twin] = backend.known[job]
        assert (await client.get(f"/v1/jobs/{job.hex()[:12]}")).json()["job_id"] == job.hex()
        assert (await client.get(f"/v1/jobs/{job.hex()[:12].upper()}")).status_code == 200
        assert (
            "give more digits"
            in assert_problem(await client.get(f"/v1/jobs/{job.hex()[:8]}"), 422, "invalid")["remedy"]
        )
        assert_problem(await client.get(f"/v1/jobs/{'0' * 64}"), 404, "not-found")
        assert_problem(await client.get("/v1/jobs/xyz"), 422, "invalid")
        assert_problem(await client.get(f"/v1/jobs/{job.hex()}/certificate"), 409, "not-ready")


async def test_tasks_come_in_pages(tmp_path: Path) -> None:
    backend = FakeBackend()
    async with served(backend, tmp_path / "api.sock") as client:
        job = await submit(client, backend, tasks=2500)
        first = (await client.get(f"/v1/jobs/{job.hex()}")).json()["task_list"]
        last = (await client.get(f"/v1/jobs/{job.hex()}?first=2000&count=1000")).json()["task_list"]
        assert [len(first), first[-1]["index"], len(last), last[-1]["index"]] == [1000, 999, 500, 2499]
        assert_problem(await client.get(f"/v1/jobs/{job.hex()}?count=100000000"), 422, "invalid")


async def read_events(client: httpx.AsyncClient, job: JobId, into: list[tuple[str, Any]], **_: Any) -> None:
    async with client.stream("GET", f"/v1/jobs/{job.hex()}/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        name = ""
        async for line in answer.aiter_lines():
            key, _, value = line.partition(": ")
            if key == "event":
                name = value
            elif key == "data":
                into.append((name, json.loads(value)))


async def wait_until(condition: Any) -> None:
    while not condition():  # noqa: ASYNC110 - what is waited for happens on the other side of a socket
        await trio.sleep(0.005)


async def test_events_begin_with_where_the_job_stands_and_end_with_it(tmp_path: Path) -> None:
    backend = FakeBackend()
    seen: list[tuple[str, Any]] = []
    async with served(backend, tmp_path / "api.sock") as client:
        job = await submit(client, backend)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_events, client, job, seen)
            await wait_until(lambda: seen)
            backend.place(job)
            backend.work(job, 0, 0.5)
            await wait_until(lambda: seen[-1][0] == "task_changed")
            backend.accept(job, 0, {})
            backend.fail(job, 1, "why\nnot")
        assert [name for name, _ in seen] == ["snapshot", "placed", "task_changed", "accepted", "failed", "closed"]
        assert seen[1][1] == {"peers": [ANN, BOB]}
        assert seen[4][1]["reason"] == "why\nnot"
        again: list[tuple[str, Any]] = []
        await read_events(client, job, again)
        assert [name for name, _ in again] == ["snapshot", "closed"]
        await wait_until(lambda: not backend.watchers)


async def test_what_happens_at_once_goes_in_one_write_and_what_is_overtaken_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nexapod.api.answers.WRITE_S", 0.05)
    backend = FakeBackend()
    seen: list[tuple[str, Any]] = []
    async with served(backend, tmp_path / "api.sock") as client:
        job = await submit(client, backend)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_events, client, job, seen)
            await wait_until(lambda: seen)
            for step in range(500):
                backend.work(job, 0, step / 500)
            await wait_until(lambda: seen[-1][1].get("progress") == 499 / 500)
            assert len(seen) <= 4
            backend.work(job, 0, 1.0)
            backend.accept(job, 0, {})
            backend.accept(job, 1, {})
        names = [name for name, _ in seen]
        assert names[-4:] == ["task_changed", "accepted", "accepted", "closed"]
        assert ("task_changed", 1.0) not in [(name, facts.get("progress")) for name, facts in seen]


async def test_a_watcher_whose_backend_falls_silent_for_good_is_let_go(tmp_path: Path) -> None:
    backend = FakeBackend()
    seen: list[tuple[str, Any]] = []
    async with served(backend, tmp_path / "api.sock") as client:
        job = await submit(client, backend)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_events, client, job, seen)
            await wait_until(lambda: seen)
            backend.watchers[0][1].close()
        assert [name for name, _ in seen] == ["snapshot"]


async def test_a_watcher_that_goes_away_is_forgotten(tmp_path: Path) -> None:
    backend = FakeBackend()
    seen: list[tuple[str, Any]] = []
    async with served(backend, tmp_path / "api.sock") as client:
        job = await submit(client, backend)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_events, client, job, seen)
            await wait_until(lambda: seen)
            nursery.cancel_scope.cancel()
        await wait_until(lambda: not backend.watchers)


async def test_a_silent_stream_is_kept_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nexapod.api.answers.PING_S", 0.01)
    backend = FakeBackend()
    async with served(backend, tmp_path / "api.sock") as client:
        job = await submit(client, backend)
        async with client.stream("GET", f"/v1/jobs/{job.hex()}/events") as answer:
            async for line in answer.aiter_lines():
                if line.startswith(": "):
                    break


async def test_cancel_stop_and_metrics(tmp_path: Path) -> None:
    backend = FakeBackend()
    async with served(backend, tmp_path / "api.sock") as client:
        job = await submit(client, backend)
        assert (await client.post(f"/v1/jobs/{job.hex()}/cancel")).status_code == 200
        assert (await client.get(f"/v1/jobs/{job.hex()}")).json()["state"] == "cancelled"
        done = await submit(client, backend, name="done")
        for task in backend.known[done].tasks:
            task.state = "accepted"
        assert_problem(await client.post(f"/v1/jobs/{done.hex()}/cancel"), 409, "over")
        foreign = await submit(client, backend, name="not mine")
        assert_problem(await client.post(f"/v1/jobs/{foreign.hex()}/cancel"), 403, "forbidden")
        assert_problem(await client.post(f"/v1/jobs/{foreign.hex()}/ratify"), 403, "forbidden")
        assert (await client.post(f"/v1/jobs/{done.hex()}/ratify")).status_code == 200
        assert (await client.post("/v1/stop", json={"drain": False})).status_code == 202
        assert_problem(await client.post("/v1/stop", json={"drain": 1}), 422, "invalid")
        text = (await client.get("/metrics")).text
        assert "# TYPE nexapod_peers gauge\nnexapod_peers 2\n" in text
        assert 'nexapod_events_total{name="a\\"b\\\\\\n"} 3\n' in text
    assert backend.stopped == [False]


async def test_a_bug_is_a_problem_without_its_innards_and_the_server_lives_on(tmp_path: Path) -> None:
    backend = FakeBackend()
    with capture_logs() as logged:
        async with served(backend, tmp_path / "api.sock") as client:
            backend.fail_with = RuntimeError("secret innards")
            assert "secret" not in assert_problem(await client.get("/v1/status"), 500, "internal")["detail"]
            backend.fail_with = None
            assert (await client.get("/v1/status")).status_code == 200
            assert_problem(await client.get("/nothing"), 404, "http")
            assert_problem(await client.delete("/v1/jobs"), 405, "http")
    assert "error" in {entry["log_level"] for entry in logged}


async def test_bodies_are_bounded_announced_or_not(tmp_path: Path) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b" " * 65_536

    async with served(FakeBackend(), tmp_path / "api.sock") as client:
        assert_problem(await client.post("/v1/jobs", content=b" " * (1 << 20 | 1)), 413, "too-large")
        json_type = {"content-type": "application/json"}
        assert_problem(await client.post("/v1/jobs", content=endless(), headers=json_type), 413, "too-large")
        deep = b'{"a":' * 100_000
        assert_problem(await client.post("/v1/jobs", content=deep, headers=json_type), 400, "http")


async def test_answers_hold_no_byte_that_a_terminal_obeys(tmp_path: Path) -> None:
    async with served(FakeBackend(), tmp_path / "api.sock") as client:
        content = (await client.get("/v1/peers")).content
        assert all(32 <= byte < 127 for byte in content)


# --- the sockets ---------------------------------------------------------------------------------------------------
async def test_the_socket_is_its_owners_and_goes_with_the_server(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    async with served(FakeBackend(), path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not path.exists()


async def test_a_stale_socket_is_replaced_a_live_one_and_a_file_are_not(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    bind_unix(path).close()
    async with served(FakeBackend(), path) as client:
        assert (await client.get("/v1/status")).status_code == 200
        with pytest.raises(ApiSocketError, match="another daemon answers"):
            bind_unix(path)
    path.write_text("precious")
    with pytest.raises(ApiSocketError, match="not a socket"):
        bind_unix(path)
    assert path.read_text() == "precious"


async def test_a_long_path_is_no_obstacle(tmp_path: Path) -> None:
    folder = tmp_path / ("d" * 120)
    folder.mkdir()
    shutdown = trio.Event()
    async with trio.open_nursery() as nursery:

        async def run(task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
            await serve(create_app(FakeBackend()), folder / "api.sock", shutdown=shutdown, task_status=task_status)

        await nursery.start(run)
        assert stat.S_ISSOCK((folder / "api.sock").stat().st_mode)
        shutdown.set()
    assert not (folder / "api.sock").exists()


async def test_a_client_that_stops_reading_does_not_hold_up_the_end(tmp_path: Path) -> None:
    backend = FakeBackend()
    ref = backend.put(bytes(8 << 20))
    path = tmp_path / "api.sock"
    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery:
            await nursery.start(serve, create_app(backend), path)
            stalled = await trio.open_unix_socket(str(path))
            await stalled.send_all(f"GET /v1/blobs/{ref} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
            await wait_until(lambda: backend.reads)
            nursery.cancel_scope.cancel()
        await stalled.aclose()


async def test_a_stalled_client_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_module, "WRITE_STALLED_S", 0.05)
    backend = FakeBackend()
    ref = backend.put(bytes(8 << 20))
    path = tmp_path / "api.sock"
    async with served(backend, path):
        stalled = await trio.open_unix_socket(str(path))
        await stalled.send_all(f"GET /v1/blobs/{ref} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        hung_up = select.poll()
        hung_up.register(stalled.socket.fileno(), select.POLLHUP)
        await wait_until(lambda: hung_up.poll(0))
        await stalled.aclose()


async def test_connections_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_module, "CONNECTIONS_MAX", 2)
    path = tmp_path / "api.sock"
    async with served(FakeBackend(), path):
        first = [await trio.open_unix_socket(str(path)) for _ in range(2)]
        third = await trio.open_unix_socket(str(path))
        assert await third.receive_some(1) == b""
        for stream in (*first, third):
            await stream.aclose()


@pytest.mark.parametrize(
    "garbage",
    [b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/9.9\r\n\r\n", b"\0" * 70_000, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"],
)
async def test_garbage_harms_nobody(tmp_path: Path, garbage: bytes) -> None:
    path = tmp_path / "api.sock"
    async with served(FakeBackend(), path) as client:
        stream = await trio.open_unix_socket(str(path))
        with suppress(trio.BrokenResourceError):
            await stream.send_all(garbage)
            await stream.send_eof()
        with suppress(trio.BrokenResourceError):  # hung up on before it had read everything
            while await stream.receive_some(65_536):
                pass
        await stream.aclose()
        assert (await client.get("/v1/status")).status_code == 200


async def test_tcp_asks_for_the_token_and_refuses_web_pages(tmp_path: Path) -> None:
    token = load_or_create_token(tmp_path / "token")
    assert load_or_create_token(tmp_path / "token") == token
    assert stat.S_IMODE((tmp_path / "token").stat().st_mode) == 0o600
    shutdown = trio.Event()
    async with trio.open_nursery() as nursery:

        async def run(task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
            await serve(
                create_app(FakeBackend()), tmp_path / "api.sock",
                tcp=("127.0.0.1", 0), token=token, shutdown=shutdown, task_status=task_status,
            )  # fmt: skip

        _, place = await nursery.start(run)
        good = {"authorization": f"Bearer {token}"}
        async with httpx.AsyncClient(base_url=f"http://{place}", timeout=5) as client:
            assert (await client.get("/v1/status", headers=good)).status_code == 200
            assert_problem(await client.get("/v1/status"), 401, "no-token")
            wrong = {"authorization": f"Bearer {token[:-1]}x"}
            assert_problem(await client.get("/v1/status", headers=wrong), 401, "no-token")
            rebound = good | {"host": "evil.example:80"}
            assert_problem(await client.get("/v1/status", headers=rebound), 421, "wrong-host")
            page = good | {"origin": "http://127.0.0.1:1234"}
            assert_problem(await client.get("/v1/status", headers=page), 403, "cross-origin")
        shutdown.set()


async def test_a_taken_port_is_said(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ApiSocketError, match="cannot listen there"):
            await serve(create_app(FakeBackend()), tmp_path / "api.sock", tcp=taken.getsockname()[:2], token="t" * 40)
    assert not (tmp_path / "api.sock").exists()


def test_a_token_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "token"
    load_or_create_token(path)
    path.chmod(0o644)
    with pytest.raises(ApiSocketError, match="others may read"):
        load_or_create_token(path)


async def test_tasks_are_paused_for_a_while_or_until_they_are_let_go_on(tmp_path: Path) -> None:
    backend = FakeBackend()
    async with served(backend, tmp_path / "api.sock") as client:
        assert (await client.post("/v1/pause", json={"for_s": 60})).status_code == 200
        assert (await client.post("/v1/pause", json={})).status_code == 200
        assert backend.paused_for == [60, None]
        assert (await client.get("/v1/tasks")).json()[0]["frozen"]
        assert (await client.post("/v1/resume")).status_code == 200
        assert not (await client.get("/v1/tasks")).json()[0]["frozen"]
        for wrong in ({"for_s": 0}, {"for_s": -1}, {"for_s": "1h"}, {"for_s": 1e9}, {"until": 5}):
            assert_problem(await client.post("/v1/pause", json=wrong), 422, "invalid")


async def test_a_client_that_hangs_up_is_no_error_of_the_daemons(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    with capture_logs() as logged:
        async with served(FakeBackend(), path) as client:
            for where in ("/v1/blobs", "/v1/images/archive", "/v1/nothing") * 4:
                for hang_up in (trio.SocketStream.send_eof, trio.SocketStream.aclose):
                    stream = await trio.open_unix_socket(str(path))
                    head = f"POST {where} HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n"
                    await stream.send_all(head.encode() + bytes(100_000))
                    await hang_up(stream)
                    await stream.aclose()
            assert (await client.get("/v1/status")).status_code == 200
    assert "client_gone" in {entry["event"] for entry in logged}
    assert [entry for entry in logged if entry["log_level"] in ("warning", "error")] == []


def test_only_what_a_client_makes_by_hanging_up_is_no_error() -> None:
    gone = [RemoteProtocolError("cut"), trio.BusyResourceError()]
    bug = RuntimeError("boom")
    with capture_logs() as logged:
        for error in (ExceptionGroup("x", gone), ExceptionGroup("x", [*gone, bug]), bug):
            serve_module._log_failure("failed", error, reason="why")
    assert [(entry["event"], entry["log_level"]) for entry in logged] == [
        ("client_gone", "info"),
        ("failed", "error"),
        ("failed", "error"),
    ]
    assert logged[2]["exc_info"] is bug
