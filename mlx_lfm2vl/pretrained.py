"""`load`: model and processor of a checkpoint, by its name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Unpack

import mlx.core as mx

from .compat.models import Lfm2VlForConditionalGeneration
from .compat.processors import Lfm2VlProcessor
from .config import GenerationConfig, Lfm2VlConfig, read_json
from .errors import ConfigError, LoadCancelledError
from .generation.arguments import ProcessorArguments
from .generation.watch import Stop, check_callable
from .hub import Progress, resolve
from .threads import cancellation


def load(
    path_or_repo: str | os.PathLike[str],
    *,
    adapter: str | os.PathLike[str] | None = None,
    dtype: str | mx.Dtype | None = None,
    backend: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    progress: Progress | None = None,
    stop: Stop | None = None,
    **processor_arguments: Unpack[ProcessorArguments],
) -> tuple[Lfm2VlForConditionalGeneration, Lfm2VlProcessor]:
    """Model and processor of a folder, a hub repository, or `demo`.

    Args:
        path_or_repo: the folder, the repository, or `demo`.
        adapter: a folder with an adapter of PEFT or mlx-lm (LoRA or DoRA) for this model. Dense weights are merged with
            it; beside quantised ones it is computed.
        dtype: "float32", "float16", "bfloat16" or "auto", the dtype of the file. None is "auto", but float32 on the
            backend numpy.
        backend: "mlx" computes by MLX's own functions on its default device; "numpy" is faster where that is a CPU,
            and for inference only; "auto" is numpy on a CPU and mlx elsewhere. None is what the environment's
            `MLX_LFM2VL_BACKEND` says, or "auto".
        revision: branch, tag or commit of the repository.
        token: for the hub.
        local_files_only: never ask the hub.
        progress: `progress(what, done, total)` is told of "files" and bytes ("download") that are fetched, maybe from
            other threads, and of the bytes of "weights" that are read.
        stop: asked in the calling thread, many times a second during a download and between tensors; if it returns
            true, all is left at once. What has been downloaded is taken up by the next call.
        processor_arguments: change the checkpoint's picture policy for all calls (`max_image_tokens=128`,
            `do_image_splitting=False` ...); `source_policy`, `chat_template`, `padding_side` and
            `use_image_special_tokens` as for `Lfm2VlProcessor.from_pretrained`.

    Raises:
        LoadCancelledError: `stop` returned true.
        Lfm2VlError: another of the library's typed errors.
    """
    check_callable("progress", progress)
    check_callable("stop", stop)

    def check() -> None:
        if stop is not None and stop():
            raise LoadCancelledError(f"{path_or_repo}: loading was stopped before the model was whole")

    with cancellation(check):
        folder = resolve(
            path_or_repo, revision=revision, token=token, local_files_only=local_files_only, progress=progress
        )
        expected = Lfm2VlConfig.from_dict(read_json(folder / "config.json"), str(folder / "config.json"))
        processor = Lfm2VlProcessor.from_pretrained(folder, **processor_arguments)
        _check_agreement(folder, expected, processor)
        model = Lfm2VlForConditionalGeneration.from_pretrained(
            folder, adapter=adapter, dtype=dtype, backend=backend, progress=progress
        )
    model.name_or_path = os.fspath(path_or_repo)
    file = folder / "generation_config.json"
    stated = GenerationConfig.from_dict(read_json(file), str(file)) if file.is_file() else GenerationConfig()
    if ids := stated.end_tokens(expected, processor.tokenizer.eos_token_id):
        model.generation_config.eos_token_id = ids[0] if len(ids) == 1 else ids
    return model, processor


def _check_agreement(folder: Path, config: Lfm2VlConfig, processor: Lfm2VlProcessor) -> None:
    """Raises `ConfigError` where the files say different things of what model and processor must share, and
    `TokenizerError` where a token that stands around pictures is missing."""
    pictures = processor.image_processor.config
    for what, of_model, of_processor in (
        ("the patch size", config.vision_config.patch_size, pictures.encoder_patch_size),
        ("the downsample factor", config.downsample_factor, pictures.downsample_factor),
        ("the image token's id", config.image_token_id, processor.image_token_id),
    ):
        if of_model != of_processor:
            raise ConfigError(f"{folder}: {what} is {of_model} in config.json, {of_processor} in the processor's files")
    if processor.use_image_special_tokens:
        for name in ("image_start_token_id", "image_end_token_id", "image_thumbnail_token_id"):
            getattr(processor.tokenizer, name)  # raises if there is none: it would be spelt out in letters
