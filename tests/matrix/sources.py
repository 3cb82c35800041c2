"""Where pictures come from, however it is written: addresses, names, base64, open files, arrays of other libraries."""

from __future__ import annotations

import base64
import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from conftest import load_array
from containers import GREY, NOISE, encoded, samples
from PIL import Image

from mlx_lfm2vl import Engine, GenerationOptions, Lfm2VlImageProcessor, SourcePolicy, generate, load
from mlx_lfm2vl.errors import ImageError
from mlx_lfm2vl.processing.load_image import load_image

from .bench import MODEL, Bench
from .row import Gives, Refused, Row, without_bench

PNG = encoded(Image.fromarray(NOISE), "PNG")
TEXT = base64.b64encode(PNG).decode()
URL_SAFE = base64.urlsafe_b64encode(PNG).decode()
SCREENSHOT = "Screenshot 2026-11-28 at 9.41.00\u202fAM.png"
FEW = GenerationOptions(max_tokens=2)
CLOSED = SourcePolicy(allow_urls=False, allow_paths=False)
assert "+" in TEXT and "/" in TEXT


def named(spelt: Callable[[Path], str], name: str = "a b.png", policy: SourcePolicy | None = None) -> Any:
    """Reads a picture of that name as a function of its path spells it."""
    return lambda bench: load_array(spelt(bench.write(name, PNG)), policy or SourcePolicy())


ADDRESSES = [
    Row("file:///path", named(Path.as_uri), Gives(NOISE)),
    Row("file://localhost/path", named(lambda path: f"file://localhost{path}"), Gives(NOISE)),
    Row("file:/path", named(lambda path: f"file:{path}"), Gives(NOISE)),
    Row("FILE:///path and blanks", named(lambda path: f" FILE://{path}\n"), Gives(NOISE)),
    Row("file:///path of signs that are escaped", named(Path.as_uri, "a#b?c%20 é.png"), Gives(NOISE)),
    Row("a file whose name begins with file:", lambda b: load_array(b.write("file:a.png", PNG).name), Gives(NOISE)),
    Row(
        "file: of another machine",
        without_bench(load_array, "file://server/share/a.png"),
        Refused(ImageError, "file://server/share/a.png", "is a file of another machine", "name a file of this one"),
    ),
    Row(
        "file: that is not there",
        without_bench(load_array, "file:///no/a.png"),
        Refused(ImageError, "/no/a.png", "no such picture"),
    ),
    Row(
        "file: that is a device",
        without_bench(load_array, "file:///dev/zero"),
        Refused(ImageError, "/dev/zero", "is not a regular file", "give a file"),
        seconds=30,
    ),
    Row(
        "file: with a zero byte",
        without_bench(load_array, "file:///a%00.png"),
        Refused(ImageError, "a\\x00.png", "cannot be opened (embedded null byte)"),
    ),
    Row(
        "file: where paths are forbidden",
        named(Path.as_uri, policy=CLOSED),
        Refused(ImageError, "a b.png", "local paths are not allowed here", "give the picture itself"),
    ),
    Row(
        "file:/path where paths are forbidden",
        named(lambda path: f"file:{path}", policy=CLOSED),
        Refused(ImageError, "a b.png", "local paths are not allowed here", "give the picture itself"),
    ),
    Row(
        "http: with blanks where URLs are forbidden",
        without_bench(load_array, " http://127.0.0.1:9/a.png ", CLOSED),
        Refused(ImageError, "http://127.0.0.1:9/a.png", "URLs are not allowed here", "give the picture itself"),
    ),
    Row(
        "another scheme",
        without_bench(load_array, "ftp://example.com/a.png"),
        Refused(ImageError, "ftp://example.com/a.png", "only http, https, file and data addresses and paths"),
    ),
]

BASE64 = {
    "padded": f"data:image/png;base64,{TEXT}",
    "without padding": f"data:image/png;base64,{TEXT.rstrip('=')}",
    "URL-safe": f"data:image/png;base64,{URL_SAFE}",
    "URL-safe without padding": f"data:image/png;base64,{URL_SAFE.rstrip('=')}",
    "with a blank in its head": f"data:image/png; base64,{TEXT}",
    "with a blank behind its comma": f"data:image/png;base64, {TEXT}",
    "with blanks around it": f"  data:image/png;base64,{TEXT}\n",
    "in lines": f"data:image/png;base64,{TEXT[:76]}\r\n{TEXT[76:]}",
    "with escapes": f"data:image/png;base64,{TEXT.replace('+', '%2B').replace('=', '%3D')}",
    "with parameters": f"data:image/png;name=a.png;charset=utf-8;base64,{TEXT}",
    "in capitals": f"DATA:IMAGE/PNG;BASE64,{TEXT}",
    "without an address": TEXT,
    "without an address or padding, URL-safe": URL_SAFE.rstrip("="),
    "without an address, in lines": base64.encodebytes(PNG).decode(),
}
SAMPLES = samples()


def mode_of(text: str) -> str:
    return load_image(text, CLOSED).mode


