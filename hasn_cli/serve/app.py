"""The routes: the page, and the HTTP interface behind it."""

from __future__ import annotations

import asyncio
import html
import json
import logging
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import suppress
from functools import cache, partial
from importlib import resources
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import iterate_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from hasn_cli import __version__
from hasn_cli.batch.location import picture_suffixes
from hasn_cli.compare.page import viewer
from hasn_cli.errors import HasnError, UsageError
from hasn_cli.serve.archive import archive, unique_names
from hasn_cli.serve.asking import Asking
from hasn_cli.serve.jobs import DONE, FAILED, Jobs, Refused, Task, too_large
from hasn_cli.serve.words import for_clients

ASSETS = {
    "page.css": ("hasn_cli.serve", "text/css"),
    "page.js": ("hasn_cli.serve", "text/javascript"),
    "viewer.css": ("hasn_cli.compare", "text/css"),
    "viewer.js": ("hasn_cli.compare", "text/javascript"),
}
BESIDE = (
    '<div class="beside"><p id="shown-facts" class="facts"></p>'
    '<a id="shown-save" class="button main">Download</a></div>'
)
log = logging.getLogger("hasn.serve")

MOST_DRAINED = 64 << 20  # bytes of a refused upload that are still read
DRAIN_SECONDS = 5.0
LARGEST_FIELD = 4096  # bytes of a field of a form that is no file
LARGEST_FORM = 1 << 16  # bytes of everything in a form but the file


def make_app(jobs: Jobs, asking: Asking) -> Starlette:
    """The application.

    Args:
        jobs: the queue; the caller starts and stops it.
        asking: reads the parameters.
    """
    handlers = _Handlers(jobs, asking)
    routes = [
        Route("/", handlers.page),
        Route("/assets/{name}", handlers.asset),
        Route("/openapi.json", handlers.description),
        Route("/upscale", handlers.upscale, methods=["POST"]),
        Route("/jobs", handlers.create, methods=["POST"]),
        Route("/jobs/{id}", handlers.job, methods=["GET"]),
        Route("/jobs/{id}", handlers.delete, methods=["DELETE"]),
        Route("/jobs/{id}/events", handlers.events),
        Route("/jobs/{id}/result", handlers.result),
        Route("/jobs/{id}/preview/{which}", handlers.preview),
        Route("/groups/{group}/events", handlers.group_events),
        Route("/groups/{group}/zip", handlers.group_archive),
    ]
    return Starlette(routes=routes, exception_handlers={
        Refused: _refused, HasnError: _failed, HTTPException: _http, ClientDisconnect: _gone,
        MultiPartException: _bad_form, Exception: _unexpected,
    })  # fmt: skip


