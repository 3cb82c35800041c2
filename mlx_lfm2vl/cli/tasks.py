"""Options, the run and files of results, which detect, point, read, extract and describe share."""

from __future__ import annotations

import argparse
import io
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import OptionError, OutputError
from .arguments import load_model, sampling_options, source_policy
from .generate import for_stdout
from .inputs import check_output, load_pictures, shortened
from .interrupt import answering
from .options import add, add_model, add_pictures, add_sampling
from .stderr import Spinner, note

if TYPE_CHECKING:
    from ..processing.load_image import Picture

PICTURE = "file, pattern such as '*.png', http(s) URL, data URI, or - for stdin"


def add_task(parser: argparse.ArgumentParser, max_tokens: int, named: bool = False) -> None:
    """The options of all tasks; with `named` also what is looked for, and then each picture needs its own --image, as
    the name may stand behind it."""
    add_model(parser)
    if named:
        add(parser, "--image", action="append", nargs=None, required=True, help=f"{PICTURE}; may be given again")
        parser.add_argument("what", metavar="WHAT", help='the name of what to look for, such as "red cars"')
    else:
        add(parser, "--image", required=True, help=f"{PICTURE}; several here, or by --image again")
    add(parser, "--recipe")
    add(parser, "--json", help="print one JSON object")
    add_sampling(parser, max_tokens, form=False)
    add_pictures(parser)
    parser.set_defaults(draw=None, coco=None, csv=None)


def add_files(parser: argparse.ArgumentParser, *names: str) -> None:
    """Options of files that a task writes, and --overwrite."""
    add(parser, *names)
    add(parser, "--overwrite", help="replace these files if they are there")


@dataclass
class Found:
    """A task's results in pictures: a list whose items say their picture's number, or one value of all pictures."""

    args: argparse.Namespace
    result: Any
    recipe: str
    names: list[str]  # of the pictures
    pictures: list[Picture]

    def of(self, number: int) -> list[Any]:
        """The results in one picture."""
        return [each for each in self.result if each.image == number]

    def print(self, key: str, show: Callable[[], None]) -> None:
        """Prints the object of --json, which has the result under this key; without --json lets `show` print it."""
        from ..tasks.export import plain

        if not self.args.json:
            show()
            return
        pairs = zip(self.names, self.pictures, strict=True)
        images = [{"source": name, "width": each.width, "height": each.height} for name, each in pairs]
        made = {"model": self.args.model, "recipe": self.recipe, "images": images, key: self.result}
        print(for_stdout(json.dumps(plain(made), ensure_ascii=False)), flush=True)

    def note_none(self) -> None:
        """Says in which pictures nothing was found of what is looked for."""
        for number, name in enumerate(self.names):
            if not self.of(number):
                note(f"{name}: no {self.args.what} found")

    def draw(self, draw: Callable[[Picture, list[Any]], Picture]) -> None:
        """Writes the files of --draw. Raises `OutputError`."""
        from ..tasks.drawing import file_format

        for number, path in enumerate(targets(self.args.draw, len(self.names))):
            file = io.BytesIO()
            draw(self.pictures[number], self.of(number)).save(file, file_format(path))
            write_file(path, file.getvalue(), self.args.overwrite)


def do(args: argparse.Namespace, make: Callable[..., Any]) -> Found:
    """Reads the pictures, loads the model and runs the task that `make` builds of a recipe.

    Raises:
        Lfm2VlError: for whatever the user can put right.
        KeyboardInterrupt: Ctrl-C came before the result.
    """
    from .. import GenerationOptions
    from ..processing.load_image import load_image
    from ..tasks.run import TaskArguments, recipe_of, run

    policy = source_policy(args)
    with Spinner("reading pictures"):
        loaded = load_pictures(args.image, policy, args.color_management)
    check_files(args, len(loaded))
    options = GenerationOptions(**sampling_options(args))
    model, processor = load_model(args)
    recipe = recipe_of(model, args.recipe)
    task = make(recipe)
    pictures = [load_image(picture, policy, processor.image_processor.config) for _, picture in loaded]
    with answering() as (interrupt, spinner):
        how: TaskArguments = {"options": options, "stop": interrupt, "progress": spinner.count}
        result = run(model, processor, task, pictures, **how)
    return Found(args, result, recipe.name, [shortened(name) for name, _ in loaded], pictures)


def print_found(head: Sequence[str], rows: Sequence[Sequence[Any]], several: bool) -> None:
    """A table of what was found, if anything was: numbers to the right, and with `several` pictures their names."""
    lines = [head, *([cell if isinstance(cell, str) else f"{cell:.1f}" for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines if rows else ():
        cells = [
            cell.ljust(width) if isinstance(given, str) else cell.rjust(width)
            for cell, width, given in zip(line, widths, rows[-1], strict=True)
        ]
        print(for_stdout("  ".join(cells[not several :]).rstrip()), flush=True)


def targets(path: str | None, number: int) -> list[str]:
    """The files of --draw for so many pictures."""
    if path is None:
        return []
    stem, suffix = os.path.splitext(path)
    return [path] if number == 1 else [f"{stem}-{each}{suffix}" for each in range(1, number + 1)]


def check_files(args: argparse.Namespace, number: int) -> None:
    """Raises `OutputError` for files that may not be written, and `OptionError` for a format of drawings that is not
    known, before a model is loaded. `number` of pictures."""
    from ..tasks.drawing import file_format

    drawn = targets(args.draw, number)
    for path in drawn:
        file_format(path)
    given = [path for path in (args.coco, args.csv, *drawn) if path is not None]
    for path in given:
        if given.count(path) > 1:
            raise OptionError(f"{path}: is given for two files")
        folder = os.path.dirname(os.path.expanduser(path))
        if folder and not os.path.isdir(folder):
            raise OutputError(f"{path}: there is no folder {folder}")
        if os.path.exists(os.path.expanduser(path)):
            if not args.overwrite:
                raise OutputError(f"{path}: exists already; choose another file, or --overwrite")
            check_output(path, args.image)


def write_file(path: str, data: bytes, overwrite: bool) -> None:
    """Raises `OutputError`."""
    try:
        with open(os.path.expanduser(path), "wb" if overwrite else "xb") as file:
            file.write(data)
    except FileExistsError:
        raise OutputError(f"{path}: exists already; choose another file, or --overwrite") from None
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from None
    note(f"{path}: written")
