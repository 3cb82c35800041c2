"""Names of hub repositories, and the addresses of their pages, which are names too."""

from __future__ import annotations

import os
import re
from urllib.parse import unquote, urlsplit

from ..errors import HubError, first_line

PAGES = ("huggingface.co", "www.huggingface.co", "hf.co")  # and the host that HF_ENDPOINT names
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_REPOSITORY_OR_FOLDER = re.compile(rf"({_REPOSITORY.pattern})(?:/([A-Za-z0-9][\w.-]*))?")
_ADDRESS = re.compile(rf"https?://|(?:{'|'.join(map(re.escape, PAGES))})/", re.I)  # people leave out https://


def is_repository(name: str) -> bool:
    """Whether a name has the form of a hub repository's, `owner/name`."""
    return _REPOSITORY.fullmatch(name) is not None


def split(name: str) -> tuple[str, str | None] | None:
    """The repository and the folder in it that `owner/name` or `owner/name/folder` names; None for another form."""
    parts = _REPOSITORY_OR_FOLDER.fullmatch(name)
    return None if parts is None else (parts[1], parts[2])


def of_page(name: str, revision: str | None = None) -> tuple[str, str | None]:
    """The name and revision that a page's address stands for, `https://huggingface.co/owner/name`, with
    `/tree/REVISION` and a folder behind it; any other name as it is. Raises `HubError` for an address that is of no
    model's page, or one of another revision than is asked for beside the name."""
    if not _ADDRESS.match(name.strip()):
        return name, revision
    address = urlsplit(name.strip() if "://" in name else f"https://{name.strip()}")
    hosts = {*PAGES, urlsplit(os.environ.get("HF_ENDPOINT", "")).netloc}
    parts = [unquote(part) for part in address.path.split("/") if part]
    owner, rest = "/".join(parts[:2]), parts[2:]
    named = rest[1] if len(rest) > 1 and rest[0] == "tree" else None
    if address.netloc.lower() not in hosts or not is_repository(owner) or bool(rest) != bool(named):
        raise HubError(
            f"{name}: is not the address of a model's page; give one like https://huggingface.co/owner/name, or the "
            "name owner/name"
        )
    if named and revision not in (None, named):
        raise HubError(f"{name}: names the revision {named!r}, and {revision!r} is asked for; leave one of them out")
    return "/".join([owner, *rest[2:]]), revision or named


def check_new_name(repo: str) -> None:
    """Raises `HubError` unless the hub allows a repository of this name."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if not is_repository(repo):
        raise HubError(f"{repo}: is not a hub repository name like 'owner/LFM2.5-VL-450M-8bit'")
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise HubError(f"{repo}: is not a name that the hub allows ({first_line(error)})") from None
