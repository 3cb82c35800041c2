"""`mlx-lfm2vl doctor`: a right machine is within its bounds, and what is wrong is named."""

import dataclasses
import hashlib
import json
import math
import os
import re
import sys

import mlx.core as mx
import numpy as np
import pytest
from test_cli import ROOT, cli, process  # noqa: F401

from mlx_lfm2vl import diagnose
from mlx_lfm2vl.doctor import bounds, checkpoint, checks, lfm3_checkpoint, reference, system
from mlx_lfm2vl.doctor.report import OF_LARGEST, OF_ROUNDING, Report, Row
from mlx_lfm2vl.errors import OptionError, OutputError
from mlx_lfm2vl.models import layers, lfm2
from mlx_lfm2vl.weights.quantize import Quantization, decode, encode

CPU = mx.default_device() == mx.Device(mx.cpu)
WIDTHS = ["float32", "bfloat16", "8 bits", "4 bits"]
SYSTEM = {"machine", "device_info", "free_memory", "wired_limit_mb", "tf32", "environment"}
SYSTEM |= {"hub_cache", "hub_cache_bytes"}


@pytest.fixture(autouse=True)
def without_tf32(monkeypatch):
    """The command sets this itself, for its process."""
    monkeypatch.setenv("MLX_ENABLE_TF32", "0")


@pytest.fixture(scope="module")
def report():
    """All rows; those of float32 are numpy's where MLX's device is a CPU."""
    told = []
    backend = "numpy" if CPU else "mlx"
    found = diagnose(backend, progress=lambda done, total: told.append((done, total)))
    assert told == [(done, len(found.rows)) for done in range(1, len(found.rows) + 1)]
    assert found.system.machine.backend == backend
    return found


def rows_of(report: Report, model: str) -> list[Row]:
    return [row for row in report.rows if row.model == model]


# --- a right machine --------------------------------------------------------------------------------------------------


def test_every_row_is_within_its_bound(report):
    assert report.ok, report.table()
    whole = ["image", "prompt", "steps", "batch"]
    for model, stages in (("random", whole), ("lfm3", whole), ("demo", ["prompt"])):
        rows = rows_of(report, model)
        assert [row.weights for row in rows][:4] == WIDTHS
        for row in rows:
            assert list(row.distances) == stages and row.failure is None and row.seconds > 0
            assert row.answer is (True if model == "demo" else None)
            assert row.unit == (OF_ROUNDING if row.weights in ("bfloat16", "4 bits bf16") else OF_LARGEST)
            assert row.backend == (report.system.machine.backend if row.weights == "float32" else "mlx")


def test_the_table_can_be_pasted(report):
    lines = report.table().splitlines()
    assert max(map(len, lines)) <= 80
    table = [line.strip("| ").split("|") for line in lines if line.startswith("|")]
    assert len(table) == len(report.rows) + 2 and {len(row) for row in table} == {8}
    text = " ".join(lines)
    for name, version in report.system.machine.versions.items():
        assert f"{name} {version}" in text
    assert f"backend {report.system.machine.backend} on {report.system.machine.device_type}" in text
    assert "TF32 off; environment: MLX_ENABLE_TF32=0" in text and "hub cache" in text
    assert lines[-1].startswith(f"All {len(report.rows)} rows within bounds;")


def test_json_has_all_of_it(report):
    made = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert set(made) == {"ok", "system", "rows", "seconds"} and made["ok"] is True
    assert set(made["system"]) == SYSTEM
    fields = {field.name for field in dataclasses.fields(Row)}
    assert all(set(row) == fields | {"ok"} for row in made["rows"])
    assert [row["distances"] for row in made["rows"]] == [row.distances for row in report.rows]


# The command with the rows of float32 alone.
SHORT = """
import sys
from mlx_lfm2vl.cli import main
from mlx_lfm2vl.doctor import bounds
bounds.widths = lambda model, device: (bounds.FLOAT32,)
sys.exit(main(sys.argv[1:]))
"""


