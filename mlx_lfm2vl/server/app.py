"""The routes of the server, and what all of them share: who may ask, errors, a line in the log."""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection
from typing import Any

from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import did_you_mean
from . import anthropic, anthropic_answer, openai_chat, openai_chat_answer, openai_responses, openai_responses_answer
from .access import Access
from .answering import GONE, Answering, Protocol
from .api_error import ApiError, api_error
from .log import RequestRecord, Write, of_bug
from .metrics import Metrics
from .models import Model
from .page_routes import page_routes
from .sending import as_json, send_json
from .task_requests import MAKE

COMMENT = b": keep-alive\n\n"  # of server-sent events, which clients pass over
PING = b'event: ping\ndata: {"type":"ping"}\n\n'
OPENAI_CHAT = Protocol(
    "chatcmpl-",
    openai_chat.parse,
    openai_chat_answer.response,
    openai_chat_answer.events,
    openai_chat_answer.error_event,
    COMMENT,
)
OPENAI_RESPONSES = Protocol(
    "resp_",
    openai_responses.parse,
    openai_responses_answer.response,
    openai_responses_answer.events,
    openai_responses_answer.error_event,
    COMMENT,
)
ANTHROPIC = Protocol(
    "msg_",
    anthropic.parse,
    anthropic_answer.response,
    anthropic_answer.events,
    anthropic_answer.error_event,
    PING,
)


def make_app(answering: Answering, access: Access, metrics: Metrics, write: Write) -> ASGIApp:
    """The whole server as an ASGI application."""
    models = answering.models

    def answers(protocol: Protocol) -> ASGIApp:
        async def endpoint(scope: Scope, receive: Receive, send: Send) -> None:
            await answering(scope, receive, send, protocol)

        return endpoint

    async def count_tokens(scope: Scope, receive: Receive, send: Send) -> None:
        await answering.count_tokens(scope, receive, send, anthropic.parse_count)

    def task(kind: str) -> ASGIApp:
        async def endpoint(scope: Scope, receive: Receive, send: Send) -> None:
            await answering.do_task(scope, receive, send, kind)

        return endpoint

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

    async def shown_metrics(request: Request) -> Response:
        return PlainTextResponse(metrics.text(models), media_type="text/plain; version=0.0.4")

    routes = [
        Route("/v1/chat/completions", _App(answers(OPENAI_CHAT)), methods=["POST"]),
        Route("/v1/responses", _App(answers(OPENAI_RESPONSES)), methods=["POST"]),
        Route("/v1/messages", _App(answers(ANTHROPIC)), methods=["POST"]),
        Route("/v1/messages/count_tokens", _App(count_tokens), methods=["POST"]),
        *(Route(f"/v1/{kind}", _App(task(kind)), methods=["POST"]) for kind in MAKE),
        Route("/v1/models", list_models, methods=["GET"]),
        Route("/v1/models/{id:path}", one_model, methods=["GET"]),
        Route("/health", health, methods=["GET"]),
        Route("/metrics", shown_metrics, methods=["GET"]),
        *page_routes(),
    ]
    offered = [route.path for route in routes if isinstance(route, Route)]
    guarded = Guarded(Router(routes, redirect_slashes=False), access)
    app = Recorded(guarded, offered, metrics, write)
    if not access.origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=access.origins,
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
        expose_headers=["x-request-id", "request-id", "retry-after"],
    )


class _App:
    """An endpoint that is an ASGI application, which Starlette tells from a function of a request by its type."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


class Guarded:
    """Refuses requests that may not be answered."""

    def __init__(self, app: ASGIApp, access: Access):
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._access.check(scope)
        scope["app"] = self  # for Starlette: a method that is not allowed is an exception
        await self._app(scope, receive, send)


class Recorded:
    """Gives each request an id, makes responses of errors, and writes a line. `paths`: those that are offered."""

    def __init__(self, app: ASGIApp, paths: Collection[str], metrics: Metrics, write: Write):
        self._app, self._paths, self._metrics, self._write = app, paths, metrics, write

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

        with self._metrics.in_flight():
            try:
                await self._app(scope, receive, noted)
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
