"""Model folders that are corrupt, truncated or hostile: what loading them says, and what comes of converting them."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from checkpoints import edit_json

from mlx_lfm2vl import load
from mlx_lfm2vl.errors import ConfigError, HubError, Lfm2VlError, TemplateError, TokenizerError, WeightsError
from mlx_lfm2vl.processing.processor import Lfm2VlProcessor

from .bench import MODEL, Bench
from .row import Answers, Exits, Gives, Refused, Row

AGAIN = "fetch the file again"
NORM = "model.language_model.embedding_norm.weight"
TEXT_REGULAR = "is not a regular file"
Damage = Callable[[Path], Any]


def loading(name: str, damage: Damage, error: type[Lfm2VlError], where: str, what: str, way: str = "") -> Row:
    """Loading the small checkpoint after `damage`; `where` is a file of it."""

    def act(bench: Bench) -> object:
        folder = bench.model()
        damage(folder)
        return load(folder)

    return Row(name, act, Refused(error, f"{{folder}}/model{where and '/'}{where}: ", what, way))


def write(name: str, content: bytes | str) -> Damage:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data)


def edit(name: str, **changes: Any) -> Damage:
    """Entries of a JSON file; `a__b` is the entry b of the object a, and Ellipsis takes one out."""

    return lambda folder: edit_json(folder / name, **changes)


def config(name: str, what: str, way: str = "", **changes: Any) -> Row:
    return loading(f"config: {name}", edit("config.json", **changes), ConfigError, "config.json", what, way)


def header(change: Callable[[dict[str, Any]], object], tail: bytes = b"") -> Damage:
    """The safetensors file with a changed header of its true length."""

    def act(folder: Path) -> None:
        whole = (folder / "model.safetensors").read_bytes()
        (length,) = struct.unpack("<Q", whole[:8])
        data = json.loads(whole[8 : 8 + length])
        change(data)
        text = json.dumps(data).encode()
        made = struct.pack("<Q", len(text)) + text + whole[8 + length :] + tail
        (folder / "model.safetensors").write_bytes(made)

    return act


def raw(make: Callable[[bytes, int], bytes]) -> Damage:
    """The safetensors file made anew from its bytes and the length of its header."""

    def act(folder: Path) -> None:
        whole = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(make(whole, struct.unpack("<Q", whole[:8])[0]))

    return act


def weights(name: str, damage: Damage, what: str, way: str = AGAIN) -> Row:
    return loading(f"weights: {name}", damage, WeightsError, "model.safetensors", what, way)


def put(**entry: Any) -> Damage:
    return header(lambda data: data[NORM].update(entry))


def named_twice(folder: Path) -> None:
    text = b'{"a": {}, "a": {}}'
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)


def copied_shard(folder: Path) -> None:
    (folder / "model-00001-of-00002.safetensors").write_bytes((folder / "model.safetensors").read_bytes())


def pipe(name: str) -> Damage:
    def act(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return act


def link(name: str, to: str) -> Damage:
    def act(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(to)

    return act


def step(name: str, what: str, way: str = AGAIN, **changes: Any) -> Row:
    return loading(f"tokenizer: {name}", edit("tokenizer.json", **changes), TokenizerError, "tokenizer.json", what, way)


def split(pattern: str) -> dict[str, Any]:
    return {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        ],
    }


def around(**entry: Any) -> dict[str, Any]:
    single = [{"Sequence": {"id": "A", "type_id": 0}}]
    pair = [*single, {"Sequence": {"id": "B", "type_id": 0}}]
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": {}, **entry}


def asking(name: str, template: bytes | str, what: str, way: str = "") -> Row:
    """Rendering a question with that chat_template.jinja."""

    def act(bench: Bench) -> object:
        folder = bench.model()
        write("chat_template.jinja", template)(folder)
        messages = [{"role": "user", "content": "Hi"}]
        return Lfm2VlProcessor.from_pretrained(folder).apply_chat_template(messages)

    return Row(f"template: {name}", act, Refused(TemplateError, "{folder}/model/chat_template.jinja: ", what, way))


def converting(name: str, damage: Damage, where: str, what: str, way: str = "") -> Row:
    """`convert` of a damaged folder, which must leave nothing behind and name the source."""

    def act(bench: Bench) -> object:
        folder = bench.model()
        damage(folder)
        ended = bench.cli("convert", "--hf-path", folder, "--mlx-path", bench.folder / "out")
        assert [path.name for path in bench.folder.iterdir()] == ["model"] and ".part" not in ended.err
        return ended

    return Row(f"convert: {name}", act, Exits(where, what, way))


DEEP = "[" * 10_000 + "]" * 10_000

CONFIG = [
    loading(
        "config: missing", lambda f: (f / "config.json").unlink(), HubError, "", "has no config.json", "not a model"
    ),
    *(
        loading(f"config: {name}", write("config.json", content), ConfigError, "config.json", what, way)
        for name, content, what, way in (
            ("zero bytes", "", "cannot be read as JSON", AGAIN),
            ("cut off", '{"model_type": "lfm2', "cannot be read as JSON", AGAIN),
            ("a list", "[1]", "holds list where a JSON object is expected", AGAIN),
            ("10,000 deep", '{"a": ' + DEEP + "}", "nested too deeply", AGAIN),
            ("a key twice", '{"model_type": "lfm2_vl", "model_type": "x"}', "the key 'model_type' stands twice", AGAIN),
            ("UTF-16", '{"a": 1}'.encode("utf-16"), "begins with a byte order mark", "save it as UTF-8"),
            ("UTF-8 with a mark", b"\xef\xbb\xbf{}", "begins with a byte order mark", "save it as UTF-8"),
            ("Latin-1", '{"a": "é"}'.encode("latin-1"), "is not UTF-8 text (byte 7)", AGAIN),
            ("17 MB", '{"a": "' + "x" * 17 * 2**20 + '"}', "has more than 16,777,216 bytes", AGAIN),
            ("a number of 5,000 digits", '{"a": ' + "9" * 5000 + "}", "cannot be read as JSON", AGAIN),
            ("half a character", '{"a": "\\ud800"}', "half a character", AGAIN),
            ("a web page", "<html>404</html>", "cannot be read as JSON", AGAIN),
        )
    ),
    loading("config: a pipe", pipe("config.json"), ConfigError, "config.json", TEXT_REGULAR),
    loading("config: an endless device", link("config.json", "/dev/zero"), ConfigError, "config.json", TEXT_REGULAR),
    loading(
        "config: a link to a secret", link("config.json", "/etc/hostname"), ConfigError, "config.json", "as JSON", AGAIN
    ),
    config("of another model", "model_type is 'llava'", "this package runs 'lfm2_vl'", model_type="llava"),
    config("a model type that is a list", "model_type is ['lfm2_vl']", "this package runs", model_type=["lfm2_vl"]),
    config("a negative size", "hidden_size is -64", "an integer from 1", text_config__hidden_size=-64),
    config("a size of 10^9", "hidden_size is 1000000000", "to 16777216", text_config__hidden_size=10**9),
    config("a size that is text", "hidden_size is '64'", "an integer from 1", text_config__hidden_size="64"),
    config("a size that is true", "hidden_size is True", "an integer from 1", text_config__hidden_size=True),
    config("a size with a fraction", "hidden_size is 64.5", "an integer from 1", text_config__hidden_size=64.5),
    config("a size that is NaN", "hidden_size is nan", "an integer from 1", text_config__hidden_size=float("nan")),
    config("endless layers", "num_hidden_layers is 1000000", "to 1024", text_config__num_hidden_layers=10**6),
    config("no layers", "num_hidden_layers is 0", "from 1", vision_config__num_hidden_layers=0),
    config(
        "an infinite base",
        "rope_theta is inf",
        "a number above 0",
        text_config__rope_theta=float("inf"),
        text_config__rope_parameters=None,
    ),
    config(
        "a base of 10^400",
        "rope_theta is 1000",
        "below 1e+30",
        text_config__rope_theta=10**400,
        text_config__rope_parameters=None,
    ),
    config("an epsilon of zero", "norm_eps is 0", "a number above 0", text_config__norm_eps=0),
    config(
        "an epsilon that is NaN",
        "layer_norm_eps is nan",
        "a number above 0",
        vision_config__layer_norm_eps=float("nan"),
    ),
    config("heads that do not divide", "num_attention_heads is 7", "a divisor", vision_config__num_attention_heads=7),
    config(
        "sizes whose product explodes",
        "head_dim is 16777216",
        "with all",
        text_config__head_dim=2**24,
        text_config__num_attention_heads=64,
    ),
    config(
        "a feed-forward that explodes",
        "block_ffn_dim_multiplier is 1e+300",
        "below 1e+30",
        text_config__block_ffn_dim_multiplier=1e300,
    ),
    config(
        "an adjusted width that explodes",
        "intermediate_size is",
        "after adjustment",
        text_config__block_ffn_dim_multiplier=1e20,
        text_config__block_auto_adjust_ff_dim=True,
    ),
    config("a factor that explodes", "downsample_factor is 65", "to 64", downsample_factor=65),
    config("layers of an unknown kind", "layer_types is 'mamba'", "'conv' or", text_config__layer_types=["mamba"] * 4),
    config(
        "an activation that is a path", "hidden_act is '../../x'", "one of 'gelu'", vision_config__hidden_act="../../x"
    ),
    config("a section that is a list", "text_config is [1]", "an object", text_config=[1]),
    config("an image id behind the vocabulary", "image_token_id is 99999", "an id below", image_token_id=99999),
    config("a negative end token", "eos_token_id is -7", "a token id", text_config__eos_token_id=-7),
    config("a quantisation that is a list", "quantization is [4]", "an object", quantization=[4]),
    loading(
        "config: wider than the weights",
        edit("config.json", text_config__hidden_size=2**24),
        WeightsError,
        "model.safetensors",
        "has shape",
        "the configuration asks for",
    ),
    loading(
        "generation: a temperature that is text",
        edit("generation_config.json", temperature="hot"),
        ConfigError,
        "generation_config.json",
        "temperature is 'hot'",
        "a number of at least 0",
    ),
    loading(
        "generation: an end token that is NaN",
        edit("generation_config.json", eos_token_id=float("nan")),
        ConfigError,
        "generation_config.json",
        "eos_token_id is nan",
        "a token id or a list",
    ),
    *(
        loading(
            f"pictures: {name}",
            edit("processor_config.json", image_processor=policy),
            ConfigError,
            "processor_config.json",
            what,
            way,
        )
        for name, policy, what, way in (
            ("no tiles", {"max_tiles": 0}, "max_tiles is 0", "an integer from 1"),
            ("tiles that fill the memory", {"tile_size": 2**20}, "tile_size is 1048576", "at most 134,217,728 pixels"),
            ("tokens that fill it", {"max_image_tokens": 2**20}, "max_image_tokens is 1048576", "at most 134,217,728"),
            ("a mean of infinity", {"image_mean": [0, 0, float("inf")]}, "image_mean is [0, 0, inf]", "three numbers"),
            ("a deviation of zero", {"image_std": [1, 1, 0]}, "image_std is [1, 1, 0]", "three numbers above 0"),
            ("an unknown filter", {"resample": 9}, "resample is 9", "one of 2, 3"),
        )
    ),
]

WEIGHTS = [
    weights("zero bytes", write("model.safetensors", ""), "is truncated or not a safetensors file (0 bytes)"),
    weights("a web page", write("model.safetensors", "<html></html>"), "is truncated or not a safetensors file"),
    weights(
        "a header of 2^63 bytes", raw(lambda whole, n: struct.pack("<Q", 2**63) + whole[8:]), "is truncated or not"
    ),
    weights(
        "a header that ends behind the file", raw(lambda whole, n: struct.pack("<Q", len(whole)) + whole[8:]), "is trun"
    ),
    weights(
        "a header of 17 MB", raw(lambda whole, n: struct.pack("<Q", 17 * 2**20) + b" " * 18 * 2**20), "has a header of"
    ),
    weights("cut in the header", raw(lambda whole, n: whole[:100]), "is truncated or not"),
    weights(
        "cut in the last tensor", raw(lambda whole, n: whole[:-4]), "is truncated or its safetensors header is not true"
    ),
    weights("bytes left over", raw(lambda whole, n: whole + b"more"), "file not fully covered"),
    weights(
        "a header that is not UTF-8", raw(lambda whole, n: whole[:20] + b"\xff" + whole[21:]), "header cannot be read"
    ),
    weights("a header that is a list", raw(lambda whole, n: struct.pack("<Q", 2) + b"[]"), "header is not true"),
    weights(
        "a header 10,000 deep", raw(lambda whole, n: struct.pack("<Q", 20_000) + DEEP.encode()), "nested too deeply"
    ),
    weights("a name twice", named_twice, "the key 'a' stands twice"),
    weights("a tensor that is a number", header(lambda data: data.update({NORM: 3})), "invalid type: integer `3`"),
    weights("a negative shape", put(shape=[-64]), "invalid value: integer `-64`"),
    weights("a shape of 2^40", put(shape=[2**40]), "invalid shape"),
    weights("a shape larger than the file", put(shape=[2**30]), "invalid shape"),
    weights("a shape that is text", put(shape="64"), 'invalid type: string "64"'),
    weights("a shape of a million axes", put(shape=[1] * 10**6 + [64]), "which is none"),
    weights("a type that nobody knows", put(dtype="F31"), "unknown variant `F31`"),
    weights("a type that is a list", put(dtype=["F32"]), "invalid type: sequence"),
    weights("integers for numbers", put(dtype="I32"), "has dtype I32", "expected BF16 or F16 or F32"),
    weights("one offset", put(data_offsets=[0]), "invalid length 1"),
    weights("negative offsets", put(data_offsets=[-256, 0]), "invalid value: integer `-256`"),
    weights("offsets with fractions", put(data_offsets=[0.0, 256.0]), "floating point `0.0`"),
    weights("offsets in reverse", header(lambda d: d[NORM]["data_offsets"].reverse()), "invalid offset for tensor"),
    weights("offsets behind the file", put(data_offsets=[2**62, 2**62 + 256]), "invalid offset for tensor"),
    weights("an overlap", put(data_offsets=[0, 256]), "invalid offset for tensor"),
    weights("a gap", header(lambda data: data.pop(NORM)), "invalid offset for tensor"),
    weights(
        "a name of two lines",
        header(lambda data: data.update({"a\nb": data.pop(NORM)})),
        "called 'a\\nb', which is no name",
    ),
    weights("an endless name", header(lambda data: data.update({"a" * 10**6: data.pop(NORM)})), "which is no name"),
    weights("a pipe", pipe("model.safetensors"), TEXT_REGULAR),
    weights("an endless device", link("model.safetensors", "/dev/zero"), TEXT_REGULAR),
    weights("a dangling link", link("model.safetensors", "nowhere"), "is a link to a file that is not there"),
    weights("a link to a secret", link("model.safetensors", "/etc/hostname"), "is truncated or not a safetensors file"),
    loading(
        "weights: none", lambda f: (f / "model.safetensors").unlink(), WeightsError, "", "has no .safetensors file"
    ),
    loading(
        "weights: a pickle instead",
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        WeightsError,
        "",
        "has no .safetensors file",
        "it has pytorch_model.bin, which is not read",
    ),
    loading(
        "weights: a shard twice",
        copied_shard,
        WeightsError,
        "model.safetensors",
        "which model-00001-of-00002.safetensors holds too",
        "remove the file that is left over",
    ),
]


def _loads(bench: Bench, index: str) -> bool:
    """An index decides nothing: the folder loads as it does without one, and no other file is opened."""
    folder = bench.model()
    write("model.safetensors.index.json", index)(folder)
    model, _ = load(folder)
    return bool(model.config == load(MODEL)[0].config)


INDEX = [
    Row(
        f"index: {name}",
        partial(_loads, index=content),
        Gives(True),
    )
    for name, content in (
        ("that points above the folder", '{"weight_map": {"a": "../../etc/passwd"}}'),
        ("with an absolute path", '{"weight_map": {"a": "/etc/passwd"}}'),
        ("that names shards which are not there", '{"weight_map": {"a": "model-00001-of-00009.safetensors"}}'),
        ("that is no JSON", "{"),
        ("that is a list", "[]"),
    )
]


TOKENIZERS = [
    loading(
        "tokenizer: missing",
        lambda f: (f / "tokenizer.json").unlink(),
        TokenizerError,
        "tokenizer.json",
        "no such file",
    ),
    loading(
        "tokenizer: zero bytes", write("tokenizer.json", ""), TokenizerError, "tokenizer.json", "not a tokenizer", AGAIN
    ),
    loading(
        "tokenizer: 10,000 deep",
        write("tokenizer.json", '{"model":' + DEEP),
        TokenizerError,
        "tokenizer.json",
        "not a",
        AGAIN,
    ),
    loading(
        "tokenizer: UTF-16",
        write("tokenizer.json", "{}".encode("utf-16")),
        TokenizerError,
        "tokenizer.json",
        "byte order",
    ),
    loading("tokenizer: a pipe", pipe("tokenizer.json"), TokenizerError, "tokenizer.json", TEXT_REGULAR),
    step(
        "of another kind",
        "model WordLevel",
        "byte-level BPE",
        model={"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"},
    ),
    step("no byte has a token", "256 of the 256 bytes have no token", model={"type": "BPE", "vocab": {}, "merges": []}),
    step("an id of 2^32", "not a tokenizer file", model__vocab__zz=2**32),
    step("a negative id", "not a tokenizer file", model__vocab__zz=-1),
    step("merges of nothing", "not a tokenizer file", model__merges=[["qq", "zz"]]),
    step("random merges", "dropout is 0.5", model__dropout=0.5),
    step(
        "a prefix that makes the library panic",
        "not a tokenizer file",
        model__continuing_subword_prefix="##",
        model__merges=[["a", "b"]],
    ),
    step(
        "a normalizer that doubles",
        "normalizer 'Replace'",
        normalizer={"type": "Replace", "pattern": {"String": "a"}, "content": "aa"},
    ),
    step("a pattern without an end", "which may take for ever", pre_tokenizer=split("(a+)+$")),
    step("a choice without an end", "which may take for ever", pre_tokenizer=split("(?:a|aa)*b")),
    step(
        "patterns of 10,001 characters",
        "its patterns have 10,001 characters",
        pre_tokenizer={"type": "Sequence", "pretokenizers": [split("a" * 5000), split("a" * 5001)]},
    ),
    step("a pattern that is none", "not a tokenizer file", pre_tokenizer=split("(")),
    step(
        "a template of an unknown token",
        "names the token '<q>', which it does not have",
        post_processor=around(single=[{"SpecialToken": {"id": "<q>", "type_id": 0}}]),
    ),
    loading(
        "tokenizer: a token of 5,000 letters that is not there",
        edit("tokenizer_config.json", image_token="x" * 5000),
        TokenizerError,
        "tokenizer.json",
        "has no token 'xxxxxxxxxx",
        "xxx ..., the model's image_token; the file is of another model",
    ),
    step(
        "a template that repeats the text",
        "a template of 1000 pieces",
        post_processor=around(single=[{"Sequence": {"id": "A", "type_id": 0}}] * 1000),
    ),
    step(
        "templates of templates", "several templates", post_processor={"type": "Sequence", "processors": [around()] * 2}
    ),
    loading(
        "tokenizer: no image token",
        lambda f: edit("tokenizer_config.json", image_token="<nowhere>")(f),
        TokenizerError,
        "tokenizer.json",
        "has no token '<nowhere>', the model's image_token",
        "the file is of another model",
    ),
    loading(
        "tokenizer: no token before pictures",
        lambda f: edit("tokenizer_config.json", image_start_token="<nowhere>")(f),
        TokenizerError,
        "tokenizer.json",
        "has no token '<nowhere>', the model's image_start_token",
        "the file is of another model",
    ),
    loading(
        "tokenizer: an end token that is a list",
        edit("tokenizer_config.json", eos_token=["a"]),
        TokenizerError,
        "tokenizer_config.json",
        "eos_token is ['a']",
        "expected a token",
    ),
    loading(
        "tokenizer: a side that is none",
        edit("tokenizer_config.json", padding_side="up"),
        TokenizerError,
        "tokenizer_config.json",
        "padding_side is 'up'",
        "'left' or 'right'",
    ),
]

TEMPLATES = [
    asking("not closed", "a\n{% for x in %}", "line 2: "),
    asking("not UTF-8", b"{{ '\xff' }}", "is not UTF-8 text", AGAIN),
    asking("UTF-16", "{{ 1 }}".encode("utf-16"), "begins with a byte order mark", "save it as UTF-8"),
    asking("300 KB", "x" * 300_000, "has more than 262,144 characters"),
    asking("an unknown filter", "{{ 1 | shell }}", "No filter named 'shell'"),
    asking("a file included", "{% include '/etc/passwd' %}", "no loader"),
    asking("a module imported", "{% import 'os' as os %}", "no loader"),
    asking("a class's ancestors", "{{ ''.__class__.__mro__ }}", "is unsafe"),
    asking("the conversation changed", "{{ messages.append(1) }}", "is unsafe"),
    asking("a macro that calls itself", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    asking(
        "a loop in a loop",
        "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
        "200,000 steps",
    ),
    asking("a text that doubles", "{% set a = 'xxxx' %}" + "{% set a = a ~ a %}" * 40, "larger than 16,000,000"),
    asking("a list that doubles", "{% set a = ['x'] %}" + "{% set a = [a, a] %}" * 40, "more than 1,000,000 values"),
    asking("a number that squares", "{% set a = 99999 %}" + "{% set a = a * a %}" * 40, "more than 20,000 bits"),
    asking("a width of 10^9", "{{ '%1000000000d' % 1 }}", "larger than 16,000,000"),
    asking("a refusal of its own", "{{ raise_exception('roles must alternate') }}", "roles must alternate"),
    Row(
        "template: missing",
        lambda bench: _without_template(bench),
        Refused(TemplateError, "{folder}/model/chat_template.jinja: ", "no such file", "pass chat_template="),
    ),
]


def _without_template(bench: Bench) -> object:
    folder = bench.model()
    (folder / "chat_template.jinja").unlink()
    return Lfm2VlProcessor.from_pretrained(folder).apply_chat_template([{"role": "user", "content": "Hi"}])


def _converts_without_template(bench: Bench) -> object:
    folder = bench.model()
    (folder / "chat_template.jinja").unlink()
    return bench.cli("convert", "--hf-path", folder, "--mlx-path", bench.folder / "out")


def _secret(bench: Bench) -> object:
    """A folder from strangers whose licence is a link to a key of the user's, who publishes what he converts."""
    bench.write("secret", "precious")
    folder = bench.model()
    (folder / "LICENSE").symlink_to("../secret")
    return bench.cli("convert", "--hf-path", folder, "--mlx-path", bench.folder / "out")


