"""Files that Pillow makes no pictures of, though people take them for some: how they end and begin, what reads them."""

import os
import re
from typing import Any

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".mpg", ".mpeg", ".flv", ".ogv", ".wmv", ".3gp")
AS_PICTURE = " (--image, images=)"  # how one is given
UNKNOWN = "not a picture in a format that Pillow reads; convert it to PNG or JPEG"
AS_VIDEO = "ask about it with --video or videos=, or as an item of type video in a message"  # the way out
VIDEO = f"not a picture but a video; {AS_VIDEO}"
_STILL_BRANDS = rb"(?:hei|hev|mif|msf|avi[fs]|jpeg|jp2|jpx|crx)"  # of pictures in files that begin as MP4 does
UNDRAWN = {  # formats that Pillow recognises; "EPS" it has drawn by ghostscript, others by a handler of the process
    "BUFR": "BUFR data, which Pillow does not draw; draw them as PNG (with ecCodes or Metview, say)",
    "EPS": "EPS is a program, which is not run here; convert it to PNG (with ghostscript, say)",
    "GRIB": "GRIB data, which Pillow does not draw; draw them as PNG (with ecCodes or Metview, say)",
    "HDF5": "HDF5 data, which Pillow does not draw; save the picture in them as PNG (with h5py, say)",
    "MPEG": VIDEO,
    "WMF": "a Windows metafile, which Pillow draws on Windows only; convert it to PNG (with LibreOffice, say)",
}
OTHERS = (  # how files begin that people take for pictures
    (
        rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?(<!DOCTYPE svg[^>]*>\s*)?<svg",
        "not a picture but an SVG drawing; export it as PNG",
    ),
    (rb"\s*(<!--.*?-->\s*)?<(!doctype )?html", "not a picture but a web page; give the address of the picture in it"),
    (rb"version https://git-lfs", "not a picture but a pointer of git-lfs; fetch it with `git lfs pull`"),
    (rb"....ftyp(?!" + _STILL_BRANDS + rb")|\0\0\x01\xba|\x1aE\xdf\xa3|RIFF....AVI |FLV\x01", VIDEO),
    (rb"OggS|0&\xb2u\x8ef|DKIF", VIDEO),
    (rb"GRIB", UNDRAWN["GRIB"]),
    (
        rb"\x89PNG|\xff\xd8\xff|GIF8[79]a|RIFF....WEBP|II\*\0|MM\0\*",
        "damaged at its beginning; save or download it again",
    ),
    (rb"(\xff\x0a|....JXL )", "in the format JPEG XL, which Pillow does not read; convert it to PNG or JPEG"),
)


def names_video_file(value: Any) -> bool:
    """Whether a path, an address or a data URI says that it is a video: by its suffix, or by its type."""
    if not isinstance(value, (str, os.PathLike)):
        return False
    name = os.fspath(value)
    if not isinstance(name, str):
        return False
    return name[:11].lower() == "data:video/" or name.partition("?")[0].lower().endswith(VIDEO_SUFFIXES)


def is_still(start: bytes) -> bool:
    """Whether a file that begins so is a picture without frames in time."""
    return bool(re.match(rb"\xff\xd8\xff|BM|II\*\0|MM\0\*|....ftyp" + _STILL_BRANDS, start, re.S))
