"""The model of commands that are given none: of the environment, of a configuration file, or the bundled one.

The file is `config.toml` in `$XDG_CONFIG_HOME/mlx-lfm2vl` (`~/.config/mlx-lfm2vl`, on macOS too). Its only key is
`model`.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from pathlib import Path

from ..errors import OptionError, first_line

DEMO = "demo"
MODEL_VARIABLE = "MLX_LFM2VL_MODEL"
KEY = "model"


def default_model() -> tuple[str, str]:
    """The model's name, and a note on where it comes from. Raises `OptionError` for a file that is wrong."""
    if name := os.environ.get(MODEL_VARIABLE):
        return name, f"using {name}, which {MODEL_VARIABLE} names"
    if name := _configured(file := config_file()):
        return name, f"using {name}, which {file} names"
    return DEMO, "using the bundled demo model, which only knows simple drawings"


def config_file() -> Path:
    """Where the configuration file is, or would be."""
    folder = os.environ.get("XDG_CONFIG_HOME", "")
    absolute = os.path.isabs(folder)  # others are to be ignored (XDG Base Directory Specification)
    return Path(folder if absolute else os.path.expanduser("~/.config")) / "mlx-lfm2vl" / "config.toml"


def _configured(file: Path) -> str | None:
    """The model that the file names, None if there is no file or no model in it."""
    try:
        data = file.read_bytes()
        text = data.decode("utf-8-sig")
        settings = tomllib.loads(text)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise OptionError(f"{file}: cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise OptionError(f"{file}: line {line} is not UTF-8; save the file as UTF-8") from None
    except ValueError as error:  # tomllib's, which name the line
        raise OptionError(f'{file}: is no TOML: {first_line(error)}; write {KEY} = "owner/name"') from None
    for key in settings:
        if key != KEY:
            near = difflib.get_close_matches(key, [KEY], 1, 0.7)
            way = f"did you mean {KEY}?" if near else f"only {KEY} is one"
            raise OptionError(f"{file}: line {_line(text, key)}: {key} is no setting; {way}")
    name = settings.get(KEY)
    if name is not None and not (isinstance(name, str) and name.strip()):
        raise OptionError(f'{file}: line {_line(text, KEY)}: {KEY} is {name!r}; write {KEY} = "owner/name"')
    return name


def _line(text: str, key: str) -> int:
    """The number of the line where a key or a table of this name stands, as far as it is written plainly."""
    found = re.search(rf"^[ \t]*\[*[ \t]*[\"']?{re.escape(key)}\b", text, re.M)
    return text.count("\n", 0, found.start()) + 1 if found else 1
