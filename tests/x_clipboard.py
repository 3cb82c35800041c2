"""Owns the clipboard of an X display and offers a PNG file in it, as browsers and viewers do. `python x_clipboard.py
DISPLAY FILE` prints a line once it is the owner, and goes on until it is killed.

Tk can offer text only, so this is an X client of its own, by ctypes. A file is sent in one piece.
"""

import ctypes
import sys
from ctypes import POINTER, Structure, Union, byref, c_char_p, c_int, c_long, c_ulong, c_void_p
from pathlib import Path

X = ctypes.CDLL("libX11.so.6")
SELECTION_REQUEST, SELECTION_NOTIFY, REPLACE = 30, 31, 0


class SelectionRequest(Structure):
    _fields_ = (
        ("type", c_int),
        ("serial", c_ulong),
        ("send_event", c_int),
        ("display", c_void_p),
        ("owner", c_ulong),
        ("requestor", c_ulong),
        ("selection", c_ulong),
        ("target", c_ulong),
        ("property", c_ulong),
        ("time", c_ulong),
    )


class SelectionNotify(Structure):
    _fields_ = tuple(field for field in SelectionRequest._fields_ if field[0] != "owner")


class Event(Union):
    _fields_ = (("type", c_int), ("request", SelectionRequest), ("notify", SelectionNotify), ("pad", c_long * 24))


X.XOpenDisplay.argtypes, X.XOpenDisplay.restype = [c_char_p], c_void_p
X.XDefaultRootWindow.argtypes, X.XDefaultRootWindow.restype = [c_void_p], c_ulong
X.XCreateSimpleWindow.argtypes = [c_void_p, c_ulong, c_int, c_int, c_int, c_int, c_int, c_ulong, c_ulong]
X.XCreateSimpleWindow.restype = c_ulong
X.XInternAtom.argtypes, X.XInternAtom.restype = [c_void_p, c_char_p, c_int], c_ulong
X.XSetSelectionOwner.argtypes = [c_void_p, c_ulong, c_ulong, c_ulong]
X.XGetSelectionOwner.argtypes, X.XGetSelectionOwner.restype = [c_void_p, c_ulong], c_ulong
X.XNextEvent.argtypes = [c_void_p, POINTER(Event)]
X.XChangeProperty.argtypes = [c_void_p, c_ulong, c_ulong, c_ulong, c_int, c_int, c_char_p, c_int]
X.XSendEvent.argtypes = [c_void_p, c_ulong, c_int, c_long, POINTER(Event)]
X.XFlush.argtypes = [c_void_p]


def main(display_name: str, file: str) -> None:
    data = Path(file).read_bytes()
    display = X.XOpenDisplay(display_name.encode())
    window = X.XCreateSimpleWindow(display, X.XDefaultRootWindow(display), 0, 0, 1, 1, 0, 0, 0)
    clipboard, png = (X.XInternAtom(display, name, 0) for name in (b"CLIPBOARD", b"image/png"))
    X.XSetSelectionOwner(display, clipboard, window, 0)
    assert X.XGetSelectionOwner(display, clipboard) == window
    print("owner", flush=True)
    event = Event()
    while True:
        X.XNextEvent(display, byref(event))
        if event.type != SELECTION_REQUEST:
            continue
        request = event.request
        served = request.target == png
        if served:
            X.XChangeProperty(display, request.requestor, request.property, png, 8, REPLACE, data, len(data))
        answer = Event()
        for name, *_ in SelectionNotify._fields_:
            setattr(answer.notify, name, getattr(request, name))
        answer.notify.type = SELECTION_NOTIFY
        answer.notify.property = request.property if served else 0
        X.XSendEvent(display, request.requestor, 0, 0, byref(answer))
        X.XFlush(display)


if __name__ == "__main__":
    main(*sys.argv[1:])
