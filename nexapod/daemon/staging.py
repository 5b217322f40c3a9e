"""Before a task runs and after: its inputs here and laid out, its outputs into the blob store.

Fetches no more than the task needs: of a split file its own piece, of an image what the engine lacks. Does not run
anything. What the job itself gets wrong is an InputError; what goes wrong on this machine is the adapters' own error.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import structlog
import trio

from nexapod.blobs.errors import BlobError, disk_errors
from nexapod.blobs.files import sync_folder
from nexapod.blobs.store import BlobStore
from nexapod.daemon.images import Images
from nexapod.daemon.keeping import put_spared
from nexapod.daemon.providers import Providers
from nexapod.daemon.small_files import write_durably
from nexapod.executor.boot import boot_id
from nexapod.executor.contract import BadRun, Ended, TaskRun
from nexapod.executor.images.errors import BadImage
from nexapod.executor.outputs import collect
from nexapod.executor.removal import remove_tree
from nexapod.protocol.events import Run
from nexapod.protocol.limits import SPLIT_ENTRY_BYTES, TEXT_MAX
from nexapod.protocol.primitives import BlobRef, File, Part, PeerId, TaskId
from nexapod.protocol.types import JobSpec, Usage

log = structlog.get_logger()

VARIABLE_BYTES_MAX: Final = (128 << 10) - 1
"""Of one variable, on Linux (MAX_ARG_STRLEN, execve(2)). All parameters of a task are one, so that nothing that a job
can say comes near the bound of all together."""
PARAMS_BYTES_MAX: Final = 64 << 20
INDEX_ENTRY: Final = struct.Struct(">QI")
NOTE: Final = "task.json"
END: Final = "end.json"
FRESH: Final = "checkpoint.fresh"
"""Where another worker's checkpoint is copied to: what has the name `checkpoint` is whole."""
assert INDEX_ENTRY.size == SPLIT_ENTRY_BYTES


class InputError(Exception):
    """The job's own description does not hold together: its split index, parameters or image are not what they must
    be."""


@dataclass(frozen=True, slots=True)
class Note:
    """What a later process of this daemon must know of a run that it goes on with; lies beside its folders."""

    gpus: tuple[str, ...] = ()
    continued: bool = False
    """It went on from another worker's checkpoint, once."""


@dataclass(frozen=True, slots=True)
class End:
    """How a run ended, as a later process may have to tell it; lies beside its folders."""

    ended: Ended
    continued: bool


def label_of(task: TaskId) -> str:
    """A task's name in folders and containers."""
    return f"{task.job.hex()[:24]}-{task.index}"


