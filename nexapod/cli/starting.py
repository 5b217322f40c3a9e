"""`nexapod init` and `nexapod start`: the only commands that touch the home folder themselves."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from nexapod.cli.console import note, print_json, say
from nexapod.cli.errors import BadFile, CliError, Refused
from nexapod.cli.safe import safe
from nexapod.config import Config, ConfigError, Flags, load
from nexapod.config.settings import config_file
from nexapod.protocol.errors import LocalError

CONFIG_TEMPLATE: Final = """\
# NEXAPod's configuration. Every key is optional. A value below is the default, unless its line says what holds without
# it. Flags and the environment come before this file; docs/configuration.md says more of each key.

# network = "main"
# listen = ["/ip4/0.0.0.0/tcp/4747"]
# bootstrap = ["/ip4/192.0.2.7/tcp/4747/p2p/12D3KooW..."]   # without it: the network's own list
# work = true              # false: never run tasks of others
# slots = 4                # tasks at once; without it: one a core

[log]
# level = "info"           # debug, info, warning, error
# format = "auto"          # auto: for people in a terminal, else JSON lines; console, json

[steward]
# enabled = true           # false: keep no part of other peers' jobs
# storage = "10GiB"        # what one job may take of the disk; without it: half of blobs_max
# shards = 1024            # parts of one job, of 256 tasks each, that are kept at most

[submit]
# friends = ["12D3KooW..."]   # stewards of every job submitted here; without it: as chance has it
# accept_unknown = false   # true: submit even if all stewards are known through one peer

[storage]
# blobs_max = "20GiB"      # without it: 20 GiB, or a tenth of the disk where that is less
# disk_free_min = "1GiB"   # what must stay free: what nobody needs goes before
# images_max = "10GiB"     # what container images loaded for tasks may take in the engine

[bandwidth]
# up_max = "10MiB/s"       # what blobs may take of the line; without it: no cap
# down_max = "50MiB/s"     # without it: no cap
# peer_up_max = "5MiB/s"   # for each peer by itself; without it: no cap
# peer_down_max = "20MiB/s"   # without it: no cap

[images]
# tell = true                  # let peers know of all images that the engine holds; without it: of those added here
# registries = ["docker.io"]   # whence images are pulled for jobs that name them by digest; without it: from nowhere

[api]
# tcp = "127.0.0.1:8747"   # also for holders of the token in the home folder; without it: the unix socket alone

[gpu]
# enabled = true           # false: the GPUs of this machine are neither lent nor looked at
# disabled = []            # GPUs that are not lent: UUIDs or indices, as nvidia-smi -L lists them
# temperature_max_c = 85   # a GPU that is hotter is given no further task; without it: no such limit
"""


class HomeTrouble(CliError):
    """Choose another home folder with --home or NEXAPOD_HOME, or correct what is named above."""


def configured(flags: Flags) -> Config:
    """The configuration, or its problems as a CliError."""
    try:
        return load(flags, os.environ)
    except ConfigError as error:
        raise BadFile("\n".join(safe(line) for line in str(error).split("\n")), "Correct it and try again.") from None


def start(flags: Flags) -> int:
    """Run the daemon in the foreground until it is told to stop. Returns its exit status."""
    config = configured(flags)
    if not config.bootstrap:
        note(f"no bootstrap peer is known for the network {config.network!r}: this peer waits for others to dial it")
    # Loads libp2p, trio and the web framework: no other command pays for them.
    import structlog

    from nexapod.daemon.app import run

    try:
        return run(config)
    except OSError:
        # A person is told in a line (app.main); where in the daemon it was, only the traceback says.
        structlog.get_logger().exception("daemon_failed")
        raise


def init(flags: Flags, *, as_json: bool) -> None:
    """Make the home folder, the peer's identity in it, and a configuration file to edit. Changes nothing twice."""
    config = configured(flags)
    from nexapod.mesh import identity

    try:
        config.paths.create()
        peer = identity.peer_id(identity.load_or_create(config.paths.identity))
    except LocalError as error:
        raise HomeTrouble(safe(error)) from None
    file = config_file(os.environ)
    made = _write_template(file)
    if as_json:
        print_json({"home": str(config.home), "peer_id": peer, "config": str(file), "config_created": made})
        return
    say(f"home    {safe(config.home)}")
    say(f"peer    {safe(peer)}")
    say(f"config  {safe(file)}{'' if made else ' (was there, unchanged)'}")
    say("Start the daemon: nexapod start")


def _write_template(file: Path) -> bool:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("x", encoding="utf-8") as target:
            target.write(CONFIG_TEMPLATE)
    except FileExistsError:
        return False
    except OSError as error:
        raise Refused(f"{safe(file)}: {error.strerror}", "Choose a folder with XDG_CONFIG_HOME.") from None
    return True
