"""`mlx-lfm2vl extract`: fields of a JSON schema, filled from pictures."""

from __future__ import annotations

import argparse
import json

from .generate import for_stdout
from .tasks import add_task, do

SUMMARY = "fill the fields of a JSON schema from pictures"
DESCRIPTION = """\
Fills a JSON schema from one picture, or from several together, and prints the object. The schema is that of an object;
the descriptions of its properties tell the model what they hold.

  mlx-lfm2vl extract --image receipt.jpg --schema receipt.json
  mlx-lfm2vl extract --image a.jpg --schema '{"type": "object", "properties": {"total": {"type": "number"}}}'
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_task(parser, max_tokens=2048)
    parser.add_argument("--schema", required=True, metavar="FILE|TEXT", help="JSON schema, or the file that holds it")


def run(args: argparse.Namespace) -> int:
    """Raises `Lfm2VlError` for whatever the user can put right."""
    from .. import ExtractTask, ResponseFormat

    schema = ResponseFormat.json_schema(args.schema).value  # what is wrong with it is said before a model is loaded
    found = do(args, lambda recipe: ExtractTask(recipe, schema))
    shown = json.dumps(found.result, ensure_ascii=False, indent=2)
    found.print("fields", lambda: print(for_stdout(shown), flush=True))
    return 0
