"""The routes of the API that are about the tasks on this machine, and the shapes of their answers."""

from __future__ import annotations

from typing import Final

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from nexapod.api.answers import Reply
from nexapod.api.backend import Backend

PAUSE_S_MAX: Final = 30 * 24 * 3600


class PauseBody(BaseModel):
    """`for_s` seconds, or until it is ended."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    for_s: float | None = Field(None, gt=0, le=PAUSE_S_MAX)


class LocalTask(BaseModel):
    """A task on this machine."""

    model_config = ConfigDict(extra="allow", strict=True)

    job_id: str
    index: int
    name: str
    """The job's."""
    submitter: str
    executor: str
    stage: str
    """preparing, running or gathering."""
    frozen: bool
    progress: float | None
    """Null while the task has said nothing of it."""
    age_s: float
    cpu_ms: int
    peak_memory: int
    gpu_ms: int
    gpus: list[str]
    printed: int
    """Bytes, kept or not."""
    log: str
    """The head and the tail."""


def about_work(app: FastAPI, backend: Backend) -> None:
    @app.get("/v1/tasks", response_model=None, responses={200: {"model": list[LocalTask]}})
    async def tasks() -> Response:
        """The tasks on this machine."""
        return Reply(await backend.tasks())

    @app.post("/v1/pause", response_model=None)
    async def pause(body: PauseBody) -> Response:
        """Freeze the tasks on this machine, and take no new ones. Answers once all of them stand still."""
        await backend.pause(body.for_s)
        return Reply({})

    @app.post("/v1/resume", response_model=None)
    async def resume() -> Response:
        """Let them go on."""
        await backend.resume()
        return Reply({})
