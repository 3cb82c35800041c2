"""tokenizer.json and tokenizer_config.json: read, then used on texts."""

from __future__ import annotations

import functools
import json

from mlx_lfm2vl.errors import TokenizerError
from mlx_lfm2vl.generation.detokenizer import Detokenizer
from mlx_lfm2vl.generation.options import GenerationOptions
from mlx_lfm2vl.processing.tokenizer import Tokenizer

from .folders import DEMO, GOLDEN, SPLIT, FolderEntrance, change_json, place

TEXTS = ("Hello, world! 12345 naïve 日本語 \n\n\t end", "<|im_start|>user\n<image>What?<|im_end|>", "a" * 64)


@functools.cache
def seeds() -> dict[str, bytes]:
    """Real files with the vocabulary cut to the bytes, the special tokens and the first merges."""
    made = {}
    for source in (DEMO, GOLDEN / "gen2", GOLDEN / "gen25"):
        data = json.loads((source / "tokenizer.json").read_bytes())
        vocabulary, merges = data["model"]["vocab"], data["model"]["merges"][:20]
        joined = {"".join(merge.split(" ", 1) if isinstance(merge, str) else merge) for merge in merges}
        data["model"]["vocab"] = {token: id for token, id in vocabulary.items() if len(token) == 1 or token in joined}
        data["model"]["merges"] = merges
        data["added_tokens"] = [token for token in data["added_tokens"] if "reserved" not in token["content"]]
        config = (source / "tokenizer_config.json").read_bytes()
        made[source.name] = json.dumps(data).encode() + SPLIT + config
    return made


def run(data: bytes) -> int:
    model, _, config = data.partition(SPLIT)
    place("tokenizer", "tokenizer_config.json", config or b"{}")
    count = 0
    try:
        tokenizer = Tokenizer.from_folder(place("tokenizer", "tokenizer.json", model))
        for text in TEXTS:
            ids = tokenizer.encode(text)
            count += len(ids)
            stream = Detokenizer(tokenizer, GenerationOptions(), ())
            pieces = [*map(stream.push, ids), stream.finish()]
            assert isinstance(tokenizer.decode(ids), str)
            assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True)
            tokenizer.encode_marked(text)
        tokenizer.control_tokens("<|im_start|>")
        for name in ("bos_token_id", "eos_token_id", "pad_token_id", "image_token_id", "image_start_token_id"):
            getattr(tokenizer, name)
    except TokenizerError as error:
        text = str(error)
        assert text.isprintable() and len(text) < 1000, text
        raise
    return count


ENTRANCE = FolderEntrance("tokenizer", seeds, run, (TokenizerError,), change=change_json)
