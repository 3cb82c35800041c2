"""The model classes as the reference's users know them, `from_pretrained`, `save_pretrained`, `generate`, and `load`.

The computation is in `models/`; here it meets files and the decode loop.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from .backends import Backend
from .backends.memory import WiredLimit
from .config import GenerationConfig, Lfm2VlConfig, read_json
from .errors import ConfigError, InputError, OptionError
from .generation.decode import Prompt, decode, prefill
from .generation.defaults import generation_config, positions_left
from .generation.options import GenerationOptions
from .generation.sampler import UniformSampler
from .generation.watch import check_callable
from .hub import Progress, resolve
from .models import lfm2_vl
from .models.cache import Cache
from .models.lfm2_vl import Array
from .processing.processor import Lfm2VlProcessor
from .weights.load import load_model
from .weights.save import save_model


class Lfm2VlModel(lfm2_vl.Lfm2VlModel):
    """`models.Lfm2VlModel` that can be loaded by name."""

    @classmethod
    def from_pretrained(
        cls,
        path_or_repo: str | os.PathLike[str],
        *,
        dtype: str | mx.Dtype | None = None,
        backend: str | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
    ) -> Lfm2VlModel:
        """As `Lfm2VlForConditionalGeneration.from_pretrained`."""
        folder = resolve(
            path_or_repo, revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only
        )
        return load_model(folder, dtype=dtype, backend=backend, model_class=cls, prefix="model.")


class Lfm2VlForConditionalGeneration(lfm2_vl.Lfm2VlForConditionalGeneration):
    """`models.Lfm2VlForConditionalGeneration` that can be loaded by name, saved, and generates."""

    generation_config: GenerationConfig
    load_note: str = ""  # a sentence, if the weights in memory are not those of the file
    checkpoint_key: str = ""  # of the files that it was loaded from
    backend: Backend  # what computes it, "mlx" or "numpy"

    @classmethod
    def from_pretrained(
        cls,
        path_or_repo: str | os.PathLike[str],
        *,
        dtype: str | mx.Dtype | None = None,
        backend: str | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        progress: Progress | None = None,
    ) -> Lfm2VlForConditionalGeneration:
        """From a folder, a hub repository or `demo`; in `float32`, `float16`, `bfloat16`, or "auto", the dtype of its
        file. None is "auto", but float32 on the backend numpy, which computes in it alone; quantised weights become
        dense then. `load_note` says what was done. `backend` as for `load`.

        `progress` as for `load`. There is no `device_map`: MLX's memory is unified. Raises `HubError`, `ConfigError`,
        `WeightsError`.
        """
        folder = resolve(
            path_or_repo,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            progress=progress,
        )
        model = load_model(folder, dtype=dtype, backend=backend, model_class=cls, progress=progress)
        file = folder / "generation_config.json"
        config = GenerationConfig.from_dict(read_json(file), str(file)) if file.is_file() else GenerationConfig()
        if not config.eos_token_ids:
            config = replace(config, eos_token_ids=model.config.eos_token_ids)
        model.generation_config = config
        return model

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes weights, config.json and generation_config.json in MLX's layout, in place of older ones in the folder
        (the processor has its own `save_pretrained`). Raises `OutputError`."""
        config = generation_config(self)
        sampling = {
            name: getattr(config, name)
            for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "bos_token_id", "pad_token_id")
            if getattr(config, name) is not None
        }
        ids = list(config.eos_token_ids)
        if ids:
            sampling["eos_token_id"] = ids[0] if len(ids) == 1 else ids
        save_model(self, Path(folder), self.config.to_dict(), {**sampling, "do_sample": config.do_sample})

    def generate(
        self,
        input_ids: Array,
        attention_mask: Array | None = None,
        pixel_values: Array | None = None,
        spatial_shapes: Array | None = None,
        pixel_attention_mask: Array | None = None,
        *,
        max_new_tokens: int = 512,
        do_sample: bool | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        eos_token_id: int | list[int] | None = None,
        pad_token_id: int | None = None,
        seed: int | None = None,
    ) -> mx.array:
        """The reference's `generate`: what the processor returned in, (B, prompt + new) token ids out.

        Rows of a batch must be padded on the left. A row that has ended is filled with `pad_token_id`; the work stops
        when all have. Sampling as in `GenerationOptions`; `do_sample=False` is greedy whatever the checkpoint says.
        """
        ids = np.array(input_ids)
        if ids.ndim != 2 or not ids.size:
            raise InputError(f"input_ids has shape {ids.shape}, expected (batch, length) with at least one token")
        config = generation_config(self)
        if do_sample is False and temperature:
            raise OptionError(f"do_sample is False, but temperature is {temperature}")
        options = GenerationOptions(
            max_tokens=max_new_tokens,
            temperature=0.0 if do_sample is False else temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
        ).resolve(replace(config, do_sample=True) if do_sample else config)
        mask = None if attention_mask is None else np.array(attention_mask)
        prompt = Prompt(ids, mask, pixel_values, spatial_shapes, answer=options.max_tokens)
        ends = _ends(eos_token_id, config)
        pad = pad_token_id if pad_token_id is not None else config.pad_token_id
        pad = pad if pad is not None else (ends[0] if ends else 0)

        cache = Cache(self.config.text_config)
        sampler = UniformSampler(options)
        sampler.observe(mx.array(ids), self.config.text_config.vocab_size)
        limit = min(options.max_tokens, positions_left(self, ids.shape[1]))
        ended = np.zeros(len(ids), bool)
        columns = [ids]
        with WiredLimit():
            for tokens in decode(self, prompt, cache, prefill(self, prompt, cache), sampler, limit):
                column = np.where(ended, pad, np.array(tokens))
                columns.append(column[:, None].astype(ids.dtype))
                ended |= np.isin(column, ends)
                if ended.all():
                    break
        return mx.array(np.concatenate(columns, axis=1))


def _ends(eos_token_id: int | list[int] | None, config: GenerationConfig) -> list[int]:
    if eos_token_id is None:
        return list(config.eos_token_ids)
    return [eos_token_id] if isinstance(eos_token_id, int) else list(eos_token_id)


def load(
    path_or_repo: str | os.PathLike[str],
    *,
    dtype: str | mx.Dtype | None = None,
    backend: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    progress: Progress | None = None,
    **image_overrides: Any,
) -> tuple[Lfm2VlForConditionalGeneration, Lfm2VlProcessor]:
    """Model and processor of a folder, a hub repository, or `demo`.

    Args:
        path_or_repo: the folder, the repository, or `demo`.
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
        image_overrides: change the checkpoint's picture policy for all calls (`max_image_tokens=128`,
            `do_image_splitting=False` ...).

    Raises:
        Lfm2VlError: one of the library's typed errors.
    """
    check_callable("progress", progress)
    folder = resolve(path_or_repo, revision=revision, token=token, local_files_only=local_files_only, progress=progress)
    expected = Lfm2VlConfig.from_dict(read_json(folder / "config.json"), str(folder / "config.json"))
    processor = Lfm2VlProcessor.from_pretrained(folder, **image_overrides)
    _check_agreement(folder, expected, processor)
    model = Lfm2VlForConditionalGeneration.from_pretrained(folder, dtype=dtype, backend=backend, progress=progress)
    config = model.generation_config
    if not config.eos_token_ids and processor.tokenizer.eos_token_id is not None:
        model.generation_config = replace(config, eos_token_ids=(processor.tokenizer.eos_token_id,))
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
