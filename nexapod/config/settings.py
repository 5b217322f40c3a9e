"""What a daemon is started with: flags over environment over config.toml over defaults, as one frozen Config.

Reads files and the environment it is handed; starts nothing. Loads no libp2p, trio or web framework: the CLI uses it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, cast

from nexapod.config import networks
from nexapod.config.document import Document, Table, nearest
from nexapod.config.errors import ConfigError, Problem
from nexapod.config.gpus import GpuSettings, gpu_settings
from nexapod.config.multiaddr import parse
from nexapod.config.stewarding import StewardSettings, SubmitSettings, read_steward, read_submit
from nexapod.config.storage import Bandwidth, Storage, read_bandwidth, read_storage
from nexapod.protocol.image_names import registry_host
from nexapod.protocol.limits import REGISTRIES_MAX
from nexapod.store.home import Home

if TYPE_CHECKING:
    # For its name alone: every command loads this module.
    from nexapod.protocol.types import Grouping

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["auto", "console", "json"]
LOG_LEVELS: Final = ("debug", "info", "warning", "error")
LOG_FORMATS: Final = ("auto", "console", "json")

DEFAULT_NETWORK: Final = networks.PUBLIC
DEFAULT_LISTEN: Final = ("/ip4/0.0.0.0/tcp/4747",)
SLOTS_MAX: Final = 4096
LISTEN_MAX: Final = 16
CONFIG_FILE: Final = "config.toml"


@dataclass(frozen=True, slots=True)
class Config:
    """Everything that a daemon is told. `slots` None means: as many as the machine has cores."""

    home: Path
    network: str = DEFAULT_NETWORK
    listen: tuple[str, ...] = DEFAULT_LISTEN
    bootstrap: tuple[str, ...] = ()
    work: bool = True
    slots: int | None = None
    log_level: LogLevel = "info"
    log_format: LogFormat = "auto"
    api_tcp: str | None = None
    """host:port of a loopback address where the API also listens, for holders of the token; None = not at all."""
    gpu: GpuSettings = field(default_factory=GpuSettings)
    registries: tuple[str, ...] = ()
    """Hosts that container images are pulled from for other peers' jobs; none, unless named."""
    tell_images: bool = False
    """Whether others are told of every image that the engine holds, and not only of those that were added."""
    storage: Storage = field(default_factory=Storage)
    bandwidth: Bandwidth = field(default_factory=Bandwidth)
    grouping: Grouping = "peer"
    """Who counts as one operator in this network."""
    steward: StewardSettings = field(default_factory=StewardSettings)
    submit: SubmitSettings = field(default_factory=SubmitSettings)

    @property
    def paths(self) -> Home:
        return Home(self.home)


@dataclass(frozen=True, slots=True)
class Flags:
    """What the command line said; None or empty where it said nothing."""

    home: Path | None = None
    network: str | None = None
    listen: Sequence[str] = ()
    bootstrap: Sequence[str] = ()
    work: bool | None = None
    slots: int | None = None
    log_level: str | None = None
    log_format: str | None = None
    api_tcp: str | None = None


@dataclass(frozen=True, slots=True)
class _File:
    network: str | None = None
    listen: tuple[str, ...] = ()
    bootstrap: tuple[str, ...] | None = None
    work: bool = True
    slots: int | None = None
    log_level: str = "info"
    log_format: str = "auto"
    api_tcp: str | None = None
    gpu: GpuSettings = field(default_factory=GpuSettings)
    registries: tuple[str, ...] = ()
    tell_images: bool = False
    storage: Storage = field(default_factory=Storage)
    bandwidth: Bandwidth = field(default_factory=Bandwidth)
    steward: StewardSettings = field(default_factory=StewardSettings)
    submit: SubmitSettings = field(default_factory=SubmitSettings)


def config_folder(environ: Mapping[str, str]) -> Path:
    """$XDG_CONFIG_HOME/nexapod, else ~/.config/nexapod."""
    return _xdg(environ, "XDG_CONFIG_HOME", ".config")


def config_file(environ: Mapping[str, str]) -> Path:
    """$NEXAPOD_CONFIG, which must then be there, else config.toml in the configuration folder."""
    return Path(environ.get("NEXAPOD_CONFIG") or config_folder(environ) / CONFIG_FILE)


def default_home(environ: Mapping[str, str]) -> Path:
    """$NEXAPOD_HOME, else $XDG_DATA_HOME/nexapod, else ~/.local/share/nexapod. Always absolute."""
    named = environ.get("NEXAPOD_HOME")
    return Path(named).absolute() if named else _xdg(environ, "XDG_DATA_HOME", ".local/share")


def _xdg(environ: Mapping[str, str], variable: str, fallback: str) -> Path:
    # The XDG specification says that a relative path is to be ignored.
    named = environ.get(variable, "")
    base = Path(named) if named.startswith("/") else Path(environ.get("HOME") or "~").expanduser() / fallback
    return base / "nexapod"


