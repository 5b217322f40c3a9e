"""What the API needs of a daemon: one Protocol, and the errors that may come out of it.

Views are plain JSON values whose shape nexapod/api/models.py states; the contract tests hold every backend to them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, TypeAlias

from nexapod.protocol.primitives import BlobRef, JobId, PeerId
from nexapod.protocol.types import JobSpec

Json: TypeAlias = dict[str, Any]
EventName: TypeAlias = Literal[
    "placed",
    "task_changed",
    "failing",
    "accepted",
    "failed",
    "stored",
    "ratification_needed",
    "refused",
    "fault_proven",
    "lagged",
    "closed",
]
JobEvent: TypeAlias = tuple[EventName, Json]
"""(name, facts). Those about a task hold `index`; `closed` ends a stream."""


class ApiError(Exception):
    """A request that cannot be answered as asked. The message is for its user; `remedy` says what to do next."""

    status: ClassVar[int] = 500
    name: ClassVar[str] = "internal"
    title: ClassVar[str] = "The daemon failed"

    def __init__(self, detail: str, remedy: str = "") -> None:
        super().__init__(detail)
        self.detail = detail
        self.remedy = remedy


class NotFound(ApiError):
    """Nothing of that name is here."""

    status = 404
    name = "not-found"
    title = "Not found"


class NotReady(ApiError):
    """It exists, but its time has not come: the job is not complete."""

    status = 409
    name = "not-ready"
    title = "Not ready yet"


class Over(ApiError):
    """It has ended already: there is nothing left to do to it."""

    status = 409
    name = "over"
    title = "Already over"


class Invalid(ApiError):
    """What was sent cannot be accepted."""

    status = 422
    name = "invalid"
    title = "Invalid request"


class Forbidden(ApiError):
    """It may not be done from here: another peer's job, a wrong token."""

    status = 403
    name = "forbidden"
    title = "Not allowed"


class TooLarge(ApiError):
    """More bytes than allowed."""

    status = 413
    name = "too-large"
    title = "Too large"


class Busy(ApiError):
    """No room now: too many watchers, a full disk, a daemon that is stopping."""

    status = 503
    name = "busy"
    title = "Not possible at the moment"


@dataclass(frozen=True, slots=True)
class Metric:
    """One Prometheus metric. `name` without the prefix nexapod_; a counter's ends in _total."""

    name: str
    kind: Literal["counter", "gauge"]
    help: str
    samples: Sequence[tuple[dict[str, str], int | float]]
    """(labels, value); a metric without labels has one sample with none."""


class Backend(Protocol):
    """A running daemon, as the API sees it. Every method may raise ApiError, and none may block the event loop."""

    @property
    def network(self) -> str:
        """The network that jobs are submitted to."""

    async def status(self) -> Json:
        """models.Status"""

    async def peers(self) -> list[Json]:
        """models.Peer of every known or connected peer but this one."""

    async def profile(self) -> Json:
        """models.ProfileView of this machine."""

    async def put_blob(self, stream: AsyncIterator[bytes], size: int) -> BlobRef:
        """Store `size` bytes, durably. The daemon keeps them for at least an hour when no job names them."""

    async def has_blob(self, ref: BlobRef) -> bool:
        """Whether the whole blob is here."""

    async def read_blob(self, ref: BlobRef, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`, fewer only at the end. Raises NotFound."""

    async def list_blobs(self, first: int, count: int) -> list[Json]:
        """models.BlobStat of those that are here, whole or in part, the last used first."""

    async def blob_stat(self, ref: BlobRef) -> Json:
        """models.BlobStat. Raises NotFound."""

    async def pin_blob(self, ref: BlobRef) -> Json:
        """Keep a blob that is here whole, whatever room is wanted; models.BlobStat. Raises NotFound, Busy."""

    async def unpin_blob(self, ref: BlobRef) -> Json:
        """Let it go when room is wanted, whether it was pinned or not: models.Unpinned."""

    async def verify_blob(self, ref: BlobRef) -> Json:
        """Read it again, and set it aside if it is damaged: models.BlobCheck. Raises NotFound."""

    async def fetch_blob(self, ref: BlobRef, wait_s: float) -> Json:
        """Look for a blob in the mesh, for so long at most: models.BlobFetch. What has come stays. Raises NotFound when
        nobody gives it, Busy when there is no room.
        """

    async def submit(self, spec: JobSpec, friends: Sequence[PeerId], accept_unknown: bool) -> Json:
        """Choose a panel for a job whose blobs are all here, with `friends` in it; sign, save and place it:
        models.Submitted. `accept_unknown`: even if all candidates are known through one peer. Raises Invalid.
        """

    async def images(self) -> list[Json]:
        """image_routes.ImageView of each image that was added, the newest first."""

    async def image(self, name: str) -> Json:
        """image_routes.ImageView of an added image, by content id, first digits or name. Raises NotFound."""

    async def add_image(self, name: str, platform: str) -> Json:
        """image_routes.ImageAdded: add what the local engine calls so. Raises NotFound, Invalid, Busy."""

    async def add_image_archive(self, stream: AsyncIterator[bytes], size: int, platform: str) -> Json:
        """image_routes.ImageAdded: add the image in an archive of `size` bytes. Raises Invalid, Busy."""

    async def remove_image(self, name: str) -> Json:
        """image_routes.ImageView of what has been forgotten. Raises NotFound."""

    def job_ids(self) -> Collection[JobId]:
        """Every job that this daemon knows of."""

    async def jobs(self) -> list[Json]:
        """models.JobRow of each of them, the newest first."""

    async def job(self, job: JobId, tasks: range) -> Json:
        """models.JobView, whose task_list holds those of `tasks` (a step of 1) that the job has. Raises NotFound."""

    async def spec(self, job: JobId) -> JobSpec:
        """The job as it was signed. Raises NotFound."""

    def events(self, job: JobId) -> AbstractAsyncContextManager[AsyncIterator[JobEvent]]:
        """What happens to a job from now on. A reader that is too slow gets `lagged`. Raises NotFound, Busy."""

    async def results(self, job: JobId, tasks: range) -> list[Json]:
        """models.TaskResult of each decided task among `tasks`. Raises NotFound."""

    async def certificate(self, job: JobId) -> AsyncIterator[bytes]:
        """In pieces. Raises NotFound, and NotReady until the job is settled, before it returns."""

    async def cancel(self, job: JobId) -> None:
        """End a job of this daemon's own. Raises NotFound, Forbidden, and Over when it is settled."""

    async def ratify(self, job: JobId) -> None:
        """Accept what caretakers decided of a job of this daemon's own. Raises NotFound, Forbidden, Over."""

    async def task_log(self, job: JobId, task: int) -> list[Json]:
        """models.ReplicaLog of each result shown so far, and of those that run and answer in time. Raises NotFound."""

    async def why_job(self, job: JobId) -> Json:
        """Why its tasks are (not) placed: at least `sentences`. Raises NotFound."""

    async def why(self) -> Json:
        """Why this daemon does (not) work: at least `sentences`."""

    async def tasks(self) -> list[Json]:
        """task_routes.LocalTask of each task on this machine."""

    async def pause(self, for_s: float | None) -> None:
        """Freeze them and take no new ones, for so many seconds or until `resume`; returns once they stand still."""

    async def resume(self) -> None:
        """Let them go on. Harmless when nothing is paused."""

    async def stop(self, *, drain: bool) -> None:
        """Begin to stop, and return: with `drain`, running tasks may end first."""

    async def metrics(self) -> Sequence[Metric]:
        """What /metrics shows."""
