"""config.json, generation_config.json and processor_config.json as the loader meets them: with weights beside them."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable

from mlx_lfm2vl.config import GenerationConfig, Lfm2VlConfig, ProcessorConfig, read_json
from mlx_lfm2vl.errors import ConfigError, WeightsError
from mlx_lfm2vl.weights.load import open_model

from .folders import GOLDEN, SPLIT, FolderEntrance, change_json, place

MODEL = GOLDEN / "gen25"


@functools.cache
def seeds() -> dict[str, bytes]:
    """The same model in the spellings of several generations."""
    now = json.loads((MODEL / "config.json").read_bytes())
    text = now["text_config"]
    written = Lfm2VlConfig.from_dict(now).to_dict()
    first = {**written, "model_type": "lfm2-vl", "image_token_index": written["image_token_id"]}
    first["text_config"] = {**written["text_config"], "rope_theta": 1e6}
    del first["image_token_id"], first["text_config"]["rope_parameters"]
    attention = [i for i, kind in enumerate(written["text_config"]["layer_types"]) if kind == "full_attention"]
    numbered = {**now, "text_config": {**text, "full_attn_idxs": attention}}
    numbered["text_config"].pop("layer_types", None)
    quantised = {**now, "quantization": {"group_size": 64, "bits": 4, "mode": "affine"}}
    others = [(MODEL / name).read_bytes() for name in ("generation_config.json", "processor_config.json")]
    made = {"published": now, "written": written, "first": first, "numbered": numbered, "quantised": quantised}
    return {name: SPLIT.join([json.dumps(config).encode(), *others]) for name, config in made.items()}


def run(data: bytes) -> int:
    """All three are read whatever becomes of the others; refused if one of them is."""
    model, generation, processor = [*data.split(SPLIT, 2), b"{}", b"{}"][:3]
    place("config", "processor_config.json", processor)
    place("config", "generation_config.json", generation)
    made = place("config", "config.json", model)
    if not (made / "model.safetensors").exists():
        shutil.copy(MODEL / "model.safetensors", made)
    refusals: list[Exception] = []
    acts: tuple[Callable[[], object], ...] = (
        lambda: open_model(made),
        lambda: GenerationConfig.from_dict(read_json(made / "generation_config.json")),
        lambda: ProcessorConfig.from_folder(made),
    )
    for act in acts:
        try:
            act()
        except (ConfigError, WeightsError) as error:
            text = str(error)
            assert text.isprintable() and len(text) < 1000, text
            refusals.append(error)
    if refusals:
        raise refusals[0]
    return 3


ENTRANCE = FolderEntrance("config", seeds, run, (ConfigError, WeightsError), change=change_json)
