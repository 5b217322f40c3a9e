"""The commands and their options; each hands over to the module that does it. Every command loads it: keep it light."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from typer.core import TyperCommand

from nexapod.cli.blob_commands import blob_app
from nexapod.cli.client import Client
from nexapod.cli.errors import FAILED, INTERRUPTED, CliError, SystemTrouble
from nexapod.cli.safe import safe
from nexapod.version import __version__

app = typer.Typer(
    name="nexapod",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="A peer-to-peer mesh for scientific computing, with no server.",
    epilog="Exit status: 0 done, 1 failed, 2 wrong usage, 3 no daemon answers, 4 not found, 5 refused.",
)

_HOME_HELP: Final = "The daemon's home folder. (default: $NEXAPOD_HOME, else $XDG_DATA_HOME/nexapod)"
Home = Annotated[Path | None, typer.Option("--home", help=_HOME_HELP, show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Job = Annotated[str, typer.Argument(metavar="JOB", help="The job's id, or the first digits of it.", show_default=False)]
_HANDED_ON: Final = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


class _HandedOn(TyperCommand):
    """A command that lives in a module of its own, with its own options: it is loaded to run or to complete them."""

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        command = typer.main.get_command(_load(str(self.name)))
        return command.shell_complete(command.make_context(self.name, [], resilient_parsing=True), incomplete)


def _load(name: str) -> typer.Typer:
    inner = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    inner.command()(_function(name))
    return inner


def _function(name: str) -> Callable[..., Any]:
    if name == "doctor":
        from nexapod.cli.doctor import doctor as of_doctor

        return of_doctor
    if name == "demo":
        from nexapod.cli.demo import demo as of_demo

        return of_demo
    from nexapod.cli.sim_command import sim as of_sim

    return of_sim


app.add_typer(blob_app, name="blob")


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"nexapod {__version__}\n")
        raise typer.Exit


@app.callback()
def _all(
    home: Home = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    if home is not None:
        # What a command starts (the daemon, the demo's own commands) looks there too.
        os.environ["NEXAPOD_HOME"] = str(home.absolute())


def _home(home: Path | None) -> Path:
    from nexapod.config.settings import default_home

    return home.absolute() if home is not None else default_home(os.environ)


def _client(home: Path | None) -> Client:
    from nexapod.store.home import Home as Layout

    return Client(Layout(_home(home)).api_socket)


@app.command()
def init(home: Home = None, as_json: Json = False) -> None:
    """Make a home folder, this peer's identity in it, and a configuration file to edit."""
    from nexapod.cli import starting
    from nexapod.config import Flags

    starting.init(Flags(home=home), as_json=as_json)


