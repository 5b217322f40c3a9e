"""The routes of the local HTTP API. Each checks its request, asks the backend and answers; none decides anything."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from typing import Annotated, Any, Final

import structlog
import trio
from fastapi import FastAPI, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp

from nexapod.api import metrics, models
from nexapod.api.answers import EventAnswer, PiecesAnswer, Reply, problem, problem_of
from nexapod.api.backend import ApiError, Backend, Invalid, NotFound
from nexapod.api.blob_routes import BLOB_PATH, about_blobs
from nexapod.api.guard import BodyLimit
from nexapod.api.image_routes import ARCHIVE_PATH, about_images
from nexapod.api.task_routes import about_work
from nexapod.protocol import limits
from nexapod.protocol.errors import LocalError, PeerError
from nexapod.protocol.primitives import BlobRef, JobId, PeerId
from nexapod.protocol.types import JobSpec, Split
from nexapod.protocol.wire import statements
from nexapod.version import __version__

log = structlog.get_logger()

TASKS_PER_PAGE: Final = 1_000
TASKS_PER_PAGE_MAX: Final = 10_000
PARAMS_BYTES_MAX: Final = 64 << 20
PREFIX_MATCHES_SHOWN: Final = 5

JobName = Annotated[str, Path(alias="job", description="a job id, or a prefix of one that no other job shares")]
First = Annotated[int, Query(ge=0, le=limits.TASKS_MAX, description="the first task wanted")]
Count = Annotated[int, Query(ge=0, le=TASKS_PER_PAGE_MAX, description="how many tasks are wanted")]
_PROBLEMS: Final[dict[int | str, dict[str, Any]]] = {
    "4XX": {"model": models.Problem, "content": {"application/problem+json": {}}}
}


def create_app(backend: Backend) -> ASGIApp:
    """The ASGI application over a backend, with its bounds, without any check of who asks (see guard.py)."""
    app = FastAPI(
        title="NEXAPod",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        responses=_PROBLEMS,
        openapi_url="/openapi.json",
    )
    _handle_errors(app)
    _about_the_daemon(app, backend)
    about_blobs(app, backend)
    _about_jobs(app, backend)
    about_work(app, backend)
    about_images(app, backend)
    return BodyLimit(app, frozenset((BLOB_PATH, ARCHIVE_PATH)))


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def _known(_: Request, error: ApiError) -> Response:
        return problem_of(error)

    @app.exception_handler(LocalError)
    async def _refused(_: Request, error: LocalError) -> Response:
        return problem_of(Invalid(str(error)))

    @app.exception_handler(RequestValidationError)
    async def _malformed(_: Request, error: RequestValidationError) -> Response:
        places = [f"{'.'.join(str(p) for p in e['loc'][1:]) or 'body'}: {e['msg']}" for e in error.errors()[:20]]
        return problem_of(Invalid("; ".join(places), "see /openapi.json for what is allowed"))

    @app.exception_handler(HTTPException)
    async def _http(_: Request, error: HTTPException) -> Response:
        return problem(error.status_code, "http", str(error.detail), str(error.detail), "see /openapi.json")

    @app.exception_handler(ClientDisconnect)
    async def _gone(request: Request, _: ClientDisconnect) -> Response:
        log.info("client_gone", path=request.url.path)
        return Response(status_code=400)

    @app.exception_handler(Exception)
    async def _bug(request: Request, error: Exception) -> Response:
        # starlette raises it again after this answer; hypercorn's logger (serve.py) writes the traceback.
        return problem(500, "internal", "The daemon failed", type(error).__name__, "see the daemon's log")


def _about_the_daemon(app: FastAPI, backend: Backend) -> None:
    @app.get("/v1/status", response_model=None, responses={200: {"model": models.Status}})
    async def status() -> Response:
        """Who and where this daemon is, and what it does."""
        return Reply(await backend.status())

    @app.get("/v1/peers", response_model=None, responses={200: {"model": list[models.Peer]}})
    async def peers() -> Response:
        """Every peer that this daemon knows."""
        return Reply(await backend.peers())

    @app.get("/v1/profile", response_model=None, responses={200: {"model": models.ProfileView}})
    async def profile() -> Response:
        """What this machine tells others that it is and offers."""
        return Reply(await backend.profile())

    @app.get("/v1/why", response_model=None, responses={200: {"model": models.Why}})
    async def why() -> Response:
        """Why this daemon does, or does not, work."""
        return Reply(await backend.why())

    @app.post("/v1/stop", response_model=None, status_code=202)
    async def stop(body: models.StopBody) -> Response:
        """Stop the daemon; with `drain`, running tasks may end first."""
        await backend.stop(drain=body.drain)
        return Reply({}, 202)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def prometheus() -> Response:
        """Counters and gauges in Prometheus' text format."""
        return Response(metrics.render(await backend.metrics()), media_type=metrics.CONTENT_TYPE)