class _Handlers:
    """One method for each route."""

    def __init__(self, jobs: Jobs, asking: Asking) -> None:
        self._jobs = jobs
        self._asking = asking

    async def page(self, request: Request) -> Response:
        endings = sorted(suffix.removeprefix(".") for suffix in picture_suffixes())
        choices = {"weights": self._asking.weights, "endings": endings, "upload": self._jobs.limits.upload}
        return Response(page(choices), media_type="text/html")

    async def asset(self, request: Request) -> Response:
        package, kind = ASSETS.get(request.path_params["name"], (None, None))
        if package is None:
            raise HTTPException(404)
        return Response(asset(package, request.path_params["name"]), media_type=kind)

    async def description(self, request: Request) -> Response:
        from hasn_cli.serve.openapi import description

        return JSONResponse(description(self._asking, self._jobs.limits))

    async def upscale(self, request: Request) -> Response:
        task = await self._accept(request, grouped=False)
        if not await _over_before_disconnect(task, request):
            self._jobs.delete(task)
            raise ClientDisconnect
        if task.state != DONE:
            self._jobs.delete(task)
            return _failure(task)
        headers = {"Hasn-Notices": json.dumps(task.facts["notices"])} if task.facts["notices"] else {}
        response = self._picture(task, headers)
        response.on_end = partial(self._jobs.delete, task)
        return response

    async def create(self, request: Request) -> Response:
        task = await self._accept(request, grouped=True)
        return JSONResponse(task.to_dict(), 202, {"Location": f"/jobs/{task.id}"})

    async def job(self, request: Request) -> Response:
        return JSONResponse(self._task(request).to_dict())

    async def delete(self, request: Request) -> Response:
        self._jobs.delete(self._task(request))
        return Response(status_code=204)

    async def result(self, request: Request) -> Response:
        task = self._done(request)
        keep = request.query_params.get("keep") in ("1", "true") or "range" in request.headers
        response = self._picture(task)
        if request.method == "GET" and not keep:
            response.on_fetched = partial(self._jobs.delete, task)
        return response

    async def preview(self, request: Request) -> Response:
        which = request.path_params["which"]
        if which not in ("input", "result"):
            raise HTTPException(404)
        task = self._done(request) if which == "result" else self._task(request)
        path = await self._jobs.preview(task, which == "result")
        return FileResponse(path, media_type="image/png", headers={"Cache-Control": "private, max-age=3600"})

    async def events(self, request: Request) -> Response:
        return _event_stream(self._jobs.follow(task=self._task(request)))

    async def group_events(self, request: Request) -> Response:
        return _event_stream(self._jobs.follow(group=request.path_params["group"]))

    async def group_archive(self, request: Request) -> Response:
        tasks = [task for task in self._jobs.of_group(request.path_params["group"]) if task.state == DONE]
        if not tasks:
            raise HTTPException(404)
        names = unique_names([task.result_name for task in tasks])
        files = list(zip(names, (task.result for task in tasks), strict=True))
        headers = {"Content-Disposition": 'attachment; filename="hasn.zip"'}
        return StreamingResponse(iterate_in_threadpool(archive(files)), media_type="application/zip", headers=headers)

    # --- helpers ---

    async def _accept(self, request: Request, *, grouped: bool) -> Task:
        """Read the parameters and the upload, and put it into the queue."""
        given = request.query_params.multi_items()
        length = request.headers.get("content-length")
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        with self._jobs.admitted(int(length) if length else None):
            if kind == "multipart/form-data":
                return await self._accept_form(request, given, grouped)
            asked = self._asking.read(given, grouped=grouped)
            return await self._jobs.accept(asked, self._body(request))

    async def _accept_form(self, request: Request, given: list[tuple[str, str]], grouped: bool) -> Task:
        """The same for a form with one file. Its other fields are parameters."""
        parser = _SmallForms(
            request.headers, self._body(request), max_files=1, max_fields=20, max_part_size=LARGEST_FIELD
        )
        form = await parser.parse()
        try:
            files = [value for value in form.values() if isinstance(value, UploadFile)]
            if len(files) != 1:
                raise UsageError("the form contains no file", "send one file: curl -F picture=@photo.jpg")
            fields = [(key, value) for key, value in form.multi_items() if isinstance(value, str)]
            asked = self._asking.read([*given, *fields], name=files[0].filename or "", grouped=grouped)
            return await self._jobs.accept(asked, _pieces(files[0]))
        finally:
            await form.close()

    async def _body(self, request: Request) -> AsyncGenerator[bytes]:
        """The request's body in pieces, within the limits of size and time."""
        limits = self._jobs.limits
        deadline = time.monotonic() + limits.upload_time
        stream = aiter(request.stream())
        length = 0
        while True:
            try:
                async with asyncio.timeout(min(limits.stall, deadline - time.monotonic())):
                    piece = await anext(stream, None)
            except TimeoutError:
                raise Refused(408, "the upload took too long") from None
            if piece is None:
                return
            length += len(piece)
            if length > limits.upload + LARGEST_FORM:
                raise too_large(limits.upload)
            yield piece

    def _task(self, request: Request) -> Task:
        try:
            return self._jobs[request.path_params["id"]]
        except KeyError:
            raise Refused(404, "there is no such job", "it may have expired, or its result was fetched") from None

    def _done(self, request: Request) -> Task:
        task = self._task(request)
        if task.state != DONE:
            raise Refused(409, f"this picture is not done: it is {task.state}")
        return task

    def _picture(self, task: Task, headers: Mapping[str, str] | None = None) -> _Result:
        name = task.result_name.rpartition("/")[2]
        return _Result(task.result, media_type=task.media_type, filename=name, headers=headers)