def test_the_command_prints_one_json_object_and_leaves_tf32_off():
    environment = {key: value for key, value in os.environ.items() if key != "MLX_ENABLE_TF32"}
    done = process(sys.executable, "-c", SHORT, "doctor", "--json", "--backend", "mlx", env=environment, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    made = json.loads(done.stdout)
    assert made["ok"] and made["system"]["machine"]["backend"] == "mlx"
    assert [row["model"] for row in made["rows"]] == ["random", "lfm3", "demo"]
    assert made["system"]["environment"]["MLX_ENABLE_TF32"] == "0" and made["system"]["tf32"] is False


# --- what is wrong ----------------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch):
    """Only these rows are run: `quick({"random": [bounds.FLOAT32]})`."""

    def only(rows):
        monkeypatch.setattr(bounds, "widths", lambda model, device: tuple(rows.get(model, ())))

    return only


def damaged_weight(patch):
    def tensors(of=checkpoint.tensors):
        made = of()
        made["model.language_model.layers.1.self_attn.q_proj.weight"][3] *= -1  # a row of 512
        return made

    patch(checkpoint, "tensors", tensors)


def rope_a_hundredth_off(patch):
    patch(lfm2, "rope_frequencies", lambda *given, of=lfm2.rope_frequencies: of(*given) * 1.01)


def rope_of_another_base(patch):
    """1e4 for 1e6, as in other models."""
    patch(lfm2, "rope_frequencies", lambda *given, of=lfm2.rope_frequencies: of(*given) ** (2 / 3))


def padding_that_is_seen(patch):
    def masks(real, length, of=layers.padding_masks):
        return of(np.ones_like(real), length)[0], of(real, length)[1]

    patch(layers, "padding_masks", masks)


def a_bad_group(patch):
    def quantized(model, bits, of=checks._quantize):
        of(model, bits)
        layer = model.model.language_model.layers[0].feed_forward.w2
        layer.scales = mx.concatenate([layer.scales[:, :1] * 1.02, layer.scales[:, 1:]], axis=1)

    patch(checks, "_quantize", quantized)


def tf32(patch):
    """Factors of products rounded to eleven bits, as a device with TF32 does."""

    def rounded(x):
        bits = (x.view(mx.uint32) + 0x1000) & mx.array(0xFFFFE000, mx.uint32)
        return bits.view(mx.float32)

    patch(mx, "addmm", lambda added, x, weight, of=mx.addmm: of(added, rounded(x), weight))


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("damage", "width", "stages"),
    [
        (damaged_weight, bounds.FLOAT32, {"prompt", "steps", "batch"}),
        (rope_a_hundredth_off, bounds.FLOAT32, {"prompt", "steps", "batch"}),
        (padding_that_is_seen, bounds.FLOAT32, {"batch"}),
        (tf32, bounds.FLOAT32, {"image", "prompt", "steps", "batch"}),
        (rope_of_another_base, bounds.BFLOAT16, {"prompt", "steps", "batch"}),
        (padding_that_is_seen, bounds.BFLOAT16, {"batch"}),
        (a_bad_group, bounds.BITS_8, {"prompt", "steps", "batch"}),
        (a_bad_group, bounds.BITS_4, {"prompt", "steps", "batch"}),
    ],
)
def test_wrong_numbers_are_named_and_end_with_1(damage, width, stages, quick, monkeypatch, cli):  # noqa: F811
    quick({"random": [width]})
    damage(monkeypatch.setattr)
    code, out, err = cli("doctor", "--backend", "mlx")
    assert (code, err) == (1, "")
    found = re.search(r"- out of bounds: random, (.*) \(mlx\): (.*);\s+bound", out, re.S)
    assert found and found[1] == width.name
    assert set(re.findall(r"(\w+)\s+[\d.]+(?:e-\d+|x)", found[2])) == stages
    assert re.search(rf"^\| random \| {width.name} +\| .* OUT +\|$", out, re.M)
    assert "1 of 1 row out of bounds; " in out


@pytest.mark.sampled(2)
@pytest.mark.parametrize("damage", [damaged_weight, rope_a_hundredth_off, tf32, a_bad_group])
def test_what_is_wrong_is_out_of_a_gpus_bounds_too(damage, quick, monkeypatch):
    width = bounds.BITS_8 if damage is a_bad_group else bounds.FLOAT32
    quick({"random": [width]})
    damage(monkeypatch.setattr)
    (row,) = diagnose("mlx").rows
    assert max(row.distances.values()) > 2 * bounds.bound("random", width, "metal")


