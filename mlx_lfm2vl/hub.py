"""From a model's name to a folder on this disk. The only module that imports huggingface_hub.

A name is `demo` (the bundled model), a folder, or a hub repository such as `LiquidAI/LFM2-VL-450M`. Downloads go
through huggingface_hub's cache (resumed, shared with other programs, offline once complete). Only data files are
fetched: no Python, no pickle.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from . import demo
from .download_check import DownloadCheck
from .download_thread import Progress, in_thread
from .errors import HubError
from .model_folder import only_child, with_config

LICENCES = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")
DATA_PATTERNS = ("*.json", "*.jinja", "*.safetensors", "*.txt", "*.md", *LICENCES)
PASSING = (408, 429, 500, 502, 503, 504)  # what a hub answers that may be well again in a moment
WAITS = (0.5, 1.0, 2.0)  # seconds before a question is put again
LONGEST_WAIT = 60.0  # seconds, if the hub asks for more
_XET_STATUS = re.compile(r"HTTP status \w+ error \((\d{3})\b.*")  # in what hf_xet raises
_ANCHOR = re.compile(r"(?<![A-Za-z0-9])&[\w-]")  # by which a few bytes of YAML stand for gigabytes
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_REPOSITORY_OR_FOLDER = re.compile(rf"({_REPOSITORY.pattern})(?:/([A-Za-z0-9][\w.-]*))?")


def resolve(
    path_or_repo: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    patterns: tuple[str, ...] = DATA_PATTERNS,
    enough: tuple[str, ...] = (),
    progress: Progress | None = None,
) -> Path:
    """The folder that holds the model; fetches what `patterns` match if the name is a hub repository, `owner/name`, or
    a folder of one, `owner/name/folder`. A place that has no config.json but one of the files `enough` is taken as it
    is.

    `progress` is told of "files" and of bytes ("download", whose total grows as files begin), from several threads, in
    place of the bars that huggingface_hub draws.

    A folder or repository that has no config.json but children that do (one precision each) is refused with the
    children's names unless there is only one, before any weights are fetched; so is a `revision` of a folder. Raises
    `HubError` if nothing of that name can be had.
    """
    name = os.fspath(path_or_repo) if isinstance(path_or_repo, (str, os.PathLike)) else None
    if not isinstance(name, str):
        raise HubError(f"the model is {path_or_repo!r}; give a folder, a hub repository or 'demo'")
    if not name.strip():
        raise HubError("the model's name is empty; give a folder, a hub repository or 'demo'")
    folder = Path(os.path.expanduser(name))  # unlike Path's own, it and os.path raise for no name
    if revision is not None and (name == "demo" or os.path.isdir(folder)):
        raise HubError(f"{name}: is a folder on this disk, which has no revision {revision!r}; leave the revision out")
    if name == "demo":
        return demo.path()
    if os.path.isdir(folder):
        return folder if _has(folder, enough) else with_config(folder)
    if os.path.exists(folder):
        raise HubError(f"{name}: is a file; give the folder that holds config.json")
    parts = _REPOSITORY_OR_FOLDER.fullmatch(name)
    if parts is None:
        shown = name if len(name) <= 120 else f"{name[:100]}..."
        raise HubError(f"{shown}: no such folder, and not a hub repository name like 'LiquidAI/LFM2-VL-450M'")
    repo, child = parts[1], parts[2]

    def fetch(folder: str, wanted: tuple[str, ...]) -> Path:
        """What is wanted of one folder of the repository."""
        within = tuple(f"{folder}{pattern}" for pattern in wanted)
        with DownloadCheck(repo, _cached(repo, cache_dir), downloading=not local_files_only) as check:
            ignored = (f"{folder}*/*",)
            found = in_thread(
                lambda bars: _download(name, repo, revision, token, cache_dir, local_files_only, within, ignored, bars),
                progress,
                drawn=_drawn_bars,
                leave=_abort_xet,
            )
            check.check()
        return found

    if not child:
        root = fetch("", patterns)
        if _has(root, enough):
            return root
        root = fetch("*/", ("config.json",))
        if not root.is_dir():
            raise HubError(f"{repo}: the repository is empty, or holds nothing that a model is made of")
        child = only_child(root, name)
    folder = fetch(f"{child}/", patterns) / child
    if not _has(folder, enough):
        raise HubError(f"{name}: the repository has no folder {child!r} with a config.json")
    return folder


def _has(folder: Path, enough: tuple[str, ...]) -> bool:
    return any((folder / name).exists() for name in ("config.json", *enough))


def _download(
    name: str,
    repo: str,
    revision: str | None,
    token: str | bool | None,
    cache_dir: str | os.PathLike[str] | None,
    local_files_only: bool,
    patterns: tuple[str, ...],
    ignored: tuple[str, ...],
    bars: type[Any],
) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    from huggingface_hub.utils import httpx  # the client that it uses itself

    def fetch() -> Path:
        return Path(
            snapshot_download(
                repo,
                revision=revision,
                token=token,
                cache_dir=None if cache_dir is None else os.fspath(cache_dir),
                local_files_only=local_files_only,
                allow_patterns=list(patterns),
                ignore_patterns=list(ignored),
                tqdm_class=bars,
            )
        )

    def answer(error: BaseException) -> Any:
        """The hub's answer behind an error, None if there was none."""
        cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else error
        return cause.response if isinstance(cause, HfHubHTTPError) else None

    try:
        for wait in WAITS:  # the client itself repeats what it fetches, but not its first question
            try:
                folder = fetch()
                break
            except (HfHubHTTPError, LocalEntryNotFoundError) as error:
                said = answer(error)
                if said is None or said.status_code not in PASSING:
                    raise
                asked = said.headers.get("Retry-After", "")
                time.sleep(min(max(wait, float(asked) if asked.isdigit() else 0), LONGEST_WAIT))
        else:
            folder = fetch()
    except HFValidationError as error:
        raise HubError(f"{name}: no such folder, and not a name that the hub allows ({_first_line(error)})") from None
    except RevisionNotFoundError:
        raise HubError(f"{name}: the repository has no revision {revision!r}") from None
    except GatedRepoError:
        raise HubError(
            f"{name}: access is restricted; accept its terms on the hub and log in with `hf auth login`"
        ) from None
    except RepositoryNotFoundError:
        raise HubError(
            f"{name}: no such folder here and no such repository on the hub (or it is private: log in)"
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, httpx.HTTPError, OSError, RuntimeError) as error:
        said = answer(error)
        if said is None and isinstance(error, LocalEntryNotFoundError):
            reason = f"no such folder, not in the local cache, and the hub cannot be reached ({_first_line(error)})"
        elif said is not None and said.status_code == 401:
            reason = "the hub does not know your token; log in again with `hf auth login`"
        elif said is not None and said.status_code == 429:
            reason = "the hub asks to come back later (too many requests); then run it again"
        else:
            # a RuntimeError is of Xet's client, which has tried what may pass for minutes by itself
            cause = error.__cause__ if said is not None and error.__cause__ is not None else error
            reason = f"the download failed ({_first_line(cause)}); run it again to resume"
        raise HubError(f"{name}: {reason}") from error
    return folder