CONVERSIONS = [
    converting(
        "no tokenizer", lambda f: (f / "tokenizer.json").unlink(), "{folder}/model/tokenizer.json", "no such file"
    ),
    converting(
        "a damaged template", write("chat_template.jinja", "{% if %}"), "{folder}/model/chat_template.jinja", "line 1: "
    ),
    converting(
        "a damaged policy",
        write("processor_config.json", "{"),
        "{folder}/model/processor_config.json",
        "as JSON",
        AGAIN,
    ),
    converting("damaged weights", raw(lambda w, n: w[:-9]), "{folder}/model/model.safetensors", "is truncated", AGAIN),
    converting(
        "a damaged sampling",
        edit("generation_config.json", top_p="x"),
        "{folder}/model/generation_config.json",
        "top_p is 'x'",
    ),
    Row(
        "convert: no template",
        _converts_without_template,
        Answers(("no question can be asked of this model: out has no chat template",), "{folder}/out"),
    ),
    Row(
        "convert: a licence that is a link to a secret",
        _secret,
        Exits("{folder}/model/LICENSE", "is a link that leads out of the folder", "put the file itself there"),
    ),
]

ROWS = [*CONFIG, *WEIGHTS, *INDEX, *TOKENIZERS, *TEMPLATES, *CONVERSIONS]