class _Result(FileResponse):
    """A result as an answer.

    Attributes:
        on_fetched: called at the end, if the client was there until then.
        on_end: called at the end in any case.
    """

    on_fetched: Callable[[], None] | None = None
    on_end: Callable[[], None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)

        async def watched(message: Message) -> None:
            last = message["type"] == "http.response.body" and not message.get("more_body", False)
            fetched = last and self.on_fetched is not None and not await request.is_disconnected()
            await send(message)
            if fetched and self.on_fetched is not None:
                self.on_fetched()

        try:
            await super().__call__(scope, receive, watched)
        finally:
            if self.on_end is not None:
                self.on_end()


class _SmallForms(MultiPartParser):
    """Starlette's parser for forms. A file goes to the disk early, so that many at once take little memory."""

    spool_max_size = 1 << 16


async def _pieces(file: UploadFile) -> AsyncIterator[bytes]:
    while piece := await file.read(1 << 18):
        yield piece


async def _over_before_disconnect(task: Task, request: Request) -> bool:
    """Wait until the job is over; False if the client is gone first."""
    over = asyncio.ensure_future(task.over.wait())
    gone = asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait({over, gone}, return_when=asyncio.FIRST_COMPLETED)
        return task.over.is_set()
    finally:
        over.cancel()
        gone.cancel()


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _event_stream(changes: AsyncIterator[list[Task] | None]) -> Response:
    async def lines() -> AsyncIterator[bytes]:
        yield b"retry: 1000\n\n"
        async for tasks in changes:
            if tasks is None:
                yield b": still here\n\n"
                continue
            for task in tasks:
                yield b"event: job\ndata: " + json.dumps(task.to_dict()).encode() + b"\n\n"

    return StreamingResponse(lines(), media_type="text/event-stream")


# --- errors ---


def _error(status: int, message: str, hint: str | None, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": message, "hint": hint}, status, headers)


def _failure(task: Task) -> Response:
    if task.state == FAILED:
        return _error(task.status, task.error or "", task.hint)
    return _error(503, "the picture was cancelled", None)


async def _drain(request: Request) -> None:
    """Read some of what is left of an upload, because many clients read an answer only after they have sent it all."""
    left = MOST_DRAINED
    with suppress(TimeoutError, ClientDisconnect, RuntimeError):  # RuntimeError: there is nothing left
        async with asyncio.timeout(DRAIN_SECONDS):
            async for piece in request.stream():
                left -= len(piece)
                if left < 0:
                    return


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    await _drain(request)
    headers = {"Retry-After": str(error.retry_after)} if error.retry_after else {}
    return _error(error.status, error.message, error.hint, {**headers, "Connection": "close"})


async def _failed(request: Request, error: Exception) -> Response:
    assert isinstance(error, HasnError)
    await _drain(request)
    status = 400 if isinstance(error, UsageError) else 422
    return _error(status, error.message, for_clients(error.hint), {"Connection": "close"})


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    hint = "GET /openapi.json describes what there is"
    return _error(error.status_code, error.detail, hint, error.headers)


async def _bad_form(request: Request, error: Exception) -> Response:
    return _error(400, "the form cannot be read", "send one file: curl -F picture=@photo.jpg", {"Connection": "close"})


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499)


async def _unexpected(request: Request, error: Exception) -> Response:
    log.error("unexpected error", exc_info=error)
    return _error(500, "an unexpected error, which the server's log describes", None)


# --- the page ---


def page(choices: Mapping[str, Any]) -> str:
    """The page's HTML. `choices` is what its script needs to know about this server."""
    data = json.dumps(choices, default=list).replace("<", "\\u003c")
    texts = {"data": data, "viewer": viewer(BESIDE), "version": html.escape(__version__)}
    return re.sub(r"\{\{(\w+)\}\}", lambda found: texts[found[1]], asset("hasn_cli.serve", "page.html"))


@cache
def asset(package: str, name: str) -> str:
    """The text of a file in the package."""
    return resources.files(package).joinpath(name).read_text(encoding="utf-8")
