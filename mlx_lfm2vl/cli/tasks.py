"""Options, the run and files of results, which detect, point, read, extract and describe share."""

from __future__ import annotations

import argparse
import io
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import AnswerError, OptionError, OutputError
from .generate import for_stdout
from .inputs import check_output, expand, load_pictures, shortened
from .options import (
    add_model,
    add_pictures,
    add_sampling,
    chosen_model,
    load_model,
    note,
    sampling_options,
    source_policy,
)
from .progress import Spinner

if TYPE_CHECKING:
    from ..config import ImageProcessorConfig
    from ..processing.load_image import Picture
    from ..processing.pdf import PdfPage
    from ..tasks.recipes import Recipe
    from ..tasks.task import Task

Result = TypeVar("Result")
PICTURE = "file, pattern such as '*.png', http(s) URL, data URI, or - for stdin"


def add_task(parser: argparse.ArgumentParser, max_tokens: int, named: bool = False) -> None:
    """The options of all tasks; with `named` also what is looked for, and then each picture needs its own --image, as
    the name may stand behind it."""
    add_model(parser)
    several = {"action": "append"} if named else {"action": "extend", "nargs": "+"}
    ending = "may be given again" if named else "several here, or by --image again"
    parser.add_argument("--image", **several, required=True, metavar="PICTURE", help=f"{PICTURE}; {ending}")  # type: ignore[arg-type]
    if named:
        parser.add_argument("what", metavar="WHAT", help='the name of what to look for, such as "red cars"')
    add_recipe(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_sampling(parser, max_tokens, form=False)
    add_pictures(parser)


def add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--recipe", metavar="NAME", help="ask the model as this row of the recipes says (default: by the model)"
    )


def add_files(parser: argparse.ArgumentParser, *names: str) -> None:
    """Files that a command writes, of "draw", "coco" and "csv", and --overwrite."""
    helps = {
        "draw": "write the picture with the results drawn over it; of several pictures FILE-1, FILE-2 and so on",
        "coco": "write the boxes as a JSON file of COCO's",
        "csv": "write a table with a row a box",
    }
    for name in names:
        parser.add_argument(f"--{name}", metavar="FILE", help=helps[name])
    parser.add_argument("--overwrite", action="store_true", help="replace these files if they are there")


@dataclass
class Sources:
    """The pictures of a command and their names. `given` are those of `load_pictures`, `pictures` the same with pages
    of PDF documents drawn, once the model is known."""

    names: list[str]
    given: list[Picture | PdfPage]
    pictures: list[Picture] = field(default_factory=list)

    @classmethod
    def of(cls, args: argparse.Namespace) -> Sources:
        """The pictures of --image. Raises `ImageError`."""
        with Spinner("reading pictures"):
            loaded = load_pictures(expand(args.image), source_policy(args), args.color_management)
        return cls([name for name, _ in loaded], [picture for _, picture in loaded])

    def draw(self, args: argparse.Namespace, config: ImageProcessorConfig) -> None:
        """Fills `pictures`. Raises `ImageError`."""
        from ..processing.load_image import load_image

        self.pictures = [load_image(picture, source_policy(args), config) for picture in self.given]

    def finish(self, args: argparse.Namespace, results: Sequence[Any], drawn: Sequence[str], draw: Any) -> None:
        """Says which pictures had no result, and writes the drawings. Raises `OutputError`."""
        for number, name in enumerate(self.names):
            if not any(each.image == number for each in results):
                note(f"{shortened(name)}: no {args.what} found")
        for number, path in enumerate(drawn):
            own = [each for each in results if each.image == number]
            write_picture(path, draw(self.pictures[number], own), args.overwrite)

    def as_objects(self) -> list[dict[str, Any]]:
        pairs = zip(self.names, self.pictures, strict=True)
        return [{"source": shortened(name), "width": each.width, "height": each.height} for name, each in pairs]


def do(args: argparse.Namespace, sources: Sources, make: Any) -> tuple[Any, dict[str, Any]] | None:
    """Loads the model and runs the task that `make` builds of a recipe.

    Returns:
        The result, and the beginning of what --json prints; None where Ctrl-C came first.

    Raises:
        Lfm2VlError: for whatever the user can put right.
    """
    from .. import GenerationOptions
    from ..tasks.run import TaskArguments, recipe_of, run
    from .interrupt import Interrupt

    options = GenerationOptions(**sampling_options(args))
    model, processor = load_model(args)
    recipe: Recipe = recipe_of(model, args.recipe)
    task: Task[Any] = make(recipe)
    sources.draw(args, processor.image_processor.config)
    with Interrupt() as interrupt, Spinner("reading the prompt") as spinner:
        try:
            how: TaskArguments = {"options": options, "stop": interrupt, "progress": spinner.count}
            found = run(model, processor, task, sources.pictures, **how)
        except AnswerError:
            if interrupt.happened:
                return None
            raise
    return found, {"model": chosen_model(args), "recipe": recipe.name, "images": sources.as_objects()}


def print_json(made: Any) -> None:
    from ..tasks.export import plain

    print(for_stdout(json.dumps(plain(made), ensure_ascii=False)), flush=True)


def print_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Columns; numbers to the right."""
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    for line in lines:
        cells = [
            cell.rjust(width) if _is_number(lines[-1][column]) else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        print(for_stdout("  ".join(cells).rstrip()), flush=True)


def _is_number(cell: str) -> bool:
    return cell.replace(".", "", 1).isdigit()


def targets(path: str | None, number: int) -> list[str]:
    """The files of --draw for so many pictures."""
    if path is None:
        return []
    stem, suffix = os.path.splitext(path)
    return [path] if number == 1 else [f"{stem}-{each}{suffix}" for each in range(1, number + 1)]


def check_files(args: argparse.Namespace, paths: Iterable[str | None], drawn: Sequence[str] = ()) -> None:
    """Raises `OutputError` for files that may not be written, and `OptionError` for a format of pictures that is not
    known, before a model is loaded."""
    from ..tasks.drawing import file_format

    for path in drawn:
        file_format(path)
    given = [path for path in (*paths, *drawn) if path is not None]
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


def write_picture(path: str, picture: Picture, overwrite: bool) -> None:
    """In the format that the name's ending says. Raises `OutputError`."""
    from ..tasks.drawing import file_format

    file = io.BytesIO()
    picture.save(file, file_format(path))
    write_file(path, file.getvalue(), overwrite)
