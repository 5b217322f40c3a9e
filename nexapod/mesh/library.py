"""The one door to py-libp2p for the mesh: pins the release, and names everything of it that the mesh uses.

Every other file of this package imports libp2p's names from here, so that the stand-in for `fastecdsa` is in place
before libp2p is loaded, and so that the private names which containment.py corrects are checked in one place.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
from importlib.metadata import version
from types import ModuleType
from typing import Any, Final, NoReturn

from nexapod.protocol.errors import LocalError

LIBP2P_VERSION: Final = "0.8.1"
_FASTECDSA = ("", ".curve", ".keys", ".point", ".encoding", ".encoding.sec1", ".encoding.util")


class _Unusable:
    """Stands for a name of fastecdsa: it may be imported and named in an annotation, and nothing else."""

    def __init__(self, name: str) -> None:
        self._name = name

    def _refuse(self) -> NoReturn:
        raise LocalError(
            f"{self._name} was called, but fastecdsa is not installed: NEXAPod uses Ed25519 keys only. "
            "Install fastecdsa to use P-256 keys"
        )

    def __call__(self, *args: object, **kwargs: object) -> NoReturn:
        self._refuse()

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        self._refuse()


class _StandIn(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Unusable(f"{self.__name__}.{name}")


def stand_in_for_fastecdsa() -> bool:
    """Let libp2p be imported without fastecdsa, which has no wheels and needs a compiler and GMP.

    libp2p imports it for P-256 keys alone, which nothing here uses. True when the stand-in is in use.
    """
    if "fastecdsa" in sys.modules:
        return isinstance(sys.modules["fastecdsa"], _StandIn)
    if importlib.util.find_spec("fastecdsa") is not None:
        return False
    for suffix in _FASTECDSA:
        module = _StandIn(f"fastecdsa{suffix}")
        module.__path__ = []
        sys.modules[module.__name__] = module
        parent, _, leaf = module.__name__.rpartition(".")
        if parent:
            setattr(sys.modules[parent], leaf, module)
    return True


stand_in_for_fastecdsa()

import libp2p.stream_muxer.muxer_multistream as muxer_module  # noqa: E402
import libp2p.stream_muxer.yamux.yamux as yamux_module  # noqa: E402
from libp2p import new_host  # noqa: E402
from libp2p.crypto.ed25519 import create_new_key_pair  # noqa: E402
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair  # noqa: E402
from libp2p.host.basic_host import BasicHost  # noqa: E402
from libp2p.host.exceptions import HostException  # noqa: E402
from libp2p.io.exceptions import IncompleteReadError, IOException  # noqa: E402
from libp2p.network.config import ConnectionConfig, RetryConfig  # noqa: E402
from libp2p.network.connection.exceptions import RawConnError  # noqa: E402
from libp2p.network.connection.raw_connection import RawConnection  # noqa: E402
from libp2p.network.exceptions import SwarmException  # noqa: E402
from libp2p.network.stream.exceptions import StreamError  # noqa: E402
from libp2p.network.swarm import Swarm  # noqa: E402
from libp2p.peer.id import ID  # noqa: E402
from libp2p.peer.peerstore import PeerStoreError  # noqa: E402
from libp2p.rcmgr import Direction  # noqa: E402
from libp2p.rcmgr.connection_limits import ConnectionLimits  # noqa: E402
from libp2p.rcmgr.manager import ResourceLimits, ResourceManager  # noqa: E402
from libp2p.security.noise.io import NoiseTransportReadWriter  # noqa: E402
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE_ID  # noqa: E402
from libp2p.security.noise.transport import Transport as NoiseTransport  # noqa: E402
from libp2p.security.secure_session import SecureSession  # noqa: E402
from libp2p.stream_muxer.exceptions import (  # noqa: E402
    MuxedConnError,
    MuxedStreamEOF,
    MuxedStreamError,
    MuxedStreamReset,
)
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX_ID  # noqa: E402
from libp2p.stream_muxer.yamux.yamux import Yamux, YamuxStream  # noqa: E402
from libp2p.transport.exceptions import OpenConnectionError, UpgradeFailure  # noqa: E402
from libp2p.transport.tcp.tcp import TCP  # noqa: E402
from multiaddr import Multiaddr  # noqa: E402

__all__ = [
    "DIAL_ERRORS",
    "ID",
    "NOISE_ID",
    "STREAM_ERRORS",
    "TCP",
    "YAMUX_ID",
    "BasicHost",
    "ConnectionConfig",
    "ConnectionLimits",
    "Direction",
    "HostException",
    "IOException",
    "IncompleteReadError",
    "Multiaddr",
    "MuxedStreamEOF",
    "MuxedStreamError",
    "MuxedStreamReset",
    "NoiseTransport",
    "NoiseTransportReadWriter",
    "PeerStoreError",
    "RawConnError",
    "RawConnection",
    "ResourceLimits",
    "ResourceManager",
    "RetryConfig",
    "SecureSession",
    "Swarm",
    "SwarmException",
    "UpgradeFailure",
    "Yamux",
    "YamuxStream",
    "create_new_key_pair",
    "create_noise_key_pair",
    "muxer_module",
    "new_host",
    "yamux_module",
]

STREAM_ERRORS: Final[tuple[type[Exception], ...]] = (
    StreamError,
    SwarmException,
    HostException,
    MuxedConnError,
    MuxedStreamError,
    RawConnError,
    IOException,
    OSError,
)
"""What opening, reading or writing a stream may raise when the other side or the network fails."""
DIAL_ERRORS: Final[tuple[type[Exception], ...]] = (*STREAM_ERRORS, OpenConnectionError, UpgradeFailure)
"""What dialling may raise when nobody is there, or somebody else is."""

if not os.environ.get("LIBP2P_DEBUG"):
    # It warns of every stream that a peer closes; what matters of that, our own events say.
    logging.getLogger("libp2p").addHandler(logging.NullHandler())
    logging.getLogger("libp2p").setLevel(logging.CRITICAL)

_CORRECTED: Final[tuple[tuple[Any, tuple[str, ...]], ...]] = (
    (
        Swarm,
        (
            "_do_handle_inbound_connection",
            "_build_remote_multiaddr",
            "upgrade_inbound_raw_conn",
            "add_conn",
            "set_stream_handler",
            "dial_addr",
        ),
    ),
    (
        Yamux,
        (
            "handle_incoming",
            "_measure_rtt_loop",
            "_read_data_body",
            "_write_frame",
            "_cleanup_on_error",
            "_finalize_stream_locked",
        ),
    ),
    (YamuxStream, ("write", "read", "send_window_update")),
    (SecureSession, ("_drain",)),
    (NoiseTransportReadWriter, ("encrypt", "decrypt")),
    (muxer_module, ("Yamux",)),
    (yamux_module, ("MAX_WINDOW_SIZE", "MAX_MESSAGE_SIZE", "HEADER_SIZE", "FLAG_SYN", "TYPE_PING")),
)


def check_pin() -> None:
    """Raise LocalError unless libp2p is the release that the corrections were written against."""
    found = version("libp2p")
    if found != LIBP2P_VERSION:
        raise LocalError(f"NEXAPod needs libp2p {LIBP2P_VERSION} exactly, and {found} is installed")
    missing = [
        f"{getattr(owner, '__name__', owner)}.{name}"
        for owner, names in _CORRECTED
        for name in names
        if not hasattr(owner, name)
    ]
    if missing:
        raise LocalError(f"this libp2p {found} lacks {', '.join(missing)}: reinstall libp2p {LIBP2P_VERSION}")