def load(flags: Flags, environ: Mapping[str, str]) -> Config:
    """The configuration of a daemon. Raises ConfigError with every problem found."""
    folder = config_folder(environ)
    file = _read_file(config_file(environ), environ)
    problems: list[Problem] = []
    network = _network_name(flags, environ, file, problems)
    listen = _addresses("--listen", flags.listen, problems, listen=True) or file.listen or DEFAULT_LISTEN
    known = networks.read_all(folder).get(network)
    bootstrap = _bootstrap(flags, environ, file, known, problems)
    slots = file.slots if flags.slots is None else flags.slots
    if slots is not None and not 0 <= slots <= SLOTS_MAX:
        problems.append(Problem("--slots", 0, "", f"{slots} is not possible: from 0 to {SLOTS_MAX} is allowed"))
    level = _word(
        "log level", flags.log_level or environ.get("NEXAPOD_LOG_LEVEL") or file.log_level, LOG_LEVELS, problems
    )
    form = _word(
        "log format", flags.log_format or environ.get("NEXAPOD_LOG_FORMAT") or file.log_format, LOG_FORMATS, problems
    )
    tcp = flags.api_tcp or file.api_tcp
    if tcp is not None:
        try:
            loopback_address(tcp)
        except ValueError as error:
            problems.append(Problem("--api-tcp", 0, "", str(error)))
    if problems:
        raise ConfigError(problems)
    return Config(
        home=(flags.home or default_home(environ)).absolute(),
        network=network,
        listen=listen,
        bootstrap=bootstrap,
        work=file.work if flags.work is None else flags.work,
        slots=slots,
        log_level=cast(LogLevel, level),
        log_format=cast(LogFormat, form),
        api_tcp=tcp,
        gpu=file.gpu,
        registries=file.registries,
        tell_images=file.tell_images,
        storage=file.storage,
        bandwidth=file.bandwidth,
        grouping=known.grouping if known else networks.default_grouping(network),
        steward=file.steward,
        submit=file.submit,
    )


def loopback_address(text: str) -> tuple[str, int]:
    """host and port of "127.0.0.1:8747", "[::1]:8747" or "localhost:8747". Raises ValueError for any other host."""
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if host not in ("127.0.0.1", "::1", "localhost"):
        raise ValueError(
            f"{text!r}: the API listens on this machine only: 127.0.0.1:PORT, [::1]:PORT or localhost:PORT"
        )
    if not (port.isascii() and port.isdigit()) or len(port) > 5 or int(port) > 65535:
        raise ValueError(f"{text!r}: the port must be a number from 0 to 65535")
    return ("127.0.0.1" if host == "localhost" else host), int(port)


def _read_file(path: Path, environ: Mapping[str, str]) -> _File:
    if not path.exists() and not environ.get("NEXAPOD_CONFIG"):
        return _File()
    document = Document.open(path)
    root = document.root
    log, api = root.table("log"), root.table("api")
    storage, bandwidth, images = root.table("storage"), root.table("bandwidth"), root.table("images")
    file = _File(
        network=root.text("network") or None,
        listen=networks.addresses(root, "listen", listen=True),
        bootstrap=networks.addresses(root, "bootstrap") if "bootstrap" in root else None,
        work=root.flag("work", default=True),
        slots=root.whole("slots", 0, 0, SLOTS_MAX) if "slots" in root else None,
        log_level=log.choice("level", LOG_LEVELS, "info"),
        log_format=log.choice("format", LOG_FORMATS, "auto"),
        api_tcp=api.text("tcp") or None,
        gpu=gpu_settings(root.table("gpu")),
        registries=_registries(images),
        tell_images=images.flag("tell", default=False),
        storage=read_storage(storage),
        bandwidth=read_bandwidth(bandwidth),
        steward=read_steward(root.table("steward")),
        submit=read_submit(root.table("submit")),
    )
    # `bootstrap` and `slots` are known keys even when absent: the hint at a misspelt one must know them.
    for key in ("bootstrap", "slots"):
        root.raw(key)
    for table in (root, log, api, storage, bandwidth, images):
        table.end()
    document.raise_problems()
    return file


def _registries(table: Table) -> tuple[str, ...]:
    hosts = table.strings("registries", count_max=REGISTRIES_MAX)
    for host in hosts:
        if registry_host(f"{host}/name@sha256:{'0' * 64}") != host:
            table.problem("registries", f"{host!r} is not a registry's host: write it like 'docker.io' or 'host:5000'")
    return hosts


def _network_name(flags: Flags, environ: Mapping[str, str], file: _File, problems: list[Problem]) -> str:
    name = flags.network or environ.get("NEXAPOD_NETWORK") or file.network or DEFAULT_NETWORK
    if not networks.NETWORK_NAME.match(name):
        what = f"{name!r} cannot be a network's name: {networks.NETWORK_NAME_RULE}"
        problems.append(Problem("network", 0, "", what))
    return name


def _bootstrap(
    flags: Flags, environ: Mapping[str, str], file: _File, known: networks.Network | None, problems: list[Problem]
) -> tuple[str, ...]:
    """The first of these that says anything: flags, NEXAPOD_BOOTSTRAP, config.toml, the network's own list."""
    if flags.bootstrap:
        return _addresses("--bootstrap", flags.bootstrap, problems)
    named = environ.get("NEXAPOD_BOOTSTRAP")
    if named is not None:
        return _addresses("NEXAPOD_BOOTSTRAP", named.replace(",", " ").split(), problems)
    if file.bootstrap is not None:
        return file.bootstrap
    return known.bootstrap if known else ()


def _addresses(source: str, texts: Sequence[str], problems: list[Problem], *, listen: bool = False) -> tuple[str, ...]:
    limit = LISTEN_MAX if listen else networks.BOOTSTRAP_MAX
    if len(texts) > limit:
        problems.append(Problem(source, 0, "", f"{len(texts)} addresses: at most {limit} are allowed"))
    for text in texts:
        try:
            parse(text, listen=listen)
        except ValueError as error:
            problems.append(Problem(source, 0, "", f"{text!r}: {error}"))
    return tuple(texts)


def _word(what: str, value: str, allowed: Sequence[str], problems: list[Problem]) -> str:
    if value not in allowed:
        problems.append(Problem(what, 0, "", f"{value!r} is not possible: {nearest(value, allowed)}"))
    return value
