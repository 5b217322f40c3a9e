"""The seed file and signatures of nexapod.mesh.identity."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nexapod.mesh import identity
from nexapod.protocol.errors import LocalError
from nexapod.protocol.primitives import PeerId


def test_a_seed_is_made_once_and_kept_private(tmp_path: Path) -> None:
    path = tmp_path / "home" / "identity"
    seed = identity.load_or_create(path)
    assert len(seed) == 32
    assert path.stat().st_mode & 0o777 == 0o600
    assert identity.load_or_create(path) == seed
    assert [entry.name for entry in path.parent.iterdir()] == ["identity"], "no draft is left behind"


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_a_seed_of_the_wrong_size_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "identity"
    path.write_bytes(b"x" * size)
    path.chmod(0o600)
    with pytest.raises(LocalError, match="32-byte seed"):
        identity.load_or_create(path)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660])
def test_a_seed_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "identity"
    identity.load_or_create(path)
    path.chmod(mode)
    with pytest.raises(LocalError, match="chmod 600"):
        identity.load_or_create(path)


def test_a_path_that_cannot_be_used_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(LocalError, match="cannot use the identity file"):
        identity.load_or_create(tmp_path / "file" / "identity")


def test_two_daemons_that_start_at_once_get_one_seed(tmp_path: Path) -> None:
    path = tmp_path / "identity"
    code = (
        "import sys; from pathlib import Path; from nexapod.mesh.identity import load_or_create as load\n"
        "print(load(Path(sys.argv[1])).hex())"
    )
    command = [sys.executable, "-c", code, str(path)]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert len({run.communicate(timeout=30)[0] for run in runs}) == 1


def test_signatures_verify_with_the_peer_id_alone_and_verifying_is_total() -> None:
    signer = identity.Signer(b"s" * 32)
    assert signer.peer == identity.peer_id(b"s" * 32)
    signature = signer.sign(b"data")
    assert identity.verify(signer.peer, b"data", signature)
    assert not identity.verify(signer.peer, b"other", signature)
    assert not identity.verify(identity.peer_id(b"t" * 32), b"data", signature)
    assert not identity.verify(signer.peer, b"data", b"")
    assert not identity.verify(signer.peer, b"data", os.urandom(64))
    assert not identity.verify(signer.peer, b"data", b"x" * 65)
    for name in ("", "12D3KooW", "0OIl", "\u2603", "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"):
        assert not identity.verify(PeerId(name), b"data", signature)


def test_importing_identity_loads_neither_libp2p_nor_trio() -> None:
    code = "import sys, nexapod.mesh.identity; assert not {'libp2p', 'trio', 'multiaddr'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
