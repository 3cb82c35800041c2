"""Errors of a request, in the shape of the protocol that it came by."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any

from ..errors import (
    FEWER_MEDIA,
    AnswerError,
    ConstraintError,
    ContextLengthError,
    EngineClosedError,
    ImageError,
    InputError,
    Lfm2VlError,
    OptionError,
    OutOfMemoryError,
    PromptError,
    QueueFullError,
    TemplateError,
    one_line,
)
from ..generation.options import GenerationOptions
from ..processing.fetch import ALLOW_PRIVATE
from ..processing.formats import ALLOW_LARGER
from ..processing.not_pictures import AS_PICTURE, AS_VIDEO
from ..processing.pdf import AT_A_TIME

OPENAI_TYPES = {403: "permission_error", 429: "rate_limit_error"}
ANTHROPIC_TYPES = {
    **OPENAI_TYPES,
    401: "authentication_error",
    404: "not_found_error",
    413: "request_too_large",
    504: "timeout_error",
    529: "overloaded_error",
}
# what a caller can put right
CLIENTS_OWN = (PromptError, ImageError, OptionError, TemplateError, InputError, ConstraintError)
ADVICE = {  # ways out for the command line and Python, and those of a caller
    ALLOW_PRIVATE: "",  # for the owner of a policy
    ALLOW_LARGER: "",
    AS_PICTURE: " (image_url, input_image)",
    AS_VIDEO: "send it to /v1/chat/completions as video_url, or to /v1/responses as input_file",
    AT_A_TIME: f"{AT_A_TIME} (--max-pictures of the server)",
}
PLACE = re.compile(r"((?:messages|input|images)\[[\w.\[\]]+): ")  # of a picture in a body, where its error begins
OPTION = re.compile(r"(?:[^:]+: )?(\w+) ")  # of the library, at the beginning of an error
OPTIONS = {
    **{option.name: option.name for option in fields(GenerationOptions)},
    **{"max_image_tokens": "max_image_tokens", "min_image_tokens": "min_image_tokens", "do_image_splitting": "tiling"},
}  # and the fields of a body that set them
PROMPTS = {"/v1/chat/completions": "messages", "/v1/responses": "input"}  # the field of a prompt, by the path
RETRY_SECONDS = 1  # told with 429 and 503


class ApiError(Exception):
    """An answer other than 200: its status, a line that names the thing and the way out, and where it is.

    `param`: the field of the body, such as `messages[0].content`. `code`: OpenAI's word for the kind of error. `allow`:
    the methods that the path takes, where it is another one.
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, allow: str | None = None
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, one_line(message), param, code
        self._allow = allow

    @property
    def headers(self) -> dict[str, str]:
        """Retry-After, where another try may do; Allow, where another method would; WWW-Authenticate, where a key."""
        retry = {"retry-after": str(RETRY_SECONDS)} if self.status in (429, 503) else {}
        key = {"www-authenticate": "Bearer"} if self.status == 401 else {}
        return retry | key if self._allow is None else {"allow": self._allow}

    def body(self, anthropic: bool, request_id: str) -> dict[str, Any]:
        """The error as JSON, in the shape of Anthropic or of OpenAI."""
        server = "api_error" if anthropic else "server_error"
        types = ANTHROPIC_TYPES if anthropic else OPENAI_TYPES
        kind = types.get(self.status, server if self.status >= 500 else "invalid_request_error")
        if anthropic:
            return {"type": "error", "error": {"type": kind, "message": self.message}, "request_id": request_id}
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def api_error(error: BaseException, path: str = "") -> ApiError:
    """The error that a client is told for one of the library, in answer to a request of this path. The message of one
    that is not the client's own stays in the server's log: it may name files of this machine."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ContextLengthError):
        return ApiError(400, str(error), param=PROMPTS.get(path), code="context_length_exceeded")
    if isinstance(error, CLIENTS_OWN):
        message = str(error)
        place, option = PLACE.match(message), OPTION.match(message)
        for advice, of_caller in ADVICE.items():
            message = message.replace(advice, of_caller)
        param = place[1] if place else OPTIONS.get(option[1]) if option else None
        return ApiError(400, message, param=param, code="invalid_value")
    if isinstance(error, AnswerError):
        return ApiError(500, str(error), code="unreadable_answer")
    if isinstance(error, QueueFullError):
        return ApiError(429, str(error), code="queue_full")
    if isinstance(error, OutOfMemoryError):
        return ApiError(503, f"the server has too little memory for this request; ask with {FEWER_MEDIA}")
    if isinstance(error, EngineClosedError):
        return ApiError(503, "the server is about to stop, or let go of the model; ask again")
    kind = "of the model" if isinstance(error, Lfm2VlError) else "of the server"
    return ApiError(500, f"an error {kind}; the server's log says which")
