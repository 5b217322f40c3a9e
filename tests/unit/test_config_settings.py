"""nexapod.config: flags over environment over file over defaults; strict files; multiaddrs."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexapod.cli.starting import CONFIG_TEMPLATE
from nexapod.config import Config, ConfigError, Flags, config_folder, default_home, load, networks
from nexapod.config.document import Document, line_numbers
from nexapod.config.gpus import GpuSettings
from nexapod.config.multiaddr import parse
from nexapod.config.settings import DEFAULT_LISTEN, config_file, loopback_address
from nexapod.config.stewarding import StewardSettings, SubmitSettings
from nexapod.protocol.primitives import peer_id_of_key

PEER = peer_id_of_key(bytes(32))
FRIEND = peer_id_of_key(bytes([7]) * 32)
ADDR = f"/ip4/192.0.2.7/tcp/4747/p2p/{PEER}"
GPU_UUID = "GPU-0b6f3d2e-7c1a-4e7d-9a35-1f20c84e6d11"
OTHER = f"/dns4/peer.example.org/tcp/4747/p2p/{PEER}"


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "config/nexapod").mkdir(parents=True)
    return {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "config"), "XDG_DATA_HOME": str(tmp_path / "data")}


def write(environ: dict[str, str], text: str, name: str = "config.toml") -> None:
    (config_folder(environ) / name).write_text(text)


def problems(environ: dict[str, str], flags: Flags | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load(flags or Flags(), environ)
    return str(caught.value)


def test_nothing_said_gives_the_defaults(environ: dict[str, str]) -> None:
    config = load(Flags(), environ)
    assert config == Config(home=Path(environ["XDG_DATA_HOME"]) / "nexapod", grouping="network")
    assert (config.network, config.listen, config.bootstrap, config.work) == ("main", DEFAULT_LISTEN, (), True)
    assert config.paths.api_socket == config.home / "api.sock"


def test_flags_come_before_environment_before_file(environ: dict[str, str]) -> None:
    write(environ, f'network = "filed"\nbootstrap = ["{ADDR}"]\nslots = 2\nwork = false\n[log]\nlevel = "error"')
    config = load(Flags(), environ)
    assert (config.network, config.bootstrap, config.slots, config.work) == ("filed", (ADDR,), 2, False)
    assert config.log_level == "error"
    environ |= {"NEXAPOD_NETWORK": "env", "NEXAPOD_BOOTSTRAP": f"{OTHER}, {ADDR}", "NEXAPOD_LOG_LEVEL": "debug"}
    config = load(Flags(), environ)
    assert (config.network, config.bootstrap, config.log_level) == ("env", (OTHER, ADDR), "debug")
    flags = Flags(home=Path("h"), network="flag", bootstrap=(ADDR,), slots=0, work=True, log_level="info")
    config = load(flags, environ)
    assert (config.network, config.bootstrap, config.slots, config.work) == ("flag", (ADDR,), 0, True)
    assert (config.log_level, config.home) == ("info", Path("h").absolute())
    assert load(Flags(), environ | {"NEXAPOD_BOOTSTRAP": ""}).bootstrap == ()


def test_the_home_folder(environ: dict[str, str]) -> None:
    assert default_home(environ | {"NEXAPOD_HOME": "/x"}) == Path("/x")
    assert default_home({"HOME": "/me"}) == Path("/me/.local/share/nexapod")
    assert default_home({"HOME": "/me", "XDG_DATA_HOME": "relative"}) == Path("/me/.local/share/nexapod")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('netwrok = "x"', "config.toml:1: netwrok: unknown key; did you mean 'network'?"),
        ("slots = -1", "slots: -1 is not possible: from 0 to 4096"),
        ('slots = "4"', "slots: expected a whole number, not text"),
        ("\n[log]\nlevel = 'loud'", "config.toml:3: log.level: 'loud' is not possible"),
        ('listen = ["/ip4/0.0.0.0/udp/1"]', "only tcp is"),
        (f'listen = ["{ADDR}"]', "no /p2p/ part"),
        ('bootstrap = ["/ip4/1.2.3.4/tcp/1"]', "must end in /p2p/"),
        ('api = "x"', "api: expected a table, not text"),
        ('[api]\ntcp = "0.0.0.0:80"', "on this machine only"),
        ("network = 'Main Net'", "cannot be a network's name"),
        ("gpu = true", "gpu: expected a table, not true or false"),
        ("[gpu]\nenabled = 1", "config.toml:2: gpu.enabled: expected true or false, not a whole number"),
        ("[gpu]\ndisable = []", "config.toml:2: gpu.disable: unknown key; did you mean 'disabled'?"),
        ("[gpu]\ndisabled = 'GPU-1'", "gpu.disabled: expected a list of UUIDs and indices, not text"),
        (
            "[gpu]\ndisabled = [0, 'GPU-1']",
            "gpu.disabled: 'GPU-1' names no GPU: write a UUID like 'GPU-...' or an index",
        ),
        (f"[gpu]\ndisabled = ['MIG-{GPU_UUID[4:]}']", "names no GPU"),
        (f"[gpu]\ndisabled = ['{GPU_UUID}\\n']".replace("'", '"'), "names no GPU"),
        ("[gpu]\ndisabled = [true]", "gpu.disabled: True names no GPU"),
        ("[gpu]\ndisabled = [16]", "gpu.disabled: 16 names no GPU"),
        ("[gpu]\ndisabled = [-1]", "gpu.disabled: -1 names no GPU"),
        ("[gpu]\ndisabled = [0.5]", "gpu.disabled: 0.5 names no GPU"),
        (f"[gpu]\ndisabled = [0x1{'0' * 5000}]", "gpu.disabled: a number of 20001 bits names no GPU"),
        (f"[gpu]\ndisabled = [[0x1{'0' * 5000}]]", "gpu.disabled: a list names no GPU"),
        (f"slots = {'9' * 5000}", "a number in it has thousands of digits"),
        ("[gpu]\ndisabled = [" + "0," * 65 + "]", "gpu.disabled: 65 entries: at most 64 are allowed"),
        ("[gpu]\ntemperature_max_c = 0", "gpu.temperature_max_c: 0 is not possible: from 30 to 120 is allowed"),
        ("[gpu]\ntemperature_max_c = '85'", "gpu.temperature_max_c: expected a whole number, not text"),
    ],
)
def test_a_mistake_in_the_file_is_named(environ: dict[str, str], text: str, said: str) -> None:
    write(environ, text)
    assert said in problems(environ)


def test_which_gpus_are_lent(environ: dict[str, str]) -> None:
    assert load(Flags(), environ).gpu == GpuSettings(enabled=True, disabled=frozenset(), temperature_max_c=None)
    write(environ, f'[gpu]\nenabled = false\ndisabled = ["{GPU_UUID.upper()}", 0, 15]\ntemperature_max_c = 85')
    assert load(Flags(), environ).gpu == GpuSettings(False, frozenset({GPU_UUID.lower(), 0, 15}), 85)


def test_the_file_that_init_writes_says_the_defaults(environ: dict[str, str]) -> None:
    write(environ, CONFIG_TEMPLATE)
    assert load(Flags(), environ) == Config(home=default_home(environ), grouping="network")
    told = re.sub(r"(?m)^# (?=\w+ = )", "", CONFIG_TEMPLATE)
    write(environ, told.replace("12D3KooW...", PEER))
    assert load(Flags(), environ).gpu == GpuSettings(temperature_max_c=85)


def test_mistakes_in_flags_and_environment_are_told_together(environ: dict[str, str]) -> None:
    environ["NEXAPOD_LOG_FORMAT"] = "xml"
    told = problems(environ, Flags(network="a b", listen=("nonsense",), bootstrap=("/x",), slots=9999))
    assert [line.split(":")[0] for line in told.splitlines()] == [
        "network",
        "--listen",
        "--bootstrap",
        "--slots",
        "log format",
    ]


def test_the_file_is_the_named_one_or_lies_in_the_configuration_folder(environ: dict[str, str]) -> None:
    assert config_file(environ) == config_folder(environ) / "config.toml"
    assert config_file(environ | {"NEXAPOD_CONFIG": "/etc/nexapod.toml"}) == Path("/etc/nexapod.toml")


def test_a_named_file_must_exist(environ: dict[str, str]) -> None:
    assert "cannot be read" in problems(environ | {"NEXAPOD_CONFIG": "/nowhere/x.toml"})


# --- stewards ------------------------------------------------------------------------------------------------------
def test_what_is_kept_of_others_jobs_and_whom_ones_own_rest_on(environ: dict[str, str]) -> None:
    assert load(Flags(), environ).steward == StewardSettings(enabled=True, storage=None, shards=1024)
    assert load(Flags(), environ).submit == SubmitSettings(friends=(), accept_unknown=False)
    kept = '[steward]\nenabled = false\nstorage = "10GiB"\nshards = 64\n'
    write(environ, f'{kept}[submit]\nfriends = ["{FRIEND}"]\naccept_unknown = true')
    assert load(Flags(), environ).steward == StewardSettings(enabled=False, storage=10 << 30, shards=64)
    assert load(Flags(), environ).submit == SubmitSettings((FRIEND,), accept_unknown=True)
    write(environ, '[steward]\nstorage = "1kB"\n[submit]\nfriends = ["Ann"]')
    said = problems(environ)
    assert "steward.storage: '1kB' is not possible" in said
    assert "submit.friends: 'Ann' is no peer's id" in said


# --- networks ------------------------------------------------------------------------------------------------------
def test_the_shipped_networks_are_good() -> None:
    shipped = networks.read(networks.shipped_file())
    assert {"main", "local"} <= shipped.keys()
    assert shipped["main"].bootstrap == ()


def test_who_counts_as_one_operator_is_the_networks_to_say(environ: dict[str, str]) -> None:
    assert load(Flags(), environ).grouping == "network"
    assert load(Flags(network="anything"), environ).grouping == "peer"
    write(environ, '[networks.lab]\nbootstrap = []\ngrouping = "network"', networks.FILE_NAME)
    assert load(Flags(network="lab"), environ).grouping == "network"
    write(environ, '[networks.lab]\nbootstrap = []\ngrouping = "/24"', networks.FILE_NAME)
    assert "networks.lab.grouping: '/24' is not possible" in problems(environ)


def test_an_own_file_replaces_and_adds_networks(environ: dict[str, str]) -> None:
    write(
        environ, f'[networks.main]\nbootstrap = ["{ADDR}"]\n[networks.lab]\nbootstrap = ["{OTHER}"]', networks.FILE_NAME
    )
    assert load(Flags(), environ).bootstrap == (ADDR,)
    assert load(Flags(network="lab"), environ).bootstrap == (OTHER,)
    assert load(Flags(network="local"), environ).bootstrap == ()
    assert load(Flags(network="unheard-of"), environ).bootstrap == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[networks.x]\nbootstraps = []", "networks.x.bootstraps: unknown key; did you mean 'bootstrap'?"),
        ("[network.x]\nbootstrap = []", "network: unknown key; did you mean 'networks'?"),
        ('[networks.x]\nbootstrap = ["/ip4/300.1.1.1/tcp/1/p2p/x"]', "not an ip4 address"),
        ("[networks.'A B']\nbootstrap = []", "cannot be a network's name"),
        ("networks = 3", "expected a table"),
    ],
)
def test_a_mistake_in_the_networks_is_named(environ: dict[str, str], text: str, said: str) -> None:
    write(environ, text, networks.FILE_NAME)
    told = problems(environ)
    assert said in told
    assert networks.FILE_NAME in told


# --- multiaddrs ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("text", [ADDR, OTHER, f"/ip6/2001:db8::1/tcp/1/p2p/{PEER}", f"/dns/x/tcp/65535/p2p/{PEER}"])
def test_addresses_to_dial(text: str) -> None:
    assert str(parse(text)) == text
    with pytest.raises(ValueError):
        parse(text, listen=True)


@pytest.mark.parametrize("text", ["/ip4/0.0.0.0/tcp/0", "/ip6/::/tcp/4747"])
def test_addresses_to_listen_on(text: str) -> None:
    assert str(parse(text, listen=True)) == text
    with pytest.raises(ValueError):
        parse(text)


@pytest.mark.parametrize(
    "text",
    ["", "/", "ip4/1.2.3.4/tcp/1", "/ip4/1.2.3.4", f"/ip4/1.2.3/tcp/1/p2p/{PEER}", f"/ip4/1.2.3.4/tcp/0/p2p/{PEER}",
     f"/ip4/1.2.3.4/tcp/65536/p2p/{PEER}", f"/ip4/1.2.3.4/tcp/-1/p2p/{PEER}", f"/ip4/1.2.3.4/udp/1/p2p/{PEER}",
     "/ip4/1.2.3.4/tcp/1/p2p/QmWrong", "/ip4/1.2.3.4/tcp/1/p2p/0OIl", f"/dns4/-x y/tcp/1/p2p/{PEER}",
     f"/ip6/fe80::1%eth0\n/tcp/1/p2p/{PEER}", ADDR + "/", ADDR + "/p2p-circuit", ADDR.replace("/p2p/", "/ipfs/")],
)  # fmt: skip
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse(text)


@given(st.text(st.sampled_from("/ip46dnstc2x0.:%é"), max_size=40), st.booleans())
def test_any_text_is_an_address_or_a_value_error(text: str, listen: bool) -> None:
    with suppress(ValueError):
        address = parse(text, listen=listen)
        assert parse(str(address), listen=listen) == address


def test_the_api_is_for_this_machine_only() -> None:
    assert loopback_address("127.0.0.1:80") == ("127.0.0.1", 80)
    assert loopback_address("localhost:0") == ("127.0.0.1", 0)
    assert loopback_address("[::1]:8747") == ("::1", 8747)
    for bad in ("0.0.0.0:80", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:99999", "example.org:80", ":80"):
        with pytest.raises(ValueError):
            loopback_address(bad)


# --- documents -----------------------------------------------------------------------------------------------------
def test_lines_of_keys_are_found_past_long_strings() -> None:
    text = 'a = """\nb = 1\n"""\n[t]\n"x.y" = 2\nc . d = 3\n[[list]]\ne = 1\n'
    found = line_numbers(text)
    assert found == {("a",): 1, ("t",): 4, ("t", "x.y"): 5, ("t", "c", "d"): 6, ("list",): 7, ("list", "e"): 8}


def test_a_huge_list_of_problems_is_cut(environ: dict[str, str]) -> None:
    write(environ, "".join(f"key{n} = 1\n" for n in range(100)))
    assert problems(environ).endswith("... and 60 more")


def test_a_huge_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"#" * (4 << 20 | 1))
    with pytest.raises(ConfigError, match="larger than 4 MiB"):
        Document.open(tmp_path / "x")


def test_what_images_may_take_and_where_they_may_come_from(environ: dict[str, str]) -> None:
    assert (load(Flags(), environ).storage.images_max, load(Flags(), environ).registries) == (None, ())
    write(environ, '[storage]\nimages_max = "500MiB"\n[images]\nregistries = ["docker.io", "lab.example:5000"]')
    config = load(Flags(), environ)
    assert (config.storage.images_max, config.registries) == (500 << 20, ("docker.io", "lab.example:5000"))
    write(environ, '[storage]\nimages_max = "1kB"\nimagesmax = 1\n[images]\nregistries = ["https://x/", "ok.example"]')
    said = problems(environ)
    assert "storage.images_max: '1kB' is not possible: at least 1048576" in said
    assert "imagesmax: unknown key; did you mean 'images_max'?" in said
    assert "'https://x/' is not a registry's host" in said
    write(environ, '[storage]\nimages_max = "lots"')
    assert "is not a size" in problems(environ)
