"""The pin of libp2p, and libp2p without fastecdsa."""

import subprocess
import sys

import pytest

from nexapod.mesh import library
from nexapod.protocol.errors import LocalError

BLOCKED = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "fastecdsa":
            raise ModuleNotFoundError(name)
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "fastecdsa" else real(name, *rest)
sys.meta_path.insert(0, Block())
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", BLOCKED + code], capture_output=True, text=True, timeout=60)


def test_libp2p_cannot_be_imported_without_fastecdsa_and_our_stand_in() -> None:
    assert "fastecdsa" in run("import libp2p").stderr


def test_libp2p_works_without_fastecdsa_and_its_use_is_a_clear_error() -> None:
    ended = run(
        "import nexapod.mesh.mesh, libp2p\n"
        "libp2p.new_host()\n"
        "from libp2p.crypto.ecc import create_new_key_pair\n"
        "create_new_key_pair('P-256')\n"
    )
    assert "LocalError: fastecdsa.keys" in ended.stderr, ended.stderr[-2000:]


def test_another_release_of_libp2p_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    library.check_pin()
    monkeypatch.setattr(library, "version", lambda name: "0.9.0")
    with pytest.raises(LocalError, match=r"0\.8\.1 exactly"):
        library.check_pin()


def test_a_missing_private_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(library.Swarm, "add_conn")
    with pytest.raises(LocalError, match="add_conn"):
        library.check_pin()