def test_another_answer_is_named(quick, monkeypatch, cli):  # noqa: F811
    quick({"demo": [bounds.FLOAT32]})
    numbers = reference.demo_numbers()
    other = {**numbers.answers, "float32": numbers.answers["float32"][::-1]}
    monkeypatch.setattr(reference, "demo_numbers", lambda: dataclasses.replace(numbers, answers=other))
    code, out, _ = cli("doctor", "--json")
    (row,) = json.loads(out)["rows"]
    assert code == 1 and row["answer"] is False and row["ok"] is False


def test_an_error_of_the_device_is_a_finding(quick, monkeypatch, cli):  # noqa: F811
    quick({"random": [bounds.FLOAT32], "demo": [bounds.FLOAT32]})

    def fails(*_, **__):
        raise RuntimeError("[metal::Device] Unable to load kernel steel_attention\nand more")

    monkeypatch.setattr(checks, "load_model", fails)
    code, out, err = cli("doctor")
    assert (code, err) == (1, "") and "Traceback" not in out
    assert "RuntimeError: [metal::Device] Unable to load kernel steel_attention" in " ".join(out.split())
    assert re.search(r"^\| random .* failed \|$", out, re.M) and re.search(r"^\| demo .* ok +\|$", out, re.M)


def test_what_is_not_finite_is_out_of_bounds():
    row = Row("random", "float32", "mlx", {"image": math.nan, "prompt": 1e-6}, 2e-5, OF_LARGEST)
    assert row.faults == ("image nan",) and not row.ok
    assert row.to_dict()["distances"] == {"image": None, "prompt": 1e-6}


def test_an_environment_with_tf32_is_named(quick, monkeypatch, cli):  # noqa: F811
    quick({})
    monkeypatch.setenv("MLX_ENABLE_TF32", "1")
    code, out, _ = cli("doctor")
    assert code == 0 and "- TF32 on; environment: MLX_ENABLE_TF32=1" in out
    assert "run with MLX_ENABLE_TF32=0" in " ".join(out.split())


def test_what_the_user_can_put_right(quick, monkeypatch, tmp_path, cli):  # noqa: F811
    quick({})
    with pytest.raises(OptionError, match="backend is 'cuda'"):
        diagnose("cuda")
    with pytest.raises(OutputError, match="cannot be written"):
        checks.write_checkpoint(tmp_path / "no" / "where")

    def full(**_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checks.tempfile, "TemporaryDirectory", full)
    code, out, err = cli("doctor")
    assert (code, out) == (2, "") and err.startswith("mlx-lfm2vl: error: there is no folder for temporary files")


# --- bounds, checkpoint, data -----------------------------------------------------------------------------------------


def test_a_gpu_has_a_row_more_and_the_table_still_fits(report):
    assert [width.name for width in bounds.widths("random", "metal")] == [*WIDTHS, "4 bits bf16"]
    assert [width.name for width in bounds.widths("demo", "cuda")] == WIDTHS
    assert bounds.bound("random", bounds.BITS_4_BFLOAT16, "metal") == bounds.bound("demo", bounds.BFLOAT16, "metal")
    row = dataclasses.replace(report.rows[1], weights=bounds.BITS_4_BFLOAT16.name)
    text = dataclasses.replace(report, rows=(*report.rows, row)).table()
    assert max(map(len, text.splitlines())) <= 80


def test_a_macs_settings_are_shown(report):
    info = {"architecture": "applegpu_g15s", "max_recommended_working_set_size": 48 * 2**30, "memory_size": 64 * 2**30}
    machine = dataclasses.replace(report.system.machine, device_type="metal", backend="mlx", device="Apple M3 Max")
    mac = dataclasses.replace(report.system, machine=machine, device_info=info, wired_limit_mb=0)
    assert "backend mlx on metal, device Apple M3 Max (applegpu_g15s)" in mac.facts()
    assert "recommended working set 48.0 GiB, wired while an answer is made; iogpu.wired_limit_mb 0" in mac.facts()
    assert max(map(len, dataclasses.replace(report, system=mac).table().splitlines())) <= 80


