"""A folder's files to a hub repository, in one commit."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from ..errors import HubError, first_line
from .download import PASSING
from .names import check_new_name

REFUSALS = {
    401: "the hub does not know you; log in with `hf auth login`, with a token that may write",
    403: "you may not write there; choose your own name or organisation, or a token that may write",
    404: "no such owner, or a repository that you may not see",
    413: "the hub refuses files of this size",
    429: "the hub asks to come back later (too many requests)",
    507: "the hub has no room left for you",
}
_XET_STATUS = re.compile(r"HTTP status \w+ error \((\d{3})\b.*")  # in what hf_xet raises


def check_writable(repo: str, token: str | bool | None = None) -> None:
    """Raises `HubError` unless the hub knows the token and lets it write to a repository, which need not be there yet.

    A hub that does not answer such questions (a mirror) is taken at its word when files are sent.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, RepositoryNotFoundError
    from huggingface_hub.utils import httpx

    check_new_name(repo)
    api = HfApi(token=token)
    try:
        who = api.whoami()
        if who.get("auth", {}).get("accessToken", {}).get("role") == "read":
            raise HubError(f"{repo}: your token may only read; log in with `hf auth login`, with one that may write")
        try:
            api.auth_check(repo, write=True)
        except RepositoryNotFoundError:
            owners = [who["name"], *(each["name"] for each in who.get("orgs", ()))]
            if repo.split("/")[0] not in owners:
                raise HubError(
                    f"{repo}: you may not make a repository there; your token is of {', '.join(owners)}"
                ) from None
    except LocalTokenNotFoundError:
        raise HubError(f"{repo}: {REFUSALS[401]}") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status not in (404, 405, *PASSING):
            raise HubError(f"{repo}: {REFUSALS.get(status, first_line(error))} (HTTP {status})") from error
    except httpx.HTTPError as error:
        raise HubError(f"{repo}: the hub cannot be reached ({first_line(error)})") from error


def publish(
    files: Mapping[str, Path | bytes],
    repo: str,
    *,
    message: str,
    private: bool = False,
    token: str | bool | None = None,
    attempts: int = 5,
    wait: float = 1.0,
) -> str:
    """Creates the hub repository if it is not there, uploads files by their names there in one commit, and
    returns its URL.

    What the hub holds already is not sent again, so a broken upload goes on where it was: here, up to `attempts` times
    with `wait` seconds before the second and twice as many before each further one, and in a later call. A new
    repository is `private` if asked; an existing one keeps what it is. Raises `HubError`.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import httpx

    check_new_name(repo)
    api = HfApi(token=token)
    plain = False  # whether the hub has no Xet storage, which the client does not find out
    for attempt in range(1, attempts + 1):
        try:
            api.create_repo(repo, private=private or None, exist_ok=True)
            with ExitStack() as opened:
                # what is given as an open file goes the older way, which every hub knows
                operations = [
                    CommitOperationAdd(
                        path_in_repo=name,
                        path_or_fileobj=opened.enter_context(source.open("rb"))
                        if plain and isinstance(source, Path)
                        else source,
                    )
                    for name, source in files.items()
                ]
                return str(api.create_commit(repo, operations, commit_message=message).commit_url)
        except (HfHubHTTPError, httpx.HTTPError, RuntimeError, ValueError, OSError) as error:
            cause = error if not isinstance(error, RuntimeError) or error.__cause__ is None else error.__cause__
            response = cause.response if isinstance(cause, HfHubHTTPError) else None
            of_xet = None if response is not None else _XET_STATUS.search(first_line(cause))
            if of_xet and of_xet[1] == "404" and "xet-write-token" in of_xet[0] and not plain and attempt < attempts:
                plain = True
                continue
            status = int(of_xet[1]) if of_xet else None if response is None else response.status_code
            # what Xet's client has been refused it has tried again by itself, for minutes
            passing = not of_xet and (status in PASSING if status else isinstance(cause, httpx.TransportError))
            if not passing or attempt == attempts:
                raise HubError(f"{repo}: {_why_not_uploaded(status, cause)}") from error
            time.sleep(wait * 2 ** (attempt - 1))
    raise AssertionError("unreachable")


def _why_not_uploaded(status: int | None, error: BaseException) -> str:
    if status in REFUSALS:
        return f"{REFUSALS[status]} (HTTP {status})"
    return f"the upload failed ({first_line(error)}); run it again to go on where it stopped"
