"""Text to ids and back as the reference does it, and errors that name what is missing."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import GOLDEN
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_lfm2vl.errors import OptionError, OutputError, TokenizerError
from mlx_lfm2vl.processing.image_processor import Lfm2VlImageProcessor
from mlx_lfm2vl.processing.tokenizer import Tokenizer

GEN2, GEN25 = Tokenizer.from_folder(GOLDEN / "gen2"), Tokenizer.from_folder(GOLDEN / "gen25")
TOKENIZERS = {"gen2": GEN2, "gen25": GEN25}


def changed(tmp_path: Path, config: dict | None = None, tokenizer: dict | None = None, **files: str) -> Path:
    """A copy of gen2's tokenizer files with other entries (None takes one out)."""
    shutil.copy(GOLDEN / "gen2" / "tokenizer.json", tmp_path)
    shutil.copy(GOLDEN / "gen2" / "tokenizer_config.json", tmp_path)
    for name, change in (("tokenizer_config.json", config), ("tokenizer.json", tokenizer)):
        data = json.loads((tmp_path / name).read_text(encoding="utf-8")) | (change or {})
        kept = {key: value for key, value in data.items() if value is not None}
        (tmp_path / name).write_text(json.dumps(kept), encoding="utf-8")
    for name, text in files.items():
        (tmp_path / f"{name}.json").write_text(text, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("name", TOKENIZERS)
class TestReference:
    def test_encode(self, name, golden_json):
        tokenizer = TOKENIZERS[name]
        for case in golden_json("tokens")[name]["encode"]:
            assert tokenizer.encode(case["text"], add_special_tokens=False) == case["ids"]
            assert tokenizer.encode(case["text"]) == case["ids_with_special_tokens"]
            assert tokenizer.tokenize(case["text"]) == case["pieces"]
            assert tokenizer.convert_ids_to_tokens(case["ids"]) == case["pieces"]
            assert tokenizer.convert_tokens_to_ids(case["pieces"]) == case["ids"]

    def test_decode(self, name, golden_json):
        tokenizer = TOKENIZERS[name]
        for case in golden_json("tokens")[name]["decode"]:
            assert tokenizer.decode(case["ids"]) == case["text"]
            assert tokenizer.decode(case["ids"], skip_special_tokens=True) == case["text_without_special_tokens"]
            assert tokenizer.decode(np.array(case["ids"], dtype=np.int64)) == case["text"]

    def test_batch_decode(self, name, golden_json):
        case = golden_json("tokens")[name]["batch_decode"]
        for key, value in case.items():
            if key != "ids":
                skip = "without" in key
                assert TOKENIZERS[name].batch_decode(case["ids"], skip_special_tokens=skip) == value
                assert TOKENIZERS[name].decode(case["ids"], skip_special_tokens=skip) == value


class TestTokens:
    def test_named_tokens_and_ids(self):
        assert (GEN2.bos_token, GEN2.eos_token, GEN2.pad_token) == ("<|startoftext|>", "<|im_end|>", "<|pad|>")
        assert (GEN2.bos_token_id, GEN2.eos_token_id, GEN2.pad_token_id) == (1, 7, 0)
        assert (GEN2.image_token, GEN2.image_token_id) == ("<image>", 396)
        assert (GEN2.image_start_token_id, GEN2.image_end_token_id, GEN2.image_thumbnail_token_id) == (498, 499, 497)
        assert (GEN2.unk_token, GEN2.unk_token_id) == (None, None)
        assert len(GEN2) == 832
        assert GEN2.get_vocab()["<image>"] == 396
        with pytest.raises(AttributeError):
            _ = GEN2.colour_token

    @pytest.mark.parametrize("place", ["extra_special_tokens", "model_specific_special_tokens"])
    def test_image_tokens_may_be_nested_or_objects(self, place, tmp_path):
        nested = {
            "image_token": "<|reserved_20|>",
            "image_start_token": {"content": "<|reserved_21|>", "special": True},
        }
        flat = dict.fromkeys(("image_token", "image_start_token", "image_end_token", "image_thumbnail"))
        tokenizer = Tokenizer.from_folder(
            changed(tmp_path, {**flat, place: nested, "eos_token": {"__type": "AddedToken", "content": "<|pad|>"}})
        )
        assert (tokenizer.image_token, tokenizer.image_start_token) == ("<|reserved_20|>", "<|reserved_21|>")
        assert (tokenizer.image_end_token, tokenizer.image_thumbnail_token) == ("<|image_end|>", "<|img_thumbnail|>")
        assert tokenizer.eos_token == "<|pad|>"
        assert tokenizer.special_tokens_map["image_token"] == "<|reserved_20|>"

    @pytest.mark.parametrize(
        "config", [{"image_thumbnail": "<|reserved_22|>"}, {"image_thumbnail_token": "<|reserved_22|>"}]
    )
    def test_the_thumbnail_token_goes_by_two_names(self, config, tmp_path):
        tokenizer = Tokenizer.from_folder(changed(tmp_path, {"image_thumbnail": None, **config}))
        assert tokenizer.image_thumbnail_token == "<|reserved_22|>"

    def test_special_tokens_map_fills_what_the_configuration_leaves_out(self, tmp_path):
        folder = changed(
            tmp_path,
            {"eos_token": None},
            special_tokens_map='{"eos_token": {"content": "<|im_end|>"}, "bos_token": "<|pad|>"}',
        )
        tokenizer = Tokenizer.from_folder(folder)
        assert (tokenizer.eos_token, tokenizer.bos_token) == ("<|im_end|>", "<|startoftext|>")
        config = json.loads((tmp_path / "tokenizer_config.json").read_text())
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": None}))
        assert Tokenizer.from_folder(tmp_path).eos_token == "<|im_end|>"

    def test_tokenizer_json_alone_says_what_is_put_around_texts(self, tmp_path):
        for stated in ({"add_bos_token": True, "add_eos_token": True}, {"add_bos_token": False}):
            folder = changed(tmp_path, stated)
            assert Tokenizer.from_folder(folder).encode("a b") == GEN2.encode("a b") != []

    def test_ids_it_does_not_know_decode_to_nothing(self):
        ids = GEN2.encode("a b", add_special_tokens=False)
        assert GEN2.decode([*ids, 999_999]) == "a b"
        assert GEN2.convert_ids_to_tokens([5_000, 396]) == [None, "<image>"]
        assert GEN2.convert_ids_to_tokens(5_000) is None
        assert GEN2.convert_tokens_to_ids("no such token") is None
        for wrong in ([-100], ["a"], [1.5], [2**40]):
            with pytest.raises(TokenizerError, match="is not a token id"):
                GEN2.decode(wrong)

    def test_what_is_no_text(self):
        with pytest.raises(TokenizerError, match=r"half a character \(U\+D83D\)"):
            GEN2.encode("a\ud83d")
        with pytest.raises(TokenizerError, match="must be a string, got int"):
            GEN2(["a", 3])  # type: ignore[list-item]


class TestBatches:
    def test_padding_on_either_side(self):
        long, short = "one two three", "one"
        ids = [GEN2.encode(text) for text in (long, short)]
        gap = len(ids[0]) - len(ids[1])
        right = GEN2([long, short], padding=True, return_tensors="np")
        assert right["input_ids"].tolist() == [ids[0], ids[1] + [0] * gap]
        assert right["attention_mask"].tolist() == [[1] * len(ids[0]), [1] * len(ids[1]) + [0] * gap]
        assert right.input_ids.dtype == np.int64
        left = GEN2([long, short], padding="longest", padding_side="left")
        assert left["input_ids"] == [ids[0], [0] * gap + ids[1]]
        assert left["attention_mask"] == [[1] * len(ids[0]), [0] * gap + [1] * len(ids[1])]

    def test_the_side_of_the_file_is_the_default(self, tmp_path):
        tokenizer = Tokenizer.from_folder(changed(tmp_path, {"padding_side": "left"}))
        assert tokenizer(["a a", "a"], padding=True)["input_ids"][1][0] == 0

    def test_fixed_length_and_truncation(self):
        assert GEN2("one two", max_length=3, truncation=True)["input_ids"] == GEN2.encode("one two")[:3]
        padded = GEN2("a", max_length=5, padding="max_length", add_special_tokens=False)
        assert padded["attention_mask"] == [1, 0, 0, 0, 0]

    def test_padding_and_truncation_baked_into_the_file_are_not_applied(self, tmp_path):
        baked = {
            "truncation": {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
            "padding": {
                **{"strategy": {"Fixed": 30}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0},
                **{"pad_type_id": 0, "pad_token": "<|pad|>"},
            },
        }
        tokenizer = Tokenizer.from_folder(changed(tmp_path, tokenizer=baked))
        assert tokenizer.encode("one two three") == GEN2.encode("one two three")
        assert tokenizer.padding_side == "left"

    @pytest.mark.parametrize(
        ("options", "match"),
        [
            ({"padding": "left"}, "padding is 'left'"),
            ({"padding": True, "padding_side": "top"}, "padding_side is 'top'"),
            ({"padding": "max_length"}, "needs max_length"),
            ({"truncation": True}, "needs max_length"),
            ({"return_tensors": "pt"}, "return_tensors is 'pt'"),
            ({"return_tensors": "np"}, r"different lengths \(\d+, \d+\); pass padding=True"),
        ],
    )
    def test_bad_options_are_named(self, options, match):
        with pytest.raises(OptionError, match=match):
            GEN2(["one two three", "a"], **options)

    def test_padding_without_a_pad_token(self, tmp_path):
        tokenizer = Tokenizer.from_folder(changed(tmp_path, {"pad_token": None}))
        assert tokenizer.pad_token_id is None
        with pytest.raises(TokenizerError, match="names no pad_token"):
            tokenizer(["one two", "a"], padding=True)


class TestFiles:
    def test_missing_and_damaged_files(self, tmp_path):
        with pytest.raises(TokenizerError, match=r"tokenizer\.json: no such file"):
            Tokenizer.from_folder(tmp_path)
        (tmp_path / "tokenizer.json").write_text('{"version": "1.0"')
        with pytest.raises(TokenizerError, match=r"tokenizer\.json: not a tokenizer file") as caught:
            Tokenizer.from_folder(tmp_path)
        assert "\n" not in str(caught.value)
        changed(tmp_path, tokenizer_config="[1]")
        with pytest.raises(TokenizerError, match=r"tokenizer_config\.json: holds list"):
            Tokenizer.from_folder(tmp_path)

    def test_without_a_configuration_the_familys_image_tokens_hold(self, tmp_path):
        shutil.copy(GOLDEN / "gen2" / "tokenizer.json", tmp_path)
        tokenizer = Tokenizer.from_folder(tmp_path)
        assert (tokenizer.bos_token, tokenizer.image_token_id) == (None, 396)

    def test_a_missing_image_token_is_named_when_needed(self, tmp_path):
        tokenizer = Tokenizer.from_folder(changed(tmp_path, {"image_token": "<picture>"}))
        assert tokenizer.encode("a")
        with pytest.raises(TokenizerError, match="no token '<picture>', the model's image_token"):
            _ = tokenizer.image_token_id

    @pytest.mark.parametrize(
        ("config", "match"),
        [({"eos_token": 7}, "eos_token is 7"), ({"padding_side": "middle"}, "padding_side is 'middle'")],
    )
    def test_values_that_make_no_sense(self, config, match, tmp_path):
        with pytest.raises(TokenizerError, match=match):
            Tokenizer.from_folder(changed(tmp_path, config))

    @pytest.mark.parametrize(
        ("pattern", "long"),
        [
            (r"(a+)+$", True),
            (r"(?:a|aa)*", True),
            (r"(?:a?){60}", True),
            (r"((a*)b?)*", True),
            (r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))", False),
            (r"(?i:'s|'t|'re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+(?!\S)|\s+", False),
            (r"[!(\])+*]+(x)?|(?:\(+)?", False),
            (r"[(+[^]x])+*]?", False),  # all of it is one class
            (r"[y[^]x]z](d+)+", True),
            (r"(?:a+x?)(?#(?:)+b", True),
            (r"(?x)(?:a+x?) +b", True),
            (r"(?i-mx:a+x?) +b", True),
            (r"(?<n>a|aa\g<n>|a\g<n>)b", True),
            (r"a{1,2}{1,22}b", True),
            (r"a{1,2}+b", True),
            (r"a{,3}?+?b", True),
            (r"\c[(?:a+x?)+[b]]", True),
            (r"(?:a{1,2}+|c)b", True),
            (r"\\g|[#(]?#x|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\p{L}{1,3}+", False),
        ],
    )
    def test_patterns_that_may_take_for_ever_are_refused(self, pattern, long, tmp_path):
        steps = [{"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}]
        steps.append({"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False})
        folder = changed(tmp_path, tokenizer={"pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}})
        if long:
            with pytest.raises(TokenizerError, match="may take for ever"):
                Tokenizer.from_folder(folder)
        else:
            tokenizer = Tokenizer.from_folder(folder)
            assert tokenizer.decode(tokenizer.encode("a (b) 12345", add_special_tokens=False)) == "a (b) 12345"

    def test_a_panic_of_the_library_is_an_error_like_others(self, tmp_path):
        model = json.loads((GOLDEN / "gen2" / "tokenizer.json").read_text())["model"]
        with pytest.raises(TokenizerError, match=r"tokenizer\.json: not a tokenizer file .*fetch the file again"):
            Tokenizer.from_folder(changed(tmp_path, tokenizer={"model": {**model, "continuing_subword_prefix": "##"}}))

    def test_other_kinds_of_tokenizers_are_refused(self, tmp_path):
        model = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
        with pytest.raises(TokenizerError, match="model WordLevel with decoder ByteLevel; LFM2"):
            Tokenizer.from_folder(changed(tmp_path, tokenizer={"model": model, "added_tokens": []}))

    def test_saving_copies_the_files(self, tmp_path):
        GEN2.save_pretrained(tmp_path / "a")
        for name in ("tokenizer.json", "tokenizer_config.json"):
            assert (tmp_path / "a" / name).read_bytes() == (GOLDEN / "gen2" / name).read_bytes()
        Tokenizer.from_folder(tmp_path / "a").save_pretrained(tmp_path / "a")  # onto itself
        made = Tokenizer(GEN2.backend, {"eos_token": "<|im_end|>"})
        made.save_pretrained(tmp_path / "b")
        again = Tokenizer.from_folder(tmp_path / "b")
        assert (again.eos_token_id, again.encode("é 1")) == (7, GEN2.encode("é 1"))


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=60))
def test_text_survives_encoding_and_decoding(text):
    for tokenizer in TOKENIZERS.values():
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_an_added_token_of_great_length_is_refused(tmp_path):
    data = json.loads((GOLDEN / "gen2" / "tokenizer.json").read_text(encoding="utf-8"))
    token = {**data["added_tokens"][-1], "id": 10**6, "content": "x" * 100_000, "special": False}
    folder = changed(tmp_path, tokenizer={"added_tokens": [*data["added_tokens"], token]})
    with pytest.raises(TokenizerError, match="an added token has 100,000 characters"):
        Tokenizer.from_folder(folder)


def test_saving_copies_no_file_that_a_link_leads_to_elsewhere(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text('{"<private>": 900}')
    (tmp_path / "model").mkdir()
    folder = changed(tmp_path / "model")
    (folder / "added_tokens.json").symlink_to(secret)
    with pytest.raises(OutputError, match="is a link that leads out of the folder"):
        Tokenizer.from_folder(folder).save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out" / "added_tokens.json").exists()


@pytest.mark.parametrize("target", ["/dev/null/x", "/proc/x"])
def test_a_place_that_cannot_be_written_is_named(target):
    with pytest.raises(OutputError, match=f"{target}: cannot be written"):
        GEN2.save_pretrained(target)
    with pytest.raises(OutputError, match=f"{target}: cannot be written"):
        Lfm2VlImageProcessor().save_pretrained(target)
