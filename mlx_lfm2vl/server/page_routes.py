"""The page at `/`, and its files below `/static/`, from the folder `page` of the package.

The content security policy allows what the server itself serves, and pictures and videos of the browser's own: no
script within the page and no address elsewhere is ever used, whatever a model says.
"""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

FOLDER = Path(__file__).parent / "page"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; media-src blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}


class PageFiles(StaticFiles):
    """The files of the page, with its headers."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(HEADERS)
        return response


async def page(request: Request) -> Response:
    return FileResponse(FOLDER / "index.html", headers=HEADERS)


def page_routes() -> list[BaseRoute]:
    """The routes of the page and its files."""
    return [Route("/", page), Mount("/static", PageFiles(directory=FOLDER))]
