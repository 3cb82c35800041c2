"""`mlx-lfm2vl upload`: a finished model folder to the hub; also what goes on with an upload that broke off."""

from __future__ import annotations

import argparse

from ..errors import counted
from .options import add
from .stderr import note

SUMMARY = "upload a model folder to the hub"
DESCRIPTION = """\
Uploads a model folder to a hub repository, once it has loaded and answered a question about a picture. What the hub has
already is not sent again, so the same command goes on with an upload that broke off. Log in with `hf auth login`.

  mlx-lfm2vl upload LFM2.5-VL-1.6B-4bit owner/LFM2.5-VL-1.6B-4bit
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help="model folder, as convert writes it")
    parser.add_argument("repo", metavar="OWNER/NAME", help="hub repository, made if it is not there")
    add(parser, "--private", "--commit-message")
    parser.add_argument("--dry-run", action="store_true", help="check the folder and list what would be uploaded")


def run(args: argparse.Namespace) -> int:
    """Raises `Lfm2VlError` for whatever the user can put right."""
    send(args.folder, args.repo, args)
    return 0


def send(folder: str, repo: str, args: argparse.Namespace) -> None:
    """Uploads, or with `args.dry_run` lists, and prints the commit's address or the files."""
    from ..conversion.report import size
    from ..conversion.upload import upload

    done = upload(folder, repo, private=args.private, message=args.commit_message, dry_run=args.dry_run)
    if done.left:
        note(f"no part of the model, so not uploaded: {', '.join(done.left)}")
    if done.url is not None:
        print(done.url)
        return
    for name, count in done.files:
        print(f"{name}  {size(count)}")
    note(f"nothing uploaded; {counted(len(done.files), 'file')} would go to {done.repository}")