@app.command()
def start(
    home: Home = None,
    listen: Annotated[
        list[str] | None, typer.Option(help="A multiaddr to listen on, e.g. /ip4/0.0.0.0/tcp/4747. Repeatable.")
    ] = None,
    network: Annotated[str | None, typer.Option(help="The network to join. (default: main)")] = None,
    bootstrap: Annotated[
        list[str] | None, typer.Option(help="A peer to dial first: a multiaddr that ends in /p2p/ID. Repeatable.")
    ] = None,
    no_work: Annotated[bool, typer.Option("--no-work", help="Run no tasks, only help to keep the mesh.")] = False,
    slots: Annotated[int | None, typer.Option(help="Tasks to run at once. (default: one a core)")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
    log_format: Annotated[str | None, typer.Option(help="auto, console or json.")] = None,
    api_tcp: Annotated[
        str | None, typer.Option(help="Serve the API on this loopback address too, e.g. 127.0.0.1:8747.")
    ] = None,
) -> None:
    """Run the daemon in the foreground. SIGTERM or `nexapod stop` ends it in order."""
    from nexapod.cli import starting
    from nexapod.config import Flags

    flags = Flags(
        home=home,
        network=network,
        listen=tuple(listen or ()),
        bootstrap=tuple(bootstrap or ()),
        work=False if no_work else None,
        slots=slots,
        log_level=log_level,
        log_format=log_format,
        api_tcp=api_tcp,
    )
    raise typer.Exit(starting.start(flags))


@app.command()
def stop(
    now: Annotated[bool, typer.Option("--now", help="Do not wait for running tasks.")] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Stop the daemon; its running tasks may end first."""
    from nexapod.cli import queries

    queries.stop(_client(home), now=now, as_json=as_json)


@app.command()
def status(home: Home = None, as_json: Json = False) -> None:
    """Who and where this daemon is, and what it does."""
    from nexapod.cli import queries

    queries.show_status(_client(home), as_json=as_json)


@app.command()
def peers(home: Home = None, as_json: Json = False) -> None:
    """The peers that this daemon knows."""
    from nexapod.cli import queries

    queries.show_peers(_client(home), as_json=as_json)


@app.command()
def profile(home: Home = None, as_json: Json = False) -> None:
    """What this machine tells others that it is and offers."""
    from nexapod.cli import queries

    queries.show_profile(_client(home), as_json=as_json)


@app.command()
def submit(
    job_file: Annotated[Path, typer.Argument(metavar="JOB.toml", help="The job file.", show_default=False)],
    watch: Annotated[bool, typer.Option("--watch", help="Follow the job to its end.")] = False,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Do not wait (up to 30 s) until other peers hold the job.")
    ] = False,
    friend: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="A peer that must be one of its stewards. Repeatable.")
    ] = None,
    accept_unknown: Annotated[
        bool, typer.Option("--accept-unknown", help="Submit it even if all stewards are known through one peer.")
    ] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Submit a job, and say what its result rests on and when this machine may go offline."""
    from nexapod.cli.submitting import Choices
    from nexapod.cli.submitting import submit as run

    choices = Choices(tuple(friend or ()), accept_unknown)
    raise typer.Exit(run(_client(home), job_file, choices, wait=not no_wait, and_watch=watch, as_json=as_json))


@app.command()
def jobs(home: Home = None, as_json: Json = False) -> None:
    """The jobs that this daemon knows."""
    from nexapod.cli import job_commands

    job_commands.show_jobs(_client(home), as_json=as_json)


@app.command()
def job(job: Job, home: Home = None, as_json: Json = False) -> None:
    """One job: what it rests on, who keeps it, what fails first, and each of its tasks."""
    from nexapod.cli import job_commands

    job_commands.show_job(_client(home), _word(job), as_json=as_json)


@app.command()
def watch(job: Job, home: Home = None, as_json: Json = False) -> None:
    """Follow a job to its end, live. Exit status 0 only when it is settled and every task accepted."""
    from nexapod.cli.watching import watch as run

    raise typer.Exit(run(_client(home), _word(job), as_json=as_json))


@app.command()
def results(
    job: Job,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Where to write them.", show_default=False)
    ],
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Fetch the accepted results and the certificate into a folder. Run it again to continue."""
    from nexapod.cli.collecting import collect

    raise typer.Exit(collect(_client(home), _word(job), output, as_json=as_json))


@app.command()
def cancel(job: Job, home: Home = None, as_json: Json = False) -> None:
    """End a job that this daemon submitted."""
    from nexapod.cli import job_commands

    job_commands.cancel(_client(home), _word(job), as_json=as_json)


@app.command()
def ratify(job: Job, home: Home = None, as_json: Json = False) -> None:
    """Accept what caretakers decided of your job while no quorum of its stewards was there."""
    from nexapod.cli import job_commands

    job_commands.ratify(_client(home), _word(job), as_json=as_json)


@app.command()
def logs(
    job: Job,
    task: Annotated[int, typer.Argument(metavar="TASK", min=0, help="The task's index.", show_default=False)],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Show more as it is printed, to the end.")] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """What each worker of a task printed, its head and its tail, also while it runs; and how it ended."""
    from nexapod.cli import task_logs

    show = task_logs.follow if follow else task_logs.show
    show(_client(home), _word(job), task, as_json=as_json)


@app.command()
def tasks(home: Home = None, as_json: Json = False) -> None:
    """The tasks on this machine, whoever submitted them."""
    from nexapod.cli import work_commands

    work_commands.show_tasks(_client(home), as_json=as_json)


@app.command()
def pause(
    duration: Annotated[
        str | None, typer.Argument(metavar="FOR", help="E.g. 2h; without it, until resume.", show_default=False)
    ] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Freeze the tasks on this machine at once, and take no new ones."""
    from nexapod.cli import work_commands

    work_commands.pause(_client(home), duration, as_json=as_json)


@app.command()
def resume(home: Home = None, as_json: Json = False) -> None:
    """Let the tasks on this machine go on."""
    from nexapod.cli import work_commands

    work_commands.resume(_client(home), as_json=as_json)


@app.command()
def why(
    job: Annotated[
        str | None, typer.Argument(metavar="JOB", help="A job; without it, this daemon.", show_default=False)
    ] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """In words: why a job does not move or what is wrong with it, or why this daemon does not work."""
    from nexapod.cli import queries

    queries.show_why(_client(home), None if job is None else _word(job), as_json=as_json)


@app.command()
def verify(
    certificate: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="A job's .cert file, or the folder that it lies in with the results.",
            show_default=False,
        ),
    ],
    results: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Check the result files in this folder too.", show_default=False)
    ] = None,
    submitter: Annotated[
        str | None, typer.Option(metavar="ID", help="The peer whose word it must be.", show_default=False)
    ] = None,
    known: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="A peer that you know, beside this home's own. Repeatable.")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse what rests on nobody that you named or know.")
    ] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Check a job's certificate and results, offline; say whose word it is."""
    from nexapod.cli.verifying import verify_file, whom

    pins = whom(_home(home), submitter, known or (), strict=strict)
    raise typer.Exit(verify_file(certificate, results, pins, as_json=as_json))


