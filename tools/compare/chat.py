"""How long a person waits for the first token of a second turn: in a `Chat`, and in a run that knows nothing of before.

    python -m tools.compare.chat [--model MODEL] [--picture PICTURE] [--rounds N]

Prints a table: seconds to the first token, the median of the rounds. `cold` answers the same conversation, picture and
first answer included, with `stream_generate`. On two idle CPU cores with MLX 0.32.4, 2026-11-22, the last row being
LFM2.5-VL-450M's shape with random weights (`--model FOLDER`), in float32:

    model      picture  prompt  image   new  1st turn  2nd turn  2nd cold  faster
    demo       128x128      65     16    17     0.038     0.027     0.045     1.7
    demo       256x256     134     80    17     0.072     0.031     0.078     2.5
    gen25     1056x540     823    754    40     0.260     0.027     0.252     9.2
    float32   1056x540     908    754   126    12.657     0.871    13.636    15.7

All pictures but the first are cut into tiles. The smaller the model, the more of a turn is what every step costs.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

from PIL import Image

from mlx_lfm2vl import Chat, GenerationOptions, load, stream_generate

ROOT = Path(__file__).resolve().parents[2]
CASES = (
    ("demo", ROOT / "examples" / "scene.png", 128),
    ("demo", ROOT / "examples" / "scene.png", 256),
    (str(ROOT / "tests" / "golden" / "gen25"), ROOT / "tests" / "golden" / "pictures" / "large.png", None),
)
FIRST, SECOND = "What is in this image?", "How many objects are there?"
SHORT = GenerationOptions(max_tokens=16, temperature=0)
ONE = GenerationOptions(max_tokens=1, temperature=0)


def measure(model_name: str, picture: Path, rounds: int) -> str:
    model, processor = load(model_name)
    waits: dict[str, list[float]] = {"first": [], "second": [], "cold": []}
    tokens = image_tokens = new = 0
    for _ in range(rounds + 1):  # the first round warms up
        chat = Chat(model, processor)
        first = list(chat.stream(FIRST, picture, options=SHORT))[-1].statistics
        conversation = [*chat.messages, {"role": "user", "content": SECOND}]
        second = list(chat.stream(SECOND, options=ONE))[-1].statistics
        # reads the picture anew, as a caller does that keeps nothing
        conversation[0] = {
            "role": "user",
            "content": [{"type": "image", "image": picture}, {"type": "text", "text": FIRST}],
        }
        cold = list(stream_generate(model, processor, conversation, options=ONE))[-1].statistics
        assert first and second and cold and cold.prompt_tokens == second.prompt_tokens
        tokens, image_tokens = second.prompt_tokens, second.image_tokens
        new = tokens - second.cached_tokens
        for name, run in (("first", first), ("second", second), ("cold", cold)):
            waits[name].append(run.time_to_first_token)
    median = {name: statistics.median(times[1:]) for name, times in waits.items()}
    with Image.open(picture) as image:
        size = f"{image.width}x{image.height}"
    return (
        f"{Path(model_name).name:<8} {size:>9} {tokens:>7} {image_tokens:>6} {new:>5} {median['first']:>9.3f} "
        f"{median['second']:>9.3f} {median['cold']:>9.3f} {median['cold'] / median['second']:>7.1f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder, hub repository or demo (default: the demo model and a golden one)")
    parser.add_argument("--picture", type=Path, default=ROOT / "tests" / "golden" / "pictures" / "large.png")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    print("model      picture  prompt  image   new  1st turn  2nd turn  2nd cold  faster")
    with tempfile.TemporaryDirectory() as folder:
        for name, picture, side in CASES if args.model is None else ((args.model, args.picture, None),):
            if side is not None:
                scaled = Path(folder) / f"{side}.png"
                with Image.open(picture) as image:
                    image.resize((side, side)).save(scaled)
                picture = scaled
            print(measure(name, picture, args.rounds), flush=True)


if __name__ == "__main__":
    main()
