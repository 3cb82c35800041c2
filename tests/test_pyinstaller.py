"""An app that PyInstaller makes of this package, moved away from it, with nothing in its environment.

Skipped where PyInstaller is not installed. The Metal kernels of a Mac are stood in for by a file of that name.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from xet_server import XetHubServer

from mlx_lfm2vl.__pyinstaller import metal_kernels

pytest.importorskip("PyInstaller", reason="PyInstaller is not installed")
pytestmark = pytest.mark.soak

SCENE = Path(__file__).parent.parent / "examples" / "scene.png"
ANSWER = "At the left there is a large black ring, and at the bottom right a large pink square.\n"
PROGRAM = """
import sys
from mlx_lfm2vl.__main__ import main
sys.exit(main())
"""


def build(folder: Path, program: str, *options: str) -> Path:
    """The folder of an app that PyInstaller made of a program, moved away from where it was made."""
    (folder / "made").mkdir()
    (folder / "made" / "app.py").write_text(program)
    done = subprocess.run(
        [sys.executable, "-m", "PyInstaller", "--noconfirm", "--log-level", "WARN", *options, "app.py"],
        cwd=folder / "made",
        capture_output=True,
        text=True,
        timeout=3000,
    )
    assert done.returncode == 0, done.stderr
    return Path(shutil.move(folder / "made" / "dist" / "app", folder / "app"))


@pytest.fixture(scope="module")
def app(tmp_path_factory) -> Path:
    return build(tmp_path_factory.mktemp("frozen"), PROGRAM, "--exclude-module", "matplotlib") / "app"


def run(app: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [app, *words], capture_output=True, text=True, timeout=200, cwd=app.parent, env={"HOME": "/", **environment}
    )


def test_the_demo_answers(app):
    done = run(app, "generate", "--image", str(SCENE))
    assert (done.returncode, done.stdout) == (0, ANSWER), done.stderr


def test_what_a_user_can_put_right_is_one_line(app):
    done = run(app, "generate", "--image", "nowhere.png")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (2, "mlx-lfm2vl: error: nowhere.png: no such picture")


def test_doctor_finds_its_numbers_and_the_versions(app):
    done = run(app, "doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"All \d+ rows within bounds", done.stdout), done.stdout
    for name in ("mlx", "numpy", "pillow", "tokenizers"):
        assert f" {name} " in done.stdout.replace("\n", " ")


@pytest.fixture(scope="module")
def converted(app, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("converted") / "demo-8bit"
    done = run(app, "convert", "--hf-path", "demo", "--mlx-path", str(folder), "-q", "--q-bits", "8")
    assert done.returncode == 0, done.stderr
    return folder


def test_a_conversion_is_measured_and_its_result_answers(app, converted):
    done = run(app, "generate", "--model", str(converted), "--image", str(SCENE))
    assert (done.returncode, done.stdout) == (0, ANSWER), done.stderr


def test_a_model_goes_to_the_hub_and_comes_back_through_xet(app, converted, tmp_path):
    hub = XetHubServer({}, large=(".safetensors",))
    with hub:
        name, home = "maker/demo-8bit", {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "HF_TOKEN": "hf_right"}
        done = run(app, "upload", str(converted), name, **home)
        assert done.returncode == 0 and hub.xorbs, done.stderr
        done = run(app, "generate", "--model", name, "--image", str(SCENE), **home)
    assert (done.returncode, done.stdout) == (0, ANSWER), done.stderr
    assert any(request.path.startswith("/cas/xorbs/") and request.method == "GET" for request in hub.requests)


def test_metals_kernels_are_where_either_path_of_the_library_leads(tmp_path):
    (tmp_path / "mlx" / "lib").mkdir(parents=True)
    (tmp_path / "mlx" / "lib" / "mlx.metallib").write_bytes(b"MTLB")
    entries = metal_kernels(tmp_path / "mlx", tmp_path / "work")
    assert entries == metal_kernels(tmp_path / "mlx", tmp_path / "work")  # a second build
    options = [word for source, folder in entries for word in ("--add-data", f"{source}{os.pathsep}{folder}")]
    inside = build(tmp_path, "print('well')", *options) / "_internal"
    assert os.readlink(inside / "mlx.metallib") == "mlx/lib/mlx.metallib"
    assert not (inside / "mlx" / "lib" / "mlx.metallib").is_symlink()
    assert (inside / "mlx.metallib").read_bytes() == b"MTLB"


def test_without_metal_there_are_no_kernels(tmp_path):
    assert metal_kernels(tmp_path, tmp_path / "work") == [] and not (tmp_path / "work").exists()
