"""What mypy and pyright say of an app: nothing of one that is right, and each misspelt argument of one that is not.
`make check` runs mypy over the examples; pyright reads them here."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
APP = """
import asyncio
import contextlib
from mlx_lfm2vl import (
    Chat, Completion, Engine, EngineChat, FinishReason, GenerationOptions, GenerationRequest, GenerationResponse,
    MemoryUse, Request, SourcePolicy, generate, generate_batch, load, stream_generate,
)

model, processor = load("demo", source_policy=SourcePolicy(), max_image_tokens=64, stop=lambda: False)
stream_generate(model, processor, "x", "a.png", max_image_tokens=64).close()
with contextlib.closing(generate_batch(model, processor, [GenerationRequest("x")])) as answers:
    answer: Completion = next(answers)
chat = Chat(model, processor, system="x", do_image_splitting=False)
chat.stream("x").close()
text: str = chat.ask("x", role="tool", options=GenerationOptions(max_tokens=3)) + generate(model, processor, "x")
text = generate(model, processor, "x", max_tokens=None, temperature=0.1)
engine = Engine("demo")
engine.stream("x", deadline=3.0, max_tokens=3).close()
def sink(item: GenerationResponse | BaseException) -> None: ...
request: Request = engine.submit("x", sink=sink, max_image_tokens=64, temperature=0.1)
reason: FinishReason | None = next(iter(request)).finish_reason
talk: EngineChat = engine.chat(system="x")
memory: MemoryUse = engine.memory()
async def work() -> None:
    async with Engine("demo") as other:
        whole: Completion = await other.submit("x")
        await other.astream("x", wait=1.0).aclose()
        answer: str = await other.chat().aask("x", stop=lambda: False)
asyncio.run(work())
"""
TYPOS = {
    "engine.chat(sistem='x')": "sistem",
    "engine.generate('x', max_token=3)": "max_token",
    "engine.submit('x', stop=lambda: False)": "stop",
    "engine.submit('x', sytem='x')": "sytem",
    "engine.stream('x', timeout=3)": "timeout",
    "talk.ask('x', optoins=None)": "optoins",
    "chat.ask('x', deadline=3)": "deadline",
    "generate(model, processor, 'x', temperatur=1)": "temperatur",
    "stream_generate(model, processor, 'x', max_image_token=1)": "max_image_token",
    "Chat(model, processor, sistem='x')": "sistem",
    "load('demo', max_image_token=1)": "max_image_token",
    "load('demo', dtpye='float16')": "dtpye",
    "from mlx_lfm2vl import GenerationPiece": "GenerationPiece",
}


def test_a_type_checker_passes_an_app_and_names_its_typos(tmp_path):
    app = tmp_path / "app.py"
    app.write_text(APP + "\n".join(TYPOS))
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--hide-error-context", str(app)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"MYPYPATH": str(ROOT)},
    )
    found = re.findall(
        r'app\.py:(\d+): error: (?:Unexpected keyword argument|.* has no attribute) "(\w+)"', done.stdout
    )
    first = APP.count("\n") + 1
    assert found == [(str(first + number), name) for number, name in enumerate(TYPOS.values())], done.stdout
    assert done.stdout.count(": error:") == len(TYPOS), done.stdout


def test_pyright_passes_the_examples_and_names_typos_of_an_app(tmp_path):
    pytest.importorskip("pyright", reason="pyright is not installed")
    app = tmp_path / "app.py"
    app.write_text(APP + "\n".join(TYPOS))
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, "examples", str(app)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    found = json.loads(done.stdout)
    first = APP.count("\n") + 1
    errors = [each for each in found["generalDiagnostics"] if each["severity"] == "error"]
    assert [(Path(each["file"]).name, each["range"]["start"]["line"] + 1) for each in errors] == [
        ("app.py", first + at) for at in range(len(TYPOS))
    ]
    for each, name in zip(errors, TYPOS.values(), strict=True):
        assert re.match(rf'No parameter named "{name}"|"{name}" is unknown import symbol', each["message"])
    assert found["summary"]["filesAnalyzed"] == len(list((ROOT / "examples").glob("*.py"))) + 1
