"""The routes of the server, and what all of them share: who may ask, errors, a line in the log."""

from __future__ import annotations

import secrets
import time
from functools import partial
from pathlib import Path
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route, Router
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import did_you_mean
from . import (
    anthropic,
    anthropic_answer,
    openai_chat,
    openai_chat_answer,
    openai_responses,
    openai_responses_answer,
    task_requests,
)
from .access import Access
from .answering import GONE, Answering, Parse, Work
from .api_error import ApiError, api_error
from .log import RequestRecord, Write, of_bug
from .metrics import Metrics
from .models import Model
from .sending import as_json, send_json

PAGE = Path(__file__).parent / "page"
# The page uses what the server itself serves, and pictures and videos of the browser's own: no script within it and no
# address elsewhere is ever used, whatever a model says.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; media-src blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
PAGE_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}


def make_app(answering: Answering, access: Access, metrics: Metrics, write: Write) -> ASGIApp:
    """The whole server as an ASGI application."""
    models = answering.models

    def post(path: str, parse: Parse, work: Work) -> Route:
        # Starlette takes what is no function as an ASGI application
        return Route(path, partial(answering, parse=parse, work=work), methods=["POST"])

    async def list_models(request: Request) -> Response:
        listed = [described(model) for model in models]
        ends = {"first_id": listed[0]["id"], "last_id": listed[-1]["id"], "has_more": False}
        return json_response({"object": "list", "data": listed, **ends})

    async def one_model(request: Request) -> Response:
        if not request.path_params["id"]:
            raise HTTPException(404)
        return json_response(described(models.find(request.path_params["id"])))

    async def health(request: Request) -> Response:
        return json_response({"status": "ok", "models": {model.id: model.state for model in models}})

    async def page(request: Request) -> Response:
        return FileResponse(PAGE / "index.html", headers=PAGE_HEADERS)

    async def shown_metrics(request: Request) -> Response:
        return PlainTextResponse(metrics.text(models), media_type="text/plain; version=0.0.4")

    routes = [
        post("/v1/chat/completions", openai_chat.parse, partial(answering.answer, openai_chat_answer)),
        post("/v1/responses", openai_responses.parse, partial(answering.answer, openai_responses_answer)),
        post("/v1/messages", anthropic.parse, partial(answering.answer, anthropic_answer)),
        post("/v1/messages/count_tokens", anthropic.parse_count, answering.count_tokens),
        *(post(f"/v1/{kind}", partial(task_requests.parse, kind), answering.do_task) for kind in task_requests.MAKE),
        Route("/v1/models", list_models),
        Route("/v1/models/{id:path}", one_model),
        Route("/health", health),
        Route("/metrics", shown_metrics),
        Route("/", page),
        Mount("/static", PageFiles(directory=PAGE)),
    ]
    app = Recorded(Router(routes, redirect_slashes=False), access, metrics, write)
    if not access.origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=access.origins,
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
        expose_headers=["x-request-id", "request-id", "retry-after"],
    )


class PageFiles(StaticFiles):
    """The files of the page, with its headers."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:  # of refusals of a byte range, too
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(PAGE_HEADERS)
            await send(message)

        await super().__call__(scope, receive, with_headers)


class Recorded:
    """Gives each request an id, refuses those that may not be answered, makes responses of errors, and writes a
    line."""

    def __init__(self, router: Router, access: Access, metrics: Metrics, write: Write):
        self._router, self._access, self._metrics, self._write = router, access, metrics, write
        self._paths = [route.path for route in router.routes if isinstance(route, Route)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = RequestRecord(scope["method"], scope["path"], f"req_{secrets.token_hex(8)}")
        record.route = record.path if record.path in self._paths else "other"
        scope["record"] = record
        anthropic = record.path.startswith("/v1/messages") or any(
            n == b"anthropic-version" for n, _ in scope["headers"]
        )
        id_header = (b"request-id" if anthropic else b"x-request-id", record.id.encode())

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message["headers"] = [*message["headers"], id_header]
            record.complete = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        self._metrics.begin()
        try:
            self._access.check(scope)
            scope["app"] = self  # for Starlette: a method that is not allowed is an exception
            await self._router(scope, receive, noted)
        except ConnectionError:
            record.status = GONE
        except Exception as error:
            await self._refuse(error, record, noted, anthropic)
        finally:
            self._metrics.add(record)
            self._write(record.line())

    def _no_route(self, error: HTTPException, record: RequestRecord) -> ApiError:
        path = record.path[:200]
        if error.status_code == 405:
            allowed = (error.headers or {}).get("Allow", "GET, HEAD")
            return ApiError(405, f"{path} takes {allowed}, not {record.method}", allow=allowed)
        paths = [path for path in self._paths if path != "/" and "{" not in path]
        near = did_you_mean([path.rstrip("/") if path.startswith("/v1/") else f"/v1{path}"], paths)
        return ApiError(404, f"there is nothing at {path}; there is {', '.join(paths)}{near}")

    async def _refuse(self, error: Exception, record: RequestRecord, send: Send, anthropic: bool) -> None:
        if isinstance(error, HTTPException):  # of Starlette's router, and of its files
            error = self._no_route(error, record)
        refusal = api_error(error, record.path)
        if refusal.status == 500:
            self._write(f"{record.id} {of_bug(error)}")
        if record.status:
            record.cut = refusal.status
        else:
            await send_json(send, refusal.body(anthropic, record.id), refusal.status, refusal.headers)


def json_response(value: Any) -> Response:
    return Response(as_json(value), media_type="application/json")


def described(model: Model) -> dict[str, Any]:
    """A model as OpenAI and Anthropic list it, and what is known of its state."""
    made: dict[str, Any] = {
        "id": model.id,
        "object": "model",
        "created": model.created,
        "type": "model",
        "display_name": model.id,
        "lifecycle": "active",
        "created_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(model.created)),
        "owned_by": model.id.partition("/")[0] if "/" in model.id else "local",
        "state": model.state,
    }
    if model.config is not None:
        length = model.config.text_config.max_position_embeddings
        made |= {"max_context_length": length, "max_input_tokens": length}
    if model.error is not None:
        made["error"] = model.error
    if model.progress is not None:
        what, done, total = model.progress
        made["progress"] = {"what": what, "done": done, "total": total}
    return made
