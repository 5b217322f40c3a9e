"""The local API of a real daemon, asked by other programs and other users of its machine (the audit's poc18)."""

from __future__ import annotations

import http.client
import socket
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import pytest
from harness import Cluster, Daemon, free_port

HALF_OPEN = 140
SECRET = ("identity.seed", "token", "api.sock")
Header = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Desk:
    """A daemon with an API on loopback TCP, and what a good request to it says of itself."""

    daemon: Daemon
    port: int
    host: Header
    token: Header

    def ask(self, path: str, headers: Sequence[Header], method: str = "GET", body: bytes | None = None) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.putrequest(method, path, skip_host=True)
            for name, value in headers:
                connection.putheader(name, value)
            if body is not None:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            return connection.getresponse().status
        finally:
            connection.close()


@pytest.fixture(scope="module")
def desk() -> Iterator[Desk]:
    with Cluster() as cluster:
        port = free_port()
        daemon = cluster.add("one", "--api-tcp", f"127.0.0.1:{port}")
        token = (daemon.home / "token").read_text("utf-8").strip()
        yield Desk(daemon, port, ("Host", f"127.0.0.1:{port}"), ("Authorization", f"Bearer {token}"))


def test_nobody_else_reads_what_is_the_owners(desk: Desk) -> None:
    assert stat.S_IMODE(desk.daemon.home.stat().st_mode) == 0o700
    for name in SECRET:
        assert stat.S_IMODE((desk.daemon.home / name).stat().st_mode) == 0o600, name


def test_only_whoever_has_the_token_and_means_this_machine_is_answered(desk: Desk) -> None:
    host, token = desk.host, desk.token
    wrong = ("Authorization", f"Bearer {'x' * 43}")
    for expected, headers in (
        (200, [host, token]),
        (401, [host]),
        (401, [host, wrong]),
        (401, [host, token, token]),
        (421, [("Host", "evil.example"), token]),
        (421, [("Host", "127.0.0.1@evil.example"), token]),
        (400, [token]),
        (400, [host, ("Host", "evil.example"), token]),
        (403, [host, token, ("Origin", "null")]),
        (403, [host, token, ("Origin", ""), ("Origin", "http://evil.example")]),
    ):
        assert desk.ask("/v1/status", headers) == expected, headers


def test_no_path_leads_out_and_no_body_harms(desk: Desk) -> None:
    good = [desk.host, desk.token]
    for path in ("..%2f..%2fidentity.seed", "%2e%2e/%2e%2e/identity.seed", "../../token", f"{'0' * 64}:-1"):
        assert desk.ask(f"/v1/blobs/{path}", good) in (404, 422), path
    form = [*good, ("Content-Type", "text/plain")]
    assert desk.ask("/v1/jobs", form, "POST", b'{"name":"x"}') in (415, 422)
    nested = (b'{"a":' * 200_000)[: 1 << 20]
    assert desk.ask("/v1/jobs", [*good, ("Content-Type", "application/json")], "POST", nested) == 400
    assert desk.ask("/v1/status", good) == 200


def test_another_user_who_holds_connections_open_does_not_lock_the_owner_out(desk: Desk) -> None:
    with ExitStack() as held:
        for _ in range(HALF_OPEN):
            connection = held.enter_context(socket.create_connection(("127.0.0.1", desk.port)))
            connection.sendall(b"GET /v1/status HTTP/1.1\r\n")
        assert desk.daemon.status()["state"] == "running"