TEXTS = [
    *(Row(f"base64 {name}", without_bench(load_array, text, CLOSED), Gives(NOISE)) for name, text in BASE64.items()),
    *(
        Row(
            f"base64 of {kind} without an address",
            without_bench(mode_of, base64.b64encode(SAMPLES[kind].data).decode()),
            Gives("RGB"),
        )
        for kind in ("jpeg", "gif", "bmp", "tiff raw")
    ),
    Row(
        "base64 of too many bytes without an address",
        without_bench(load_array, TEXT, SourcePolicy(max_bytes=100)),
        Refused(ImageError, TEXT[:40], "more than 100 bytes", "make it smaller"),
    ),
    Row(
        "base64 of no picture",
        without_bench(load_array, "data:;base64,AAAA"),
        Refused(ImageError, "data:;base64,AAAA", "not a picture", "convert it"),
    ),
    Row(
        "base64 of a wrong length",
        without_bench(load_array, "data:;base64,AAAAA"),
        Refused(ImageError, "data:;base64,AAAAA", "is not base64", "encode the bytes of a picture file"),
    ),
]


def screenshot(typed: str) -> Callable[[Bench], Any]:
    def act(bench: Bench) -> Any:
        bench.write(SCREENSHOT, PNG)
        return load_array(typed)

    return act


def twins(bench: Bench) -> Any:
    bench.write("a\u202fb.png", PNG)
    bench.write("a\u00a0b.png", PNG)
    return load_array("a b.png")


def by_command(*words: str) -> Callable[[Bench], Any]:
    """Whether a command answers about pictures in a folder, which is the home too."""

    def act(bench: Bench) -> Any:
        bench.monkeypatch.setenv("HOME", str(bench.folder))
        for name in (SCREENSHOT, "scans [1]/a.png", "scans [1]/b.png"):
            bench.write(name, PNG)
        bench.write("prompt.txt", "What?")
        ended = bench.cli(*words, "--model", MODEL, "--max-tokens", 1)
        return ended.code, ended.err.replace(str(bench.folder), "~")

    return act


NAMES = [
    Row("a screenshot's name with common blanks", screenshot(SCREENSHOT.replace("\u202f", " ")), Gives(NOISE)),
    Row("a screenshot's own name", screenshot(SCREENSHOT), Gives(NOISE)),
    Row("letters in parts", lambda b: (b.write("e\u0301.png", PNG), load_array("\u00e9.png"))[1], Gives(NOISE)),
    Row("two names that look the same", twins, Refused(ImageError, "a b.png", "no such picture")),
    Row(
        "a screenshot where paths are forbidden",
        lambda b: (b.write(SCREENSHOT, PNG), load_array(SCREENSHOT.replace("\u202f", " "), CLOSED))[1],
        Refused(ImageError, "Screenshot", "local paths are not allowed here", "give the picture itself"),
    ),
    *(
        Row(f"command: {name}", by_command(*words), Gives((0, notes)))
        for name, words, notes in (
            ("a screenshot", ("generate", "--image", SCREENSHOT.replace("\u202f", " ")), ""),
            ("a pattern below brackets", ("generate", "--image", "scans [1]/*.png"), ""),
            ("a home behind =", ("generate", "--image=~/scans [1]/a.png"), ""),
            ("a pattern in a home behind =", ("generate", "--image=~/scans [1]/?.png"), ""),
            ("a prompt's file in a home behind =", ("generate", "--prompt-file=~/prompt.txt"), ""),
            (
                "batch of a home's folder to a home's file",
                ("batch", "~/scans [1]", "--output=~/o.jsonl"),
                "mlx-lfm2vl: ~/o.jsonl: 2 rows\n",
            ),
        )
    ),
]


def opened(mode: str, at: int = 0) -> Callable[[Bench], Any]:
    def act(bench: Bench) -> Any:
        with open(bench.write("a.png", PNG), mode) as file:
            file.seek(at)
            array = load_array(file)
            return np.array_equal(array, load_array(file)) and file.tell()

    return act


def closed(bench: Bench) -> Any:
    with open(bench.write("a.png", PNG), "rb") as file:
        pass
    return load_array(file)


def piped(_: Bench) -> Any:
    ends = os.pipe()
    os.close(ends[1])
    with open(ends[0], "rb") as file:
        return load_array(file)


def endless(_: Bench) -> Any:
    with open("/dev/zero", "rb") as file:
        return load_array(file, SourcePolicy(max_bytes=1000))


class Upload:
    """A web framework's file, whose read must be awaited."""

    async def read(self, size: int = -1) -> bytes:
        return PNG


def ended_buffer() -> io.BytesIO:
    buffer = io.BytesIO()
    Image.fromarray(NOISE).save(buffer, "PNG")  # which leaves it at its end
    return buffer


def buffer_of_the_caller(_: Bench) -> Any:
    """Whether an engine answers about what a buffer held when the request was made."""
    buffer = io.BytesIO(PNG)
    with Engine(lambda: load(MODEL)) as engine:
        request = engine.submit("What?", buffer, options=FEW)
        buffer.close()
        return len(list(request)) > 0


