"""Colours of a Tk window, light and dark. In: a root window. Out: its widgets drawn in one palette."""

from __future__ import annotations

import tkinter as tk
from tkinter import ttk
from typing import NamedTuple


class Palette(NamedTuple):
    page: str
    bar: str
    field: str
    line: str
    text: str
    faint: str
    accent: str
    on_accent: str
    question: str  # behind what the user asks
    error: str


LIGHT = Palette(
    page="#ffffff",
    bar="#f5f5f7",
    field="#ffffff",
    line="#d2d2d7",
    text="#1d1d1f",
    faint="#6e6e73",
    accent="#0a66d8",
    on_accent="#ffffff",
    question="#eaf1fb",
    error="#c01c28",
)
DARK = Palette(
    page="#1c1c1e",
    bar="#2a2a2d",
    field="#1c1c1e",
    line="#48484c",
    text="#f2f2f4",
    faint="#a0a0a6",
    accent="#3a86f0",
    on_accent="#ffffff",
    question="#26303f",
    error="#ff7b72",
)


def system_is_dark(root: tk.Tk) -> bool:
    """Whether the system draws windows dark, where Tk can tell, which is on a Mac."""
    try:
        return bool(root.tk.getboolean(root.tk.call("tk::unsupported::MacWindowStyle", "isdark", root)))
    except tk.TclError:
        return False


def paint(root: tk.Tk, palette: Palette) -> None:
    """Gives all ttk widgets, and lists of choices that open, the colours of a palette."""
    style = ttk.Style(root)
    style.theme_use("clam")  # the one theme of all systems whose parts all take colours
    style.configure(
        ".",
        background=palette.bar,
        foreground=palette.text,
        fieldbackground=palette.field,
        bordercolor=palette.line,
        lightcolor=palette.field,
        darkcolor=palette.field,
        troughcolor=palette.line,
        arrowcolor=palette.faint,
        insertcolor=palette.text,
        selectbackground=palette.accent,
        selectforeground=palette.on_accent,
        focuscolor=palette.field,
    )
    style.map(".", foreground=[("disabled", palette.faint)])
    style.configure("TButton", background=palette.field, padding=(12, 5))
    style.map("TButton", background=[("disabled", palette.bar), ("active", palette.question)])
    style.configure("Tray.TButton", width=0, padding=5, foreground=palette.faint)
    accent = palette.accent
    style.configure("Accent.TButton", background=accent, foreground=palette.on_accent, focuscolor=accent)
    edges = ("bordercolor", "lightcolor", "darkcolor")
    style.configure("Accent.TButton", **dict.fromkeys(edges, accent))
    for part in ("background", *edges):
        style.map("Accent.TButton", None, **{part: [("disabled", palette.line)]})
    for field in ("TEntry", "TCombobox"):
        style.configure(field, padding=6)
        style.map(field, bordercolor=[("focus", accent)], lightcolor=[("focus", palette.field)])
    style.configure("TCombobox", background=palette.field, arrowsize=14)
    style.configure("Faint.TLabel", foreground=palette.faint)
    style.configure("Error.TLabel", foreground=palette.error)
    style.configure("Horizontal.TProgressbar", arrowsize=6, background=accent)
    style.configure("Horizontal.TProgressbar", bordercolor=palette.line, lightcolor=accent, darkcolor=accent)
    root.tk.eval(  # without arrows
        "ttk::style layout Vertical.TScrollbar"
        " {Vertical.Scrollbar.trough -sticky ns -children {Vertical.Scrollbar.thumb -expand 1 -sticky nswe}}"
    )
    style.configure("Vertical.TScrollbar", background=palette.line, gripcount=0, arrowsize=10)
    style.configure("Vertical.TScrollbar", **dict.fromkeys(("troughcolor", *edges), palette.page))
    style.map("Vertical.TScrollbar", background=[("disabled", palette.page)])
    for option, colour in (
        ("background", palette.field),
        ("foreground", palette.text),
        ("selectBackground", palette.accent),
        ("selectForeground", palette.on_accent),
    ):
        root.option_add(f"*TCombobox*Listbox.{option}", colour)
    root.configure(background=palette.bar)
