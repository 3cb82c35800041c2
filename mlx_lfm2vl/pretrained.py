"""`load` and `load_draft`: model and processor of a checkpoint, and what drafts for it, by their names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Unpack

import mlx.core as mx

from .compat.auto_models import MODELS
from .compat.auto_processors import FAMILIES
from .compat.models import Lfm2VlForConditionalGeneration
from .compat.processors import Lfm2VlProcessor
from .config import GenerationConfig, ModelConfig, config_in, is_dspark, read_json
from .errors import ConfigError, LoadCancelledError
from .generation.arguments import ProcessorArguments
from .generation.draft_model import DraftModel
from .generation.watch import Stop, check_callable
from .hub import Progress, resolve
from .models.dspark import DSparkDraftModel
from .threads import cancellation
from .weights.dspark import load_dspark


def load(
    path_or_repo: str | os.PathLike[str],
    *,
    adapter: str | os.PathLike[str] | None = None,
    dtype: str | mx.Dtype | None = None,
    backend: str | None = None,
    kv_bits: int | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    progress: Progress | None = None,
    stop: Stop | None = None,
    group: mx.distributed.Group | None = None,
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
        kv_bits: 8 or 4 quantise the keys and values of answers, which take about a half or a quarter of the memory of
            16 bits then; the states of convolutions stay exact. None leaves them as they are.
        revision: branch, tag or commit of the repository.
        token: for the hub.
        local_files_only: never ask the hub.
        progress: `progress(what, done, total)` is told of "files" and bytes ("download") that are fetched, maybe from
            other threads, and of the bytes of "weights" that are read.
        stop: asked in the calling thread, many times a second during a download and between tensors; if it returns
            true, all is left at once. What has been downloaded is taken up by the next call.
        group: of `mx.distributed.init()`, whose ranks hold and compute a part of the model each. All of them must make
            the same calls, sampling with a seed (docs/distributed.md).
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
        expected = config_in(folder)
        processor = FAMILIES[type(expected)].processor.from_pretrained(folder, **processor_arguments)
        _check_agreement(folder, expected, processor)
        model = MODELS[type(expected)].from_pretrained(
            folder, adapter=adapter, dtype=dtype, backend=backend, progress=progress, group=group, kv_bits=kv_bits
        )
    model.name_or_path = os.fspath(path_or_repo)
    file = folder / "generation_config.json"
    stated = GenerationConfig.from_dict(read_json(file), str(file)) if file.is_file() else GenerationConfig()
    if ids := stated.end_tokens(expected, processor.tokenizer.eos_token_id):
        model.generation_config.eos_token_id = ids[0] if len(ids) == 1 else ids
    return model, processor


def load_draft(
    path_or_repo: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    progress: Progress | None = None,
) -> DraftModel | DSparkDraftModel:
    """A draft, which proposes tokens to a model (`GenerationOptions.draft`), of a folder, a hub repository, or `demo`.

    Args:
        path_or_repo: a smaller model of the same tokens, or a DSpark drafter, which its config.json tells apart.
        revision, token, local_files_only, progress: as for `load`.

    Raises:
        Lfm2VlError: one of the library's typed errors.
    """
    folder = resolve(path_or_repo, revision=revision, token=token, local_files_only=local_files_only, progress=progress)
    if is_dspark(read_json(folder / "config.json")):
        return load_dspark(folder)
    return DraftModel(load(folder, progress=progress)[0])


def _check_agreement(folder: Path, config: ModelConfig, processor: Lfm2VlProcessor) -> None:
    """Raises `ConfigError` where the files say different things of what model and processor must share, and
    `TokenizerError` where a token that stands around pictures is missing."""
    of_processor = processor.shared_numbers()
    for what, of_model in config.shared_numbers().items():
        if of_model != of_processor[what]:
            said = f"{of_model} in config.json, {of_processor[what]} in the processor's files"
            raise ConfigError(f"{folder}: the {what} is {said}")
    if processor.use_image_special_tokens:
        for name in ("image_start_token_id", "image_end_token_id", "image_thumbnail_token_id"):
            getattr(processor.tokenizer, name)  # raises if there is none: it would be spelt out in letters