image = typer.Typer(name="image", no_args_is_help=True, help="Container images that this peer gives to its workers.")
app.add_typer(image)
Image = Annotated[
    str, typer.Argument(metavar="IMAGE", help="A content id, its first digits, or a name.", show_default=False)
]


@image.command("add")
def image_add(
    reference: Annotated[
        str,
        typer.Argument(
            metavar="NAME|ARCHIVE", help="An image of the local engine, or a .tar of one.", show_default=False
        ),
    ],
    platform: Annotated[str, typer.Option(help="Of an archive's images, e.g. linux/arm64. (default: this one)")] = "",
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Put an image's configuration and layers into the blob store, and print its content id."""
    from nexapod.cli import image_commands

    image_commands.add(_client(home), reference, platform, as_json=as_json)


@image.command("list")
def image_list(home: Home = None, as_json: Json = False) -> None:
    """The images that were added."""
    from nexapod.cli import image_commands

    image_commands.show_all(_client(home), as_json=as_json)


@image.command("show")
def image_show(name: Image, home: Home = None, as_json: Json = False) -> None:
    """One of them: its names and blobs."""
    from nexapod.cli import image_commands

    image_commands.show(_client(home), name, as_json=as_json)


@image.command("remove")
def image_remove(name: Image, home: Home = None, as_json: Json = False) -> None:
    """Forget an added image."""
    from nexapod.cli import image_commands

    image_commands.remove(_client(home), name, as_json=as_json)


@app.command(cls=_HandedOn, context_settings=_HANDED_ON, add_help_option=False)
def doctor(context: typer.Context) -> None:
    """Try what this machine promises to volunteers, and look at what a daemon needs. Exit 1 when a promise fails."""
    _hand_on(context)


@app.command(cls=_HandedOn, context_settings=_HANDED_ON, add_help_option=False)
def demo(context: typer.Context) -> None:
    """A mesh of daemons on this machine does a real job, loses a peer, and proves the result."""
    _hand_on(context)


@app.command(cls=_HandedOn, context_settings=_HANDED_ON, add_help_option=False)
def sim(context: typer.Context) -> None:
    """Run the mesh in the deterministic simulator."""
    _hand_on(context)


def _hand_on(context: typer.Context) -> None:
    """Run a command that lives in a module of its own."""
    _load(str(context.info_name))(args=context.args, prog_name=f"nexapod {context.info_name}")


def _word(job: str) -> str:
    """A job's name as part of a URL: what is not hexadecimal is refused here, before it is sent."""
    from nexapod.cli.errors import Refused

    if not job or len(job) > 64 or not set(job.lower()) <= set("0123456789abcdef"):
        remedy = "`nexapod jobs` lists the jobs and their ids."
        raise Refused(f"{safe(job)!r} is not the id of a job: it has hexadecimal digits only, at most 64", remedy)
    return job.lower()


def main() -> None:
    """Run the command line and exit with its status."""
    _open_closed_streams()
    try:
        app()
    except CliError as error:
        _explain(error)
        sys.exit(error.status)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # Whoever read us has gone (`nexapod jobs | head`).
        _drop_output()
        sys.exit(FAILED)
    except OSError as error:
        # What no command expects: a full disk below its output, for one.
        _drop_output()
        place = f"{safe(os.fsdecode(error.filename))}: " if isinstance(error.filename, (str, bytes)) else ""
        _explain(SystemTrouble(f"{place}{error.strerror or safe(error)}"))
        sys.exit(FAILED)


def _open_closed_streams() -> None:
    """Whoever closed an output (`nexapod status >&-`) wants none of it: nothing else may get its number, and writing to
    it is no error.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - open to the end


def _drop_output() -> None:
    """What stays in the buffer has nowhere to go: Python would write it at its end, and fail once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _explain(error: CliError) -> None:
    facts = "\n".join(safe(line) for line in error.facts.split("\n"))
    sys.stderr.write(f"nexapod: {facts}\n")
    if error.remedy:
        remedy = "\n".join(safe(line) for line in error.remedy.split("\n"))
        sys.stderr.write(f"{remedy}\n")
