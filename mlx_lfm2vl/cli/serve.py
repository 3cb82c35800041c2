"""`mlx-lfm2vl serve`: models for programs that speak the protocols of OpenAI or Anthropic."""

from __future__ import annotations

import argparse
import os
import warnings
from typing import Any

from ..errors import AnswerWarning, OptionError
from .arguments import MODEL_VARIABLE, chosen_draft, default_model, picture_overrides, vision_cache_folder
from .options import add, add_decoding, add_picture_policy, real, whole
from .stderr import note

SUMMARY = "answer programs that speak OpenAI's or Anthropic's protocol"
KEY_VARIABLE = "MLX_LFM2VL_API_KEY"  # of the environment: the key that callers must send
DESCRIPTION = """\
Answers HTTP requests in the protocols of OpenAI and Anthropic, for this machine only unless told otherwise. Each model
is loaded when it is first asked for. Ctrl-C ends the server. Needs pip install starlette uvicorn h11.

  mlx-lfm2vl serve
  mlx-lfm2vl serve LiquidAI/LFM2.5-VL-450M LiquidAI/LFM2.5-VL-1.6B --keep-alive 300
  curl http://127.0.0.1:8080/v1/models
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "models",
        nargs="*",
        metavar="MODEL",
        help=f"folders, hub repositories or 'demo' (default: what {MODEL_VARIABLE} names, else demo)",
    )
    parser.add_argument(
        "--model", action="append", default=[], metavar="MODEL", help="the same, by an option; may be given again"
    )
    add(parser, "--adapter")
    group = parser.add_argument_group("access")
    group.add_argument("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1, this machine)")
    group.add_argument("--port", type=whole(0, 65535), default=8080, help="port; 0 is one that is free (default: 8080)")
    group.add_argument(
        "--api-key-file", metavar="FILE", help=f"file with the key that callers must send (default: {KEY_VARIABLE})"
    )
    group.add_argument(
        "--no-api-key", action="store_true", help="let other machines ask without a key, where --host lets them"
    )
    group.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME", help="a name of this machine; may be given again"
    )
    group.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="web pages that may ask, such as https://app.example; may be given again",
    )
    group.add_argument(
        "--allow-urls",
        action="store_true",
        help="fetch pictures and videos from public http(s) addresses that callers name",
    )
    group = parser.add_argument_group("limits")
    group.add_argument("--max-queue", type=whole(1), default=128, metavar="N", help="requests that may wait (128)")
    group.add_argument("--max-batch", type=whole(1), default=8, metavar="N", help="requests answered together (8)")
    group.add_argument("--max-body", type=whole(1), default=64, metavar="MB", help="largest request, in MB (64)")
    group.add_argument(
        "--max-pictures", type=whole(0), default=64, metavar="N", help="of a request, pages of PDFs counted (64)"
    )
    group.add_argument("--max-videos", type=whole(0), default=4, metavar="N", help="of a request (4)")
    group.add_argument("--max-pixels", type=whole(1), default=50_000_000, metavar="N", help="of a picture (50 million)")
    group.add_argument("--max-connections", type=whole(1), default=512, metavar="N", help="at the same time (512)")
    group.add_argument(
        "--deadline", type=real(0, above=True), metavar="SECONDS", help="longest time of an answer (default: any)"
    )
    group.add_argument(
        "--shutdown-seconds",
        type=real(0),
        default=10.0,
        metavar="SECONDS",
        help="that answers may still take when the server is told to stop (10)",
    )
    group = parser.add_argument_group("models")
    group.add_argument(
        "--memory-budget",
        type=real(0, above=True),
        metavar="GB",
        help="of the weights of all loaded models; those used least recently go first (default: what fits)",
    )
    group.add_argument(
        "--keep-alive",
        type=real(0),
        metavar="SECONDS",
        help="let go of a model that nobody has asked for so long (default: never)",
    )
    add_decoding(group)
    add(group, "--vision-cache")
    add_picture_policy(parser)


def run(args: argparse.Namespace) -> int:
    """Raises `Lfm2VlError` for whatever the user can put right."""
    from ..processing.fetch import SourcePolicy

    try:
        from ..server.access import Access
        from ..server.api_request import Rules
        from ..server.limits import Limits
        from ..server.log import StderrLog
        from ..server.models import ModelsSettings
        from ..server.run import EVERYWHERE, Server, Settings
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in ("starlette", "uvicorn", "h11"):
            raise
        raise OptionError(f"serve needs {missing}; pip install starlette uvicorn h11") from None
    limits = Limits(
        body_bytes=args.max_body * 2**20,
        pictures=args.max_pictures,
        videos=args.max_videos,
        pixels=args.max_pixels,
        connections=args.max_connections,
    )
    policy = SourcePolicy(
        allow_urls=args.allow_urls,
        allow_paths=False,
        max_pixels=args.max_pixels,
        max_video_pixels=limits.video_pixels,
        max_bytes=limits.body_bytes,
        max_pages=max(limits.pictures, 1),
        max_pictures=max(limits.pictures, 1),
    )
    models = [*args.models, *args.model]
    if args.adapter is not None and len(models) > 1:
        raise OptionError("--adapter is for one model; serve that one alone, or fuse both (mlx-lfm2vl fuse)")
    if args.draft_model is not None and len(models) > 1:
        raise OptionError("--draft-model is for one model; serve that one alone, or use --draft")
    engine = {
        "max_queue": args.max_queue,
        "max_batch": args.max_batch,
        "vision_cache_folder": vision_cache_folder(args),
    }
    load: dict[str, Any] = {
        "source_policy": policy,
        "adapter": args.adapter,
        "kv_bits": args.kv_bits,
        "group": args.group,
        **picture_overrides(args),
    }
    settings = Settings(
        models=models or [default_model()[0]],
        host=args.host,
        port=args.port,
        access=Access(_key(args), tuple(name.lower() for name in args.allow_host), tuple(args.allow_origin)),
        open_to_all=args.no_api_key,
        rules=Rules(limits, args.allow_urls),
        model_settings=ModelsSettings(
            None if args.memory_budget is None else int(args.memory_budget * 1e9),
            args.keep_alive,
            load,
            engine,
            args.lead,
            chosen_draft(args),
        ),
        deadline=args.deadline,
        shutdown_seconds=args.shutdown_seconds,
    )
    log = StderrLog()
    server = Server(settings, log)
    others = f" and at all addresses of this machine, port {server.port}" if args.host in EVERYWHERE else ""
    where = f"{server.url}/v1{others}, with a page for people at {server.url}/"
    note(f"serving {', '.join(settings.models)} at {where} (Ctrl-C ends it)")
    warnings.simplefilter("ignore", AnswerWarning)  # it quotes the answer
    try:
        server.run()
    finally:
        log.close()
    return 0


def _key(args: argparse.Namespace) -> str | None:
    """The API key, if there is one. Raises `OptionError`."""
    key = os.environ.get(KEY_VARIABLE)
    if args.api_key_file is not None:
        try:
            with open(args.api_key_file, encoding="utf-8") as file:
                key = file.read(10_000).strip()
        except (OSError, UnicodeDecodeError) as error:
            raise OptionError(f"{args.api_key_file}: cannot be read ({error}); name a text file with the key") from None
    if key is not None and not key:
        raise OptionError("the API key is empty; write a long random text, or leave it out")
    return key