class Staging:
    """Lays out the folders of tasks below `folder`, and brings there what they need."""

    def __init__(self, folder: Path, blobs: BlobStore, providers: Providers, images: Images) -> None:
        self.folder = folder
        self._blobs = blobs
        self._providers = providers
        self._images = images

    # --- before ----------------------------------------------------------------------------------------------------
    async def prepare(self, effect: Run, *, goes_on: bool) -> tuple[TaskRun, Note]:
        """Everything in place for the executor. `goes_on`: a former process began it, and its folders are as they were.
        Raises InputError, BlobError, ImageUnavailable, OSError."""
        spec = effect.spec
        run = await self._run_of(effect)
        if goes_on:
            found = await trio.to_thread.run_sync(read_note, run.input.parent)
            # When nobody knows, it does not count as independent.
            return run, found or Note(continued=bool(effect.checkpoint))
        for ref in _needed(spec):
            await self._fetch(Part.whole(ref), effect.sources)
        await trio.to_thread.run_sync(_lay_out, run)
        for file in spec.inputs:
            await self._place(file, run.input)
        if spec.split is not None:
            await self._place_piece(effect, run.input)
        return run, await self._take_up(effect, run)

    async def note(self, run: TaskRun, note: Note) -> None:
        """Keep it for a later process; on disk when this returns. Raises BlobError."""
        data = json.dumps({"gpus": note.gpus, "continued": note.continued}).encode()
        await trio.to_thread.run_sync(write_durably, run.input.parent / NOTE, data)

    async def _run_of(self, effect: Run) -> TaskRun:
        spec, folder = effect.spec, self._folder_of(effect.task)
        module = spec.run.module
        image = await self._image(effect)
        env = (*spec.run.env, *await self._environment(effect))
        _refuse_too_long(env)
        try:
            return TaskRun(
                label=label_of(effect.task),
                executor=spec.run.executor,
                module=self._blobs.path(module) if module is not None else None,
                image=image,
                command=spec.run.command,
                workdir=spec.run.workdir,
                env=env,
                input=folder / "input",
                output=folder / "output",
                checkpoint=folder / "checkpoint",
                limits=spec.limits,
                seed=effect.seed,
            )
        except BadRun as error:
            raise InputError(str(error)[:TEXT_MAX]) from None

    async def _fetch(self, part: Part, sources: Sequence[PeerId]) -> None:
        if not await self._blobs.touch(part):
            await self._providers.fetch(part, sources)

    async def _image(self, effect: Run) -> str | None:
        """The content id that the engine now holds, and keeps until `remove`; None for what needs none."""
        run = effect.spec.run
        if run.image is None:
            return None
        try:
            return await self._images.ensure(
                run, lambda ref: self._fetch(Part.whole(ref), effect.sources), label_of(effect.task)
            )
        except BadImage as error:
            raise InputError(str(error)) from None

    async def _environment(self, effect: Run) -> list[tuple[str, str]]:
        task = effect.task
        env = [
            ("NEXAPOD_JOB", task.job.hex()),
            ("NEXAPOD_TASK_INDEX", str(task.index)),
            ("NEXAPOD_TASK_COUNT", str(effect.spec.tasks)),
            ("NEXAPOD_SEED", effect.seed.hex()),
        ]
        ref = effect.spec.params
        if ref is not None:
            await self._fetch(Part.whole(ref), effect.sources)
            params = await self._params(ref, task.index)
            env.append(("NEXAPOD_PARAMS", json.dumps(params, sort_keys=True)))
            env += [(f"NEXAPOD_PARAM_{name.upper()}", value) for name, value in sorted(params.items())]
        return env

    async def _params(self, ref: BlobRef, index: int) -> dict[str, str]:
        if ref.size > PARAMS_BYTES_MAX:
            raise InputError(f"the table of parameters has {ref.size} bytes, at most {PARAMS_BYTES_MAX} are read")
        raw = await self._blobs.read(ref, 0, ref.size)
        try:
            table: Any = json.loads(raw)
            params = table[index]
            return {str(name): str(value) for name, value in params.items()}
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise InputError(f"the table of parameters has no entry for task {index}: {type(error).__name__}") from None

    async def _place(self, file: File, folder: Path) -> None:
        target = folder / file.path
        await trio.to_thread.run_sync(partial(target.parent.mkdir, parents=True, exist_ok=True))
        await self._blobs.export(file.blob, target)

    async def _place_piece(self, effect: Run, folder: Path) -> None:
        """This task's part of the split file, after its header. Nothing else of the file is fetched."""
        split = effect.spec.split
        assert split is not None
        at = effect.task.index * INDEX_ENTRY.size
        await self._fetch(Part.covering(split.index, at, INDEX_ENTRY.size), effect.sources)
        offset, length = INDEX_ENTRY.unpack(await self._blobs.read(split.index, at, INDEX_ENTRY.size))
        low, high = split.bounds[effect.task.shard], split.bounds[effect.task.shard + 1]
        if offset < low or offset + length > high:
            # Its stewards hold what lies within: nobody else need have the rest.
            raise InputError(f"the split index points outside of its shard's bounds for task {effect.task.index}")
        ranges = [(0, split.header)] if split.header else []
        ranges.append((offset, length))
        for start, size in ranges:
            await self._fetch(Part.covering(split.blob, start, size), effect.sources)
        target = folder / split.path
        await trio.to_thread.run_sync(partial(target.parent.mkdir, parents=True, exist_ok=True))
        await self._blobs.export_ranges(split.blob, ranges, target)

    async def _take_up(self, effect: Run, run: TaskRun) -> Note:
        """What is in the checkpoint as the task begins, and the note of it: what this machine has kept itself comes
        first, then what another worker had kept. What cannot be had costs time only: it begins anew.
        """
        found = await trio.to_thread.run_sync(read_note, run.input.parent)
        kept = await trio.to_thread.run_sync(lambda: any(run.checkpoint.iterdir()))
        if kept and not _known_whose(found, effect):
            log.warning("checkpoint_of_unknown_origin", task=str(effect.task))
            await trio.to_thread.run_sync(_empty, run.checkpoint)
            kept = False
        if kept:
            note = Note(continued=found is not None and found.continued)
            await self.note(run, note)
            return note
        # Before there is anything of another's: whatever ends this process, the next one knows.
        await self.note(run, Note(continued=bool(effect.checkpoint)))
        if not effect.checkpoint or await self._copy_checkpoint(effect, run):
            return Note(continued=bool(effect.checkpoint))
        await self.note(run, Note())
        return Note()

    async def _copy_checkpoint(self, effect: Run, run: TaskRun) -> bool:
        """Another worker's checkpoint, whole and on disk, or nothing of it: False."""
        fresh = run.input.parent / FRESH
        try:
            for file in effect.checkpoint:
                await self._fetch(Part.whole(file.blob), effect.sources)
            for file in effect.checkpoint:
                target = fresh / file.path
                await trio.to_thread.run_sync(partial(target.parent.mkdir, parents=True, exist_ok=True))
                await self._blobs.export(file.blob, target, mode=0o644)
            await trio.to_thread.run_sync(_put_in_place, fresh, run.checkpoint)
        except BlobError as error:
            log.warning("checkpoint_not_taken_up", task=str(effect.task), error=str(error))
            await trio.to_thread.run_sync(remove_tree, fresh)
            return False
        return True

    # --- after -----------------------------------------------------------------------------------------------------
    async def keep_end(self, effect: Run, end: End) -> None:
        """Its sandbox is gone, and the core does not know yet: a later process need not run it again."""
        try:
            await trio.to_thread.run_sync(write_end, self._folder_of(effect.task), end)
        except (BlobError, OSError) as error:
            # It would be lost with this process only: no reason to lose it now.
            log.warning("task_end_not_kept", task=str(effect.task), error=str(error))

    async def end_of(self, effect: Run) -> End | None:
        """How the task ended in a former process, of which its output folder is still there."""
        end = await trio.to_thread.run_sync(read_end, self._folder_of(effect.task))
        # Else it rests on a checkpoint of which the core knows nothing: it cannot be told as what it is.
        return end if end is not None and (effect.checkpoint or not end.continued) else None

    async def gather(self, effect: Run) -> tuple[File, ...]:
        """The output files, as blobs, by path. Raises OutputRefused, BlobError."""
        output = self._folder_of(effect.task) / "output"
        found = await trio.to_thread.run_sync(partial(collect, output, bytes_max=effect.spec.limits.output))
        return tuple([await put_spared(self._blobs, entry) for entry in found])

    def _folder_of(self, task: TaskId) -> Path:
        return self.folder / label_of(task)

    async def remove(self, task: TaskId) -> None:
        """Nothing of the task is needed here any more."""
        self._images.release(label_of(task))
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(remove_tree, self._folder_of(task))

    def clean(self, keep: frozenset[TaskId]) -> None:
        """At start: remove what tasks of a former process left, but for those that go on. Blocks."""
        names = {label_of(task) for task in keep}
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for entry in sorted(self.folder.iterdir()):
            if entry.name not in names:
                remove_tree(entry)