def _drawn_bars() -> type[Any]:
    from huggingface_hub.utils import tqdm

    return tqdm


def _abort_xet() -> None:
    """Ends what the client transfers by Xet in this process, as it does itself at Ctrl-C."""
    from huggingface_hub.utils._xet import abort_xet_session

    abort_xet_session()


def cache_folder() -> Path:
    """Where huggingface_hub keeps all repositories, unless it is told otherwise."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def _cached(repo: str, cache_dir: str | os.PathLike[str] | None) -> Path:
    """Where huggingface_hub keeps a repository."""
    return Path(cache_folder() if cache_dir is None else cache_dir) / f"models--{repo.replace('/', '--')}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def is_repository(name: str) -> bool:
    """Whether a name has the form of a hub repository's, `owner/name`."""
    return _REPOSITORY.fullmatch(name) is not None


def check_new_name(repo: str) -> None:
    """Raises `HubError` unless the hub allows a repository of this name."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if not is_repository(repo):
        raise HubError(f"{repo}: is not a hub repository name like 'owner/LFM2.5-VL-450M-8bit'")
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise HubError(f"{repo}: is not a name that the hub allows ({_first_line(error)})") from None


def publish(
    folder: Path,
    repo: str,
    files: Sequence[str],
    *,
    message: str,
    private: bool = False,
    token: str | bool | None = None,
    attempts: int = 5,
    wait: float = 1.0,
) -> str:
    """Creates the hub repository if it is not there, uploads `files` of `folder` in one commit, and returns its URL.

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
                sources = [
                    opened.enter_context((folder / name).open("rb")) if plain else folder / name for name in files
                ]
                operations = [
                    CommitOperationAdd(path_in_repo=name, path_or_fileobj=source)
                    for name, source in zip(files, sources, strict=True)
                ]
                return str(api.create_commit(repo, operations, commit_message=message).commit_url)
        except (HfHubHTTPError, httpx.HTTPError, RuntimeError, ValueError, OSError) as error:
            cause = error if not isinstance(error, RuntimeError) or error.__cause__ is None else error.__cause__
            response = cause.response if isinstance(cause, HfHubHTTPError) else None
            of_xet = None if response is not None else _XET_STATUS.search(_first_line(cause))
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


def card_metadata(text: str) -> dict[str, Any]:
    """The metadata of a model card by its keys, read by safe YAML.

    Args:
        text: the beginning of the card. Its length bounds the work: YAML takes about 10 seconds a megabyte.

    Returns:
        What the card's head says. Empty for a card without a head, or with one that is damaged or has anchors.
    """
    from huggingface_hub import RepoCard
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    head = REGEX_YAML_BLOCK.search(text)
    if head is None or _ANCHOR.search(head[0]):
        return {}
    try:
        # ModelCard would also read evaluation results, and warn of those that it cannot read
        return dict(RepoCard(head[0]).data.to_dict())
    except Exception:  # errors of YAML, of numbers and dates, of keys that are no names
        return {}


def write_model_card(file: Path, metadata: Mapping[str, Any], text: str) -> None:
    """Writes a model card of metadata and Markdown. Raises `OSError` if the disk does."""
    from huggingface_hub import ModelCard, ModelCardData

    ModelCard(f"---\n{ModelCardData(**metadata).to_yaml()}\n---\n\n{text}").save(file)


def _why_not_uploaded(status: int | None, error: BaseException) -> str:
    reasons = {
        401: "the hub does not know you; log in with `hf auth login`, with a token that may write",
        403: "you may not write there; choose your own name or organisation, or a token that may write",
        404: "no such owner, or a repository that you may not see",
        413: "the hub refuses files of this size",
        429: "the hub asks to come back later (too many requests)",
        507: "the hub has no room left for you",
    }
    if status in reasons:
        return f"{reasons[status]} (HTTP {status})"
    return f"the upload failed ({_first_line(error)}); run it again to go on where it stopped"
