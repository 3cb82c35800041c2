"""The attention of `explain` beside the `output_attentions` of the reference's `generate`, on the demo. Marked
`reference`."""

import importlib

import numpy as np
import pytest
from PIL import Image

from mlx_lfm2vl import demo, explain, load
from mlx_lfm2vl.explanation.picture_map import picture_map
from mlx_lfm2vl.processing.geometry import plan

torch = pytest.importorskip("torch", reason="torch is not installed")
importlib.import_module("tools.reference_shim")  # before transformers
transformers = importlib.import_module("transformers")
pytestmark = [pytest.mark.reference, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize(
    ("name", "question"),
    [("scene", "What is in this image?"), ("large", "What shape is the red object?"), ("tall", "What do you see?")],
)
def test_weights_of_every_token_and_head_are_the_references(name, question):
    folder = str(demo.path())
    reference = transformers.Lfm2VlForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    processor = transformers.AutoProcessor.from_pretrained(folder)
    picture = Image.open(f"examples/{name}.png").convert("RGB")
    content = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    out = reference.generate(
        **inputs, max_new_tokens=40, do_sample=False, output_attentions=True, return_dict_in_generate=True
    )
    model, own = load("demo", dtype="float32")
    made = explain(model, own, question, picture, max_tokens=40, per_head=True)
    tokens = out.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    assert list(made.tokens) == tokens[: len(made.tokens)]
    image = (inputs["input_ids"][0] == reference.config.image_token_id).nonzero()[:, 0]
    steps = [torch.stack([layer[0, :, -1, image] for layer in step]) for step in out.attentions[: len(made.tokens)]]
    weights = torch.stack(steps, 2).detach().numpy()
    views = plan(picture.height, picture.width, own.image_processor.config)
    np.testing.assert_allclose(made.attention[0], picture_map(weights, views), rtol=0, atol=1e-4)