def _about_jobs(app: FastAPI, backend: Backend) -> None:
    @app.post("/v1/jobs", response_model=None, status_code=201, responses={201: {"model": models.Submitted}})
    async def submit(body: models.JobBody) -> Response:
        """Submit a job whose blobs have been uploaded, and say what its result will rest on."""
        spec = body.spec(backend.network)
        await _check_job(backend, spec)
        friends = [PeerId(friend) for friend in body.friends]
        return Reply(await backend.submit(spec, friends, body.accept_unknown), 201)

    @app.get("/v1/jobs", response_model=None, responses={200: {"model": list[models.JobRow]}})
    async def jobs() -> Response:
        """Every job that this daemon knows of."""
        return Reply(await backend.jobs())

    @app.get("/v1/jobs/{job}", response_model=None, responses={200: {"model": models.JobView}})
    async def job(name: JobName, first: First = 0, count: Count = TASKS_PER_PAGE) -> Response:
        """A job, who keeps it, and a page of its tasks."""
        return Reply(await backend.job(_resolve(backend, name), range(first, first + count)))

    @app.get("/v1/jobs/{job}/spec", response_model=None)
    async def spec(name: JobName) -> Response:
        """The job as it was submitted and signed."""
        return Reply(models.spec_view(await backend.spec(_resolve(backend, name))))

    @app.get("/v1/jobs/{job}/events", response_model=None)
    async def events(name: JobName) -> Response:
        """What happens to it from now on, as server-sent events: `snapshot` first, `closed` last (docs/api.md)."""
        return EventAnswer(backend, _resolve(backend, name))

    @app.get("/v1/jobs/{job}/results", response_model=None, responses={200: {"model": models.Results}})
    async def results(name: JobName, first: First = 0, count: Count = TASKS_PER_PAGE) -> Response:
        """The decided tasks of a page, with their files."""
        return Reply({"tasks": await backend.results(_resolve(backend, name), range(first, first + count))})

    @app.get("/v1/jobs/{job}/certificate", response_model=None)
    async def certificate(name: JobName) -> Response:
        """The proof of a settled job's results, to check with `nexapod verify`."""
        return PiecesAnswer(await backend.certificate(_resolve(backend, name)))

    @app.post("/v1/jobs/{job}/cancel", response_model=None)
    async def cancel(name: JobName) -> Response:
        """End a job of this daemon's own."""
        await backend.cancel(_resolve(backend, name))
        return Reply({})

    @app.post("/v1/jobs/{job}/ratify", response_model=None)
    async def ratify(name: JobName) -> Response:
        """Accept what caretakers decided of a job of this daemon's own."""
        await backend.ratify(_resolve(backend, name))
        return Reply({})

    @app.get(
        "/v1/jobs/{job}/tasks/{task}/log", response_model=None, responses={200: {"model": list[models.ReplicaLog]}}
    )
    async def task_log(name: JobName, task: Annotated[int, Path(ge=0, le=limits.TASKS_MAX)]) -> Response:
        """The head and the tail of what each worker of a task printed, and how its result ended."""
        return Reply(await backend.task_log(_resolve(backend, name), task))

    @app.get("/v1/jobs/{job}/why", response_model=None, responses={200: {"model": models.Why}})
    async def why_job(name: JobName) -> Response:
        """Why a job does, or does not, move: what is wrong first."""
        return Reply(await backend.why_job(_resolve(backend, name)))


