"""--max-pixels and --crop.decode do what they say, in every verb that reads images."""

import json

import numpy as np
import pyarrow.parquet
import pytest
import yaml
from PIL import Image

from conftest import photo
from fastmim.cli.entry import main
from fastmim.data.loading.dataset import BatchRequest, CropDataset
from fastmim.data.settings import CropConfig
from fastmim.data.sources.open import open_images

LIMIT = 48 * 64  # pixels of the fixture's photos
RUN = (
    "--model vit_tiny_patch16_224 --model-kwargs {'embed_dim':32,'depth':2,'num_heads':2} --image-size 32 "
    "--steps 4 --batch-size 8 --held-out 4 --decoder.width 32 --workers 0"
).replace("'", '"')


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Two classes of 12 photos, and in each a larger one."""
    root = tmp_path_factory.mktemp("mixed")
    for number in range(24):
        folder = root / f"class{number % 2}"
        folder.mkdir(exist_ok=True)
        Image.fromarray(photo(number)).save(folder / f"{number:02d}.jpg", quality=92)
    for label in ("class0", "class1"):
        Image.fromarray(photo(99, 96, 128)).save(root / label / "large.png")
    return root


@pytest.fixture(scope="module")
def encoder(mixed, tmp_path_factory):
    run = tmp_path_factory.mktemp("run") / "run"
    command = f"pretrain --data {mixed} --out {run} {RUN} --max-pixels {LIMIT} --crop.decode fast"
    assert main([*command.split(), "--max-unreadable", "0.2", "--kernels.compile", "none"]) == 0
    return run


def skipped(file):
    """(file's name, reason) of each line, by whichever key the name has."""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return [((line.get("image") or line["name"]).split("/")[-1], line["reason"]) for line in lines]


def test_a_run_keeps_both_and_lists_what_is_too_large(encoder):
    stored = yaml.safe_load((encoder / "config.yaml").read_text())
    assert (stored["max_pixels"], stored["crop"]["decode"]) == (LIMIT, "fast")
    found = skipped(encoder / "skipped.jsonl")
    assert {name for name, _ in found} == {"large.png"}
    assert all(f"128x96 pixels, more than max-pixels = {LIMIT:,}" in reason for _, reason in found)


def test_stats_leaves_large_images_out(mixed, capsys):
    for limit, unreadable in ((LIMIT, 2), (4 * LIMIT, 0)):
        assert main(["stats", "--data", str(mixed), "--max-pixels", str(limit), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["unreadable"] == unreadable


def test_pack_leaves_large_images_out(mixed, tmp_path):
    out = tmp_path / "packed"
    flags = ["--max-pixels", str(LIMIT), "--workers", "0"]
    assert main(["pack", "--data", str(mixed), "--out", str(out), *flags]) == 0
    assert len(open_images(str(out))) == 24
    assert [name for name, _ in skipped(out / "skipped.jsonl")] == ["large.png"] * 2


def test_embed_leaves_large_images_out(encoder, mixed, tmp_path):
    out = tmp_path / "features.parquet"
    command = f"embed --encoder {encoder} --data {mixed} --out {out} --max-pixels {LIMIT} --workers 0"
    assert main(command.split()) == 0
    paths = pyarrow.parquet.read_table(out)["image"].to_pylist()
    assert len(paths) == 24
    assert not any("large" in path for path in paths)


@pytest.mark.parametrize("verb", ["probe", "finetune"])
def test_measuring_counts_large_images_as_unreadable(verb, encoder, mixed, tmp_path, capsys):
    labelled = tmp_path / "labelled"
    for split in ("train", "val"):
        for label in ("class0", "class1"):
            (labelled / split / label).mkdir(parents=True)
            for file in sorted((mixed / label).iterdir()):
                (labelled / split / label / file.name).write_bytes(file.read_bytes())
    flags = f"--data {labelled} --encoder {encoder} --max-pixels {LIMIT} --workers 0 --max-unreadable 0.2"
    if verb == "finetune":
        flags += f" --out {tmp_path / 'run'} --image-size 32 --batch-size 8 --steps 1"
    else:
        flags += " --kind knn"
    assert main([verb, *flags.split()]) == 0
    assert "unreadable" in capsys.readouterr().out


def test_large_images_end_a_run_that_may_not_leave_so_many_out(mixed, tmp_path, capsys):
    command = f"pretrain --data {mixed} --out {tmp_path / 'run'} {RUN} --max-pixels 1000"
    assert main(command.split()) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "max-pixels = 1,000" in line


@pytest.mark.parametrize("verb", ["pretrain", "finetune", "payoff", "probe", "embed", "pack", "stats"])
def test_a_limit_of_nothing_is_refused(verb, mixed, tmp_path, capsys):
    flags = ["--data", str(mixed), "--max-pixels", "0"]
    flags += [] if verb == "stats" else ["--out", str(tmp_path / "out.parquet")] if verb != "probe" else []
    flags += ["--encoder", "nowhere"] if verb in ("finetune", "payoff", "probe", "embed") else []
    assert main([verb, *flags]) == 2
    assert "max_pixels = 0" in capsys.readouterr().err


def test_fast_crops_are_blurred_and_full_ones_are_not(tmp_path):
    """Of a JPEG with three times the crop's pixels a side, by the energy of its gradients."""
    detailed = np.random.default_rng(0).integers(0, 256, (72, 96, 3), np.uint8).repeat(4, 0).repeat(4, 1)
    (tmp_path / "a").mkdir()
    Image.fromarray(detailed).save(tmp_path / "a" / "0.jpg", quality=95)
    source = open_images(str(tmp_path / "a"))

    def energy(decode):
        config = CropConfig(scale=(1.0, 1.0), aspect=(1.3, 1.4), flip=False, decode=decode)
        crops = CropDataset(source, np.arange(1), config, (96, 128), 3)
        pixels = crops[BatchRequest(np.zeros(1, np.int64), (0,))].pixels_BHWC.double()
        return (pixels.diff(dim=1) ** 2).mean().item()

    assert energy("fast") < 0.8 * energy("full")