OPEN_FILES = [
    Row("BytesIO", lambda _: load_array(io.BytesIO(PNG)), Gives(NOISE)),
    Row("BytesIO at its end", lambda _: load_array(ended_buffer()), Gives(NOISE)),
    Row("BytesIO where paths and URLs are forbidden", lambda _: load_array(io.BytesIO(PNG), CLOSED), Gives(NOISE)),
    Row("BytesIO that is closed after submit", buffer_of_the_caller, Gives(True)),
    Row("BytesIO that is empty", lambda _: load_array(io.BytesIO()), Refused(ImageError, "BytesIO", "no bytes in it")),
    Row(
        "BytesIO of too many bytes",
        lambda _: load_array(io.BytesIO(PNG), SourcePolicy(max_bytes=99)),
        Refused(ImageError, "BytesIO", "more than 99 bytes", "make it smaller"),
    ),
    Row("an open file, twice, left where it stood", opened("rb", 7), Gives(7)),
    Row("a file opened as text", opened("r"), Refused(ImageError, "a.png", "'rb'")),
    Row("a file that is closed", closed, Refused(ImageError, "a.png", "closed file", "give its bytes")),
    Row("a pipe", piped, Refused(ImageError, "file", "cannot be read from its start", "give its bytes")),
    Row(
        "a file that must be awaited",
        lambda _: load_array(Upload()),
        Refused(ImageError, "file Upload", "its read() must be awaited", "give the bytes"),
    ),
    Row(
        "/dev/zero, opened",
        endless,
        Refused(ImageError, "/dev/zero", "more than 1000 bytes", "make it smaller"),
        seconds=30,
    ),
]


class Tensor:
    """As much of torch's tensor as is asked of one, around an array; `Tensor.__module__` is torch's."""

    def __init__(self, array: np.ndarray, dtype: str = "torch.uint8", where: str = "cuda"):
        self.array, self.dtype, self.where, self.ndim = array, dtype, where, array.ndim

    def detach(self) -> Tensor:
        return self

    def cpu(self) -> Tensor:
        return Tensor(self.array, self.dtype, "cpu")

    def float(self) -> Tensor:
        return Tensor(self.array.astype(np.float32), "torch.float32", self.where)

    def numpy(self) -> np.ndarray:
        if self.where != "cpu" or self.dtype == "torch.bfloat16":
            raise TypeError("can't convert")
        return self.array


Tensor.__module__ = "torch"
COARSE = (GREY // 128 * 128 / 255).astype(np.float32)  # few bits, which bfloat16 holds nearly


def without_mlx(bench: Bench) -> Any:
    """Whether a tensor is read by a program that has imported neither library."""
    code = (
        "import sys, numpy as np; from mlx_lfm2vl.processing.load_image import load_image;"
        "load_image(np.zeros((4, 4, 3), np.uint8)); print('mlx.core' in sys.modules, 'torch' in sys.modules)"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def sizes(batch: Any) -> list[list[int]]:
    return Lfm2VlImageProcessor()(batch)["spatial_shapes"].tolist()


ARRAYS = [
    Row("an MLX array", lambda _: load_array(mx.array(NOISE)), Gives(NOISE)),
    Row("an MLX array with the channels first", lambda _: load_array(mx.array(NOISE).transpose(2, 0, 1)), Gives(NOISE)),
    Row("an MLX array of fractions", lambda _: load_array(mx.array(NOISE) / 255), Gives(NOISE)),
    Row(
        "an MLX array of bfloat16",
        lambda _: int(np.abs(load_array(mx.array(COARSE).astype(mx.bfloat16)) - load_array(COARSE).astype(int)).max()),
        Gives(0),
    ),
    Row(
        "an MLX array of wide integers",
        lambda _: load_array(mx.array(NOISE).astype(mx.int32)),
        Refused(ImageError, "array", "expected uint8 in 0..255 or floats in 0..1"),
    ),
    Row(
        "an MLX array of too many pixels",
        lambda _: load_array(mx.array(NOISE), SourcePolicy(max_pixels=9)),
        Refused(ImageError, "array", "16x16 is more than 9 pixels", "make it smaller"),
    ),
    Row("a tensor of a GPU", lambda _: load_array(Tensor(NOISE.transpose(2, 0, 1))), Gives(NOISE)),
    Row(
        "a tensor of bfloat16",
        lambda _: load_array(Tensor(COARSE, "torch.bfloat16")),
        Gives(load_array(COARSE)),
    ),
    Row("a batch of tensors", lambda _: sizes(Tensor(np.stack([NOISE] * 3))), Gives(sizes([NOISE] * 3))),
    Row("a batch of MLX arrays", lambda _: sizes(mx.array(np.stack([NOISE] * 3))), Gives(sizes([NOISE] * 3))),
    Row(
        "an answer about an MLX array",
        lambda _: generate(*load(MODEL), "What?", mx.array(NOISE), options=FEW),
        Gives(generate(*load(MODEL), "What?", NOISE, options=FEW)),
    ),
    Row("no library is imported for it", without_mlx, Gives("False False\n")),
]

ROWS = [*ADDRESSES, *TEXTS, *NAMES, *OPEN_FILES, *ARRAYS]