# --- what follows blocks, and runs in worker threads ---------------------------------------------------------------
def read_note(folder: Path) -> Note | None:
    """What was noted of a run; None when it was not, or when it cannot be read."""
    path = folder / NOTE
    try:
        raw = json.loads(path.read_bytes())
        return Note(tuple(str(gpu) for gpu in raw["gpus"]), bool(raw["continued"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("task_note_unreadable", path=str(path), error=str(error))
        return None


def write_end(folder: Path, end: End) -> None:
    """On disk when this returns. Raises BlobError, OSError."""
    write_durably(folder / END, json.dumps({**asdict(end), "boot": boot_id()}).encode())


def read_end(folder: Path) -> End | None:
    """None when it has not ended, or when that cannot be read: it is run again."""
    path = folder / END
    try:
        raw = json.loads(path.read_bytes())
        if not raw["boot"] or raw["boot"] != boot_id():
            # What the task wrote may not have come to the disk before the machine went down.
            log.warning("task_end_of_another_boot", path=str(path))
            return None
        ended = raw["ended"]
        return End(Ended(**{**ended, "usage": Usage(**ended["usage"])}), bool(raw["continued"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("task_end_unreadable", path=str(path), error=str(error))
        return None


def _known_whose(note: Note | None, effect: Run) -> bool:
    """Whether what is in a checkpoint is known to be this machine's own, or to rest on what `Run` names: only then
    can its result be told as what it is.
    """
    if note is None:
        return not effect.checkpoint
    return bool(effect.checkpoint) or not note.continued


def _refuse_too_long(env: Sequence[tuple[str, str]]) -> None:
    """What no kernel hands to a program is refused here, in every sandbox alike. Raises InputError."""
    for name, value in env:
        size = len(f"{name}={value}".encode("utf-8", "surrogatepass"))
        if size > VARIABLE_BYTES_MAX:
            raise InputError(
                f"the variable {name} has {size} bytes: at most {VARIABLE_BYTES_MAX} can be handed to a program"
            )


def _needed(spec: JobSpec) -> list[BlobRef]:
    """What every task of the job needs whole, besides its image and its parameters."""
    refs = [file.blob for file in spec.inputs]
    return [*refs, spec.run.module] if spec.run.module is not None else refs


def _lay_out(run: TaskRun) -> None:
    """Fresh input and output folders; a checkpoint that is there stays, but for one that was not copied to its end.
    Only their parent is closed to others.
    """
    run.input.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    for left in (FRESH, END):
        remove_tree(run.input.parent / left)
    for fresh in (run.input, run.output):
        remove_tree(fresh)
        fresh.mkdir(parents=True)
    run.checkpoint.mkdir(exist_ok=True)


def _put_in_place(fresh: Path, checkpoint: Path) -> None:
    """Replace an empty checkpoint by this one, in one step, once all of it is on disk. Raises BlobError."""
    with disk_errors(checkpoint):
        for path in (*fresh.rglob("*"), fresh):
            _sync(path)
        fresh.replace(checkpoint)
        sync_folder(checkpoint.parent)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _empty(folder: Path) -> None:
    """Raises OSError when something cannot be removed."""
    remove_tree(folder)
    folder.mkdir()