# --- checks of what is asked ---------------------------------------------------------------------------------------
def _resolve(backend: Backend, name: str) -> JobId:
    """A job by its id or a prefix of it that no other shares. Raises NotFound, Invalid."""
    wanted = name.lower()
    if not wanted or len(wanted) > 64 or not set(wanted) <= set("0123456789abcdef"):
        raise Invalid("a job is named by the hexadecimal digits that its id begins with", "`nexapod jobs` lists them")
    found = [job for job in backend.job_ids() if job.hex().startswith(wanted)]
    if not found:
        raise NotFound(f"no job begins with {wanted}", "`nexapod jobs` lists those that this daemon knows")
    if len(found) > 1:
        some = ", ".join(sorted(job.hex()[:16] for job in found)[:PREFIX_MATCHES_SHOWN])
        raise Invalid(f"{len(found)} jobs begin with {wanted}: {some}", "give more digits")
    return found[0]


async def _check_job(backend: Backend, spec: JobSpec) -> None:
    """What other peers would refuse is refused here, with a reason. Raises Invalid."""
    try:
        # The daemon chooses the panel afterwards; a job without one is valid nowhere.
        statements.check_body(replace(spec, panel=(b"to be chosen",)))
    except PeerError as error:
        raise Invalid(error.detail or error.rule, "correct the job") from None
    for ref in spec.blobs:
        if not await backend.has_blob(ref):
            raise Invalid(f"the blob {ref} has not been uploaded", f"POST it to {BLOB_PATH} first")
    if spec.split and spec.params:
        raise Invalid("a job is either split or swept, not both")
    if spec.split:
        await _check_index(backend, spec.split)
    if spec.params:
        await _check_params(backend, spec.params, spec.tasks)


async def _check_index(backend: Backend, split: Split) -> None:
    """Stewards hold, and workers fetch, what `bounds` says: each piece must lie in there."""
    data = await _read_whole(backend, split.index)
    wrong = await trio.to_thread.run_sync(_first_outside, data, split.bounds)
    if wrong is not None:
        raise Invalid(f"piece {wrong} of the split file does not lie within the bounds of its shard")


def _first_outside(index: bytes, bounds: tuple[int, ...]) -> int | None:
    for task, (offset, length) in enumerate(struct.iter_unpack(">QI", index)):
        shard = task // limits.SHARD_TASKS
        if offset < bounds[shard] or offset + length > bounds[shard + 1]:
            return task
    return None


async def _read_whole(backend: Backend, ref: BlobRef) -> bytes:
    data = bytearray()
    while len(data) < ref.size:
        piece = await backend.read_blob(ref, len(data), min(limits.CHUNK_BYTES, ref.size - len(data)))
        if not piece:
            raise NotFound("a blob of the job ends early")
        data += piece
    return bytes(data)


async def _check_params(backend: Backend, ref: BlobRef, tasks: int) -> None:
    if ref.size > PARAMS_BYTES_MAX:
        raise Invalid(f"the parameters are larger than {PARAMS_BYTES_MAX} bytes")
    data = await _read_whole(backend, ref)
    if not await trio.to_thread.run_sync(_is_params, data, tasks):
        raise Invalid("the parameters are not a JSON list of one table of texts a task")


def _is_params(data: bytes, tasks: int) -> bool:
    try:
        rows = json.loads(data)
    except (ValueError, RecursionError):
        return False
    return (
        isinstance(rows, list)
        and len(rows) == tasks
        and all(isinstance(row, dict) and all(isinstance(v, str) for v in row.values()) for row in rows)
    )