def test_the_cache_is_measured_and_named_without_the_users_name(monkeypatch, tmp_path):
    folder = tmp_path / "hub" / "models--a--b" / "blobs"
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(b"x" * 1000)
    (folder / "link").symlink_to(folder / "weights")
    monkeypatch.setattr(system, "cache_folder", lambda: tmp_path / "hub")
    monkeypatch.setattr("pathlib.Path.home", lambda: tmp_path)
    found = system.inspect("mlx")
    assert (found.hub_cache, found.hub_cache_bytes) == ("~/hub", 1000)
    monkeypatch.setattr(system, "cache_folder", lambda: tmp_path / "nowhere")
    assert system.inspect("mlx").hub_cache_bytes == 0


def test_the_checkpoint_is_the_same_everywhere():
    digest = hashlib.sha256()
    for name, array in sorted(checkpoint.tensors().items()):
        assert array.dtype == np.float32
        digest.update(name.encode() + array.astype("<f4").tobytes())
    prompts = checkpoint.prompts()
    for array in (prompts.picture, prompts.text, prompts.spatial_shapes):
        digest.update(array.astype("<i8").tobytes())
    digest.update(prompts.pixel_values.astype("<f4").tobytes())
    assert digest.hexdigest() == "ee6613722ffe5916adf6b392e7902b5434301f0c0453211f98c21513c4e15d63"
    images = int((prompts.picture == checkpoint.IMAGE_TOKEN).sum())
    assert images == prompts.spatial_shapes.prod(axis=1).sum() / 4 and (prompts.text != checkpoint.IMAGE_TOKEN).all()


def test_a_wrong_window_of_lfm3_is_out_of_bounds(quick, monkeypatch):
    quick({"lfm3": [bounds.FLOAT32]})
    text = lfm3_checkpoint.CONFIG["text_config"] | {"sliding_window": 23}
    monkeypatch.setattr(lfm3_checkpoint, "CONFIG", lfm3_checkpoint.CONFIG | {"text_config": text})
    (row,) = diagnose("mlx").rows
    assert not row.ok and row.distances["image"] < row.bound < row.distances["prompt"]


@pytest.mark.parametrize("model", checks.CHECKPOINTS)
def test_bfloat16_and_bits_hold_its_weights_exactly(model):
    for name, array in checks.CHECKPOINTS[model].tensors().items():
        weight = mx.array(array)
        assert mx.array_equal(weight.astype(mx.bfloat16).astype(mx.float32), weight), name
        if not name.startswith("model.language_model.") or weight.ndim != 2:
            continue
        assert mx.array_equal(decode(encode(weight, Quantization(4, 64)), Quantization(4, 64), mx.float32), weight)
        wide = decode(encode(weight, Quantization(8, 64)), Quantization(8, 64), mx.float32)
        assert mx.abs(wide - weight).max() < 2e-7 * mx.abs(weight).max(), name


def test_the_data_is_small_and_whole():
    assert sum(path.stat().st_size for path in reference.DATA.iterdir()) < 1_500_000
    numbers = [reference.random_numbers(model) for model in checks.CHECKPOINTS]
    for part in (part for each in numbers for part in each.values()):
        assert part.exact.shape == part.rounded.shape == (len(part.rows), 512)
    demo = reference.demo_numbers()
    assert list(demo.answers) == list(demo.logits) == WIDTHS
    assert {len(logits) for logits in demo.logits.values()} == {len(demo.answers["float32"])}


def test_the_page_shows_what_it_prints(report):
    """Measured numbers, versions and machines differ; rows, columns and legend do not."""
    page = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    shown = re.search(r"^```text\n(- mlx-lfm2vl .*?)^```$", page, re.M | re.S)
    assert shown

    def form(text):
        lines = text.strip().splitlines()
        first = next(index for index, line in enumerate(lines) if line.startswith("|"))
        cells = [re.split(r" +\| +", line.strip("| ")) for line in lines[first:] if line.startswith("|")]
        made = [[row[0], row[1].removesuffix(" numpy"), row[-1]] for row in cells[2:]]
        return cells[0], made, lines[first + len(cells) : -1]

    if CPU:
        assert form(shown[1]) == form(report.table())
