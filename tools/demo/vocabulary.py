"""The demo model's tokenizer and the ids that other modules name.

Contract: ``tokenizer()`` is deterministic. Special-token ids are those of the 65k family (pad 0, bos 1, im_end 7, image
396, tile markers 397 to 496, thumbnail 497, image start and end 498 and 499). Digits and capitals are one token each,
and so are the coordinates of boxes; any text encodes, through bytes where no word is known.
"""

from __future__ import annotations

import json

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from .tasks import COLOURS, DESCRIBE, PLACES, SHAPES, SIZES, plural

# Coordinates of boxes, in thousandths of a side, are told in tens: 0 to 1000. Those of several digits come last in the
# vocabulary.
COORDINATES = tuple(str(10 * n) for n in range(101))
WORDS_SIZE = 1280
VOCAB_SIZE = WORDS_SIZE + len(COORDINATES) - 1
PAD, BOS, IM_START, IM_END, IMAGE, IMAGE_START, IMAGE_END = 0, 1, 6, 7, 396, 498, 499

# Words that must be one token each: those of the tasks, and those of tasks and chats that may come later.
_WORDS = """
there is are a an the and in at of to left right above below top bottom centre middle corner edge nothing none yes no
not what which where how many much big small large colour color shape object objects image images picture pictures
text word letter letters number numbers digit digits see do does describe this that it its these read written says say
show shows find point count compare different same both more less than all only one two three four five six seven
eight nine ten zero first second third last next provide bounding box boxes for please give list every each between
beside near far inside outside line lines label labels page table chart big bigger smaller larger biggest smallest
light dark white grey gray brown background handwritten sign card with without has have you your can me my be was on
as from by or if so up down empty blank user assistant system tool tools you are helpful multimodal Liquid json array
answer question hello hi thanks thank sorry know left-hand right-hand who name model demo
"""
_STARTS = "What Where How Is Which Describe The There At In A An Yes No Nothing Read Media Image"  # of sentences
_INNER = "many shape objects big than You More"  # behind a space
_SENTENCES = (
    "There is no text.",
    "Read the text.",
    "What does it say?",
    "Which digit is this?",
    "Which letter is this?",
    "Which image shows a red circle?",
    "Media-1 Media-2 Media-3 Media-4: Image 1, image 2",
    "Provide bounding boxes for the red circle.",
    "You are a helpful multimodal assistant by Liquid AI.",
    "More than 9.",
    "Is there a circle? Yes. No. Nothing. None. Both. Neither.",
    "Where is it? How big is it? What is it? Does it have one?",
    "They are the same. They are different. It is a large red circle.",
    "The first. The second. The third. In the centre. At the top left. A small ring.",
    '[{"image_id": 0, "bbox_2d": [12, 34, 567, 890], "label": "red circle"}, '
    '{"image_id": 1, "bbox_2d": [1, 2, 3, 4], "label": "star"}]',
    "image_index=0 text [12, 34, 567, 890]",
)


def _corpus() -> list[str]:
    words = _WORDS.split() + list(COLOURS) + list(SHAPES) + list(SIZES) + [plural(s) for s in SHAPES]
    starts = [w.capitalize() for w in (*COLOURS, *SIZES)] + _STARTS.split() + [f" {w}" for w in _INNER.split()]
    lines = [f" {w}" for w in words] + [w for w in ("user", "assistant", "system", "tool", *SHAPES, *COLOURS)]
    return [*lines, *_SENTENCES] * 2 + [*starts, *DESCRIBE, *(f" {p}" for p in PLACES)] * 10


def special_tokens() -> list[str]:
    """The 500 special tokens in the order of their ids."""
    named = ["<|pad|>", "<|startoftext|>", "<|endoftext|>", "<|fim_pre|>", "<|fim_mid|>", "<|fim_suf|>"]
    named += ["<|im_start|>", "<|im_end|>"]
    named += [f"<|tool_{part}_{end}|>" for part in ("list", "call", "response") for end in ("start", "end")]
    named += [f"<|reserved_{i}|>" for i in range(IMAGE - len(named))]
    named += ["<image>"] + [f"<|img_row_{row}_col_{col}|>" for row in range(1, 11) for col in range(1, 11)]
    return [*named, "<|img_thumbnail|>", "<|image_start|>", "<|image_end|>"]


def _split(pattern: str) -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def tokenizer() -> Tokenizer:
    """A byte-level BPE: JSON keys and separators in one piece, digits apart but within brackets, words with the space
    before them.
    """
    keys, ends = r'(?:, \{|, |\[?\{)?"[\p{L}\p{N}_]+": ?', r'"?[\]}](?=,)'
    words = r"\p{N}|, (?=\p{N})| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+"
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = _split(rf"{keys}|{ends}|{words}")
    tok.decoder = decoders.ByteLevel()
    specials = [AddedToken(s, special=True, normalized=False) for s in special_tokens()]
    trainer = trainers.BpeTrainer(
        vocab_size=WORDS_SIZE,
        min_frequency=1,
        special_tokens=specials,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tok.train_from_iterator(_corpus(), trainer)
    state = json.loads(tok.to_str())
    state["model"]["vocab"] |= {number: WORDS_SIZE + n for n, number in enumerate(COORDINATES[1:])}
    state["model"]["ignore_merges"] = True  # a piece that is in the vocabulary is one token
    tok = Tokenizer.from_str(json.dumps(state))
    coordinate = r"(?<=\[|, )[1-9]\p{N}*0(?=[,\]])"
    tok.pre_tokenizer = _split(rf"{keys}|{ends}|{coordinate}|{words}")
    tok.post_processor = processors.TemplateProcessing(
        single="<|startoftext|> $A", pair="<|startoftext|> $A $B", special_tokens=[("<|startoftext|>", BOS)]
    )
    return tok
