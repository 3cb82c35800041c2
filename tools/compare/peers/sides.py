"""One class a peer, with the same methods, each written as that library's documentation shows it.

All are greedy, read pictures from files within the measured time, and give token ids. Imports happen in `__init__`, so
that this file can be read by every interpreter.
"""

import time
from dataclasses import dataclass
from typing import Any


@dataclass
class Timed:
    """An answer: seconds from the call to its first token and from there to its last, and its token ids."""

    first: float
    rest: float
    tokens: list[int]


class Ours:
    """mlx-lfm2vl, with its own clock: its pieces of text may hold several tokens."""

    def __init__(self, folder: str):
        import mlx_lfm2vl

        self.library = mlx_lfm2vl
        self.model, self.processor = mlx_lfm2vl.load(folder)

    def _options(self, tokens: int) -> Any:
        return self.library.GenerationOptions(max_tokens=tokens, temperature=0, repetition_penalty=1)

    def answer(self, picture: str | None, prompt: str, tokens: int) -> Timed:
        *before, last = self.library.stream_generate(
            self.model, self.processor, prompt, picture, options=self._options(tokens)
        )
        said = [token for piece in (*before, last) for token in piece.tokens]
        assert last.statistics is not None
        speed = last.statistics.tokens_per_second
        return Timed(last.statistics.time_to_first_token, (len(said) - 1) / speed if speed else 0.0, said)

    def answers(self, pictures: list[str], prompt: str, tokens: int) -> list[list[int]]:
        questions = [
            self.library.GenerationRequest(prompt, picture, options=self._options(tokens)) for picture in pictures
        ]
        made = self.library.generate_batch(self.model, self.processor, questions, batch_size=len(questions))
        return [list(answer.tokens) for answer in made]

    def preprocess(self, picture: str, prompt: str) -> int:
        items = [{"type": "image", "path": picture}, {"type": "text", "text": prompt}]
        inputs = self.processor.apply_chat_template(
            [{"role": "user", "content": items}], add_generation_prompt=True, tokenize=True, return_dict=True
        )
        return int(inputs["input_ids"].shape[1])


class MlxVlm:
    """mlx-vlm."""

    def __init__(self, folder: str):
        import mlx.core as mx
        from mlx_vlm import load, stream_generate
        from mlx_vlm.prompt_utils import apply_chat_template
        from mlx_vlm.utils import prepare_inputs

        self.mx, self.stream, self.template, self.prepare = mx, stream_generate, apply_chat_template, prepare_inputs
        self.model, self.processor = load(folder)

    def answer(self, picture: str | None, prompt: str, tokens: int) -> Timed:
        start = time.perf_counter()
        text = self.template(self.processor, self.model.config, prompt, num_images=int(picture is not None))
        given = {"image": [picture]} if picture else {}
        times: list[float] = []
        said: list[int] = []
        for piece in self.stream(self.model, self.processor, text, max_tokens=tokens, temperature=0.0, **given):
            if piece.generation_tokens > len(said):  # the last piece repeats the token before it
                said.append(int(piece.token))
                times.append(time.perf_counter())
        return Timed(times[0] - start, times[-1] - times[0], said)

    def answers(self, pictures: list[str], prompt: str, tokens: int) -> list[list[int]]:
        """One after the other: what its users do for LFM2-VL."""
        return [self.answer(picture, prompt, tokens).tokens for picture in pictures]

    def preprocess(self, picture: str, prompt: str) -> int:
        text = self.template(self.processor, self.model.config, prompt, num_images=1)
        index = self.model.config.image_token_index
        inputs = self.prepare(self.processor, images=[picture], prompts=[text], image_token_index=index)
        self.mx.eval([value for value in inputs.values() if isinstance(value, self.mx.array)])
        return int(inputs["input_ids"].shape[1])


class Transformers:
    """transformers on torch, in the checkpoint's dtype. Pictures are opened with Pillow: its own decoder needs a
    torchvision that was compiled for the installed torch."""

    def __init__(self, folder: str):
        try:
            from ... import reference_shim  # noqa: F401  # a torchvision that does not fit torch, see there
        except ImportError:
            raise SystemExit("torchvision is missing") from None
        import torch
        from PIL import Image
        from transformers import AutoModelForImageTextToText, AutoProcessor
        from transformers.generation.streamers import BaseStreamer

        class Clock(BaseStreamer):
            def __init__(self) -> None:
                self.times: list[float] = []

            def put(self, value: Any) -> None:
                self.times.append(time.perf_counter())

            def end(self) -> None:
                pass

        self.torch, self.clock, self.open = torch, Clock, Image.open
        self.processor = AutoProcessor.from_pretrained(folder)
        self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto").eval()

    def _inputs(self, pictures: list[str | None], prompt: str) -> Any:
        conversations = []
        for picture in pictures:
            items: list[dict[str, Any]] = [{"type": "text", "text": prompt}]
            if picture:
                items.insert(0, {"type": "image", "image": self.open(picture).convert("RGB")})
            conversations.append([{"role": "user", "content": items}])
        return self.processor.apply_chat_template(
            conversations,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True, "padding_side": "left"},
        )

    def _generate(self, inputs: Any, tokens: int, **more: Any) -> Any:
        with self.torch.no_grad():
            made = self.model.generate(**inputs, max_new_tokens=tokens, do_sample=False, **more)
        return made[:, inputs["input_ids"].shape[1] :]

    def answer(self, picture: str | None, prompt: str, tokens: int) -> Timed:
        start = time.perf_counter()
        clock = self.clock()
        made = self._generate(self._inputs([picture], prompt), tokens, streamer=clock)
        _, first, *rest = clock.times  # it is told of the prompt, too
        return Timed(first - start, (rest[-1] if rest else first) - first, made[0].tolist())

    def answers(self, pictures: list[str], prompt: str, tokens: int) -> list[list[int]]:
        return self._generate(self._inputs(list(pictures), prompt), tokens).tolist()

    def preprocess(self, picture: str, prompt: str) -> int:
        return int(self._inputs([picture], prompt)["input_ids"].shape[1])


SIDES = {"mlx-lfm2vl": Ours, "mlx-vlm": MlxVlm, "transformers": Transformers}
PACKAGES = {
    "mlx-lfm2vl": ("mlx", "numpy", "pillow"),
    "mlx-vlm": ("mlx-vlm", "mlx", "transformers", "pillow"),
    "transformers": ("transformers", "torch", "torchvision", "pillow"),
}
