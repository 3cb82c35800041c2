"""`mlx-lfm2vl chat`: a conversation at the terminal."""

from __future__ import annotations

import argparse
import contextlib
from dataclasses import replace

from ..errors import Lfm2VlError
from .arguments import chosen_draft, chosen_vision_cache, load_model, sampling_options, source_policy
from .chat_commands import Conversation
from .interrupt import terminable
from .options import add, add_decoding, add_model, add_pictures, add_sampling, add_videos
from .stderr import print_error
from .terminal import Terminal

SUMMARY = "talk about pictures and videos at the terminal"
DESCRIPTION = """\
A conversation at the terminal. Lines go to the model; /help lists what else there is. Ctrl-C stops an answer, Ctrl-D
ends the program.

  mlx-lfm2vl chat --model LiquidAI/LFM2.5-VL-1.6B --image photo.jpg
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add(parser, "--image", default=[], help="pictures of the first message")
    add_videos(parser, "videos of the first message")
    add(parser, "--system --system-prompt")
    parser.add_argument("--verbose", action="store_true", help="print counts, speeds and memory after each answer")
    add(parser, "--control-tokens")
    add_sampling(parser)
    add_decoding(parser)
    add(parser, "--vision-cache")
    add_pictures(parser)


def run(args: argparse.Namespace) -> int:
    """Raises `Lfm2VlError` for what is wrong before the conversation begins; what is wrong in it, where nobody sees and
    mends it at once, ends in exit code 2."""
    from .. import Chat, GenerationOptions

    options = GenerationOptions(**sampling_options(args))
    terminal = Terminal(args.verbose, source_policy(args), args.color_management, args.fps)
    waiting = [*terminal.pictures(args.image), *terminal.pictures(args.video, moving=True)]
    kept = chosen_vision_cache(args)
    options = replace(options, draft=chosen_draft(args))
    model, processor = load_model(args)
    chat = Chat(
        model,
        processor,
        system=args.system,
        options=options,
        control_tokens=args.control_tokens,
        vision_cache=kept,
    )
    conversation = Conversation(chat, terminal, waiting)
    terminal.hint("/help lists the commands")
    failed = False
    with terminable() if terminal.interactive else contextlib.nullcontext(), terminal:
        while (line := terminal.read()) is not None:
            try:
                if not conversation.take(line):
                    break
            except Lfm2VlError as error:
                print_error(str(error))
                failed = not terminal.interactive
            except KeyboardInterrupt:  # not between the tokens of an answer, where it is expected
                if not terminal.interactive:
                    raise
                terminal.hint("(stopped)")
    return 2 if failed else 0
