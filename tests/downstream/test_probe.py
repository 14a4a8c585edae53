"""Probes find what features hold, and embeddings are what the encoder gives."""

import json
import os

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import fastmim
from conftest import TINY, photo
from fastmim.cli.entry import main
from fastmim.data.sources.demo import digit_labels
from fastmim.data.sources.open import open_images
from fastmim.downstream.frozen import probe as probe_module
from fastmim.downstream.frozen.embed import embed
from fastmim.downstream.frozen.features import Features, build_extractor
from fastmim.downstream.frozen.probe import run_probe
from fastmim.downstream.frozen.settings import EmbedConfig, ProbeConfig
from fastmim.errors import RunError, UsageError
from fastmim.train.distributed import build_fabric


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A tiny ViT that has hardly seen the digits: its features still tell them apart."""
    run = tmp_path_factory.mktemp("digits") / "run"
    kwargs = {"embed_dim": 32, "depth": 1, "num_heads": 2, "patch_size": 4}
    settings = TINY | {"model_kwargs": kwargs, "image_size": 16, "target": {"cell": 4}}
    fastmim.pretrain(data="demo:digits", out=run, steps=2, **settings)
    return run


class StandIn:
    """An extractor of made features: the class is written at one place of each map, in noise."""

    def __init__(self, labels):
        self.labels = labels
        self.fabric = build_fabric("cpu", 1, 1, "32-true")

    def features(self, source, indices, pooled=True):
        generator = torch.Generator().manual_seed(0)
        maps = torch.randn(len(source), 24, 2, 2, generator=generator) / 4
        for index, label in enumerate(self.labels):
            maps[index, label, index % 2, 0] += 4
        values = maps[torch.from_numpy(indices)]
        yield Features(values.mean((2, 3)) if pooled else values, indices, [])


@pytest.mark.parametrize("kind", ["knn", "linear", "attentive"])
def test_each_kind_finds_what_features_hold(kind, monkeypatch):
    labels = [int(label) for label in digit_labels()]
    monkeypatch.setattr(probe_module, "build_extractor", lambda *_, **__: StandIn(labels))
    config = ProbeConfig("timm:any", "demo:digits", kind, workers=0, epochs=8, base_lr=2e-2)
    result = run_probe(config)
    assert result.accuracy.top1 > 95
    assert result.accuracy.images.sum() == 359
    assert repr(result).startswith(f"ProbeResult(top1={result.accuracy.top1:.2f}, ")
    assert len(repr(result)) < 200
    again = run_probe(config)
    assert np.array_equal(again.accuracy.right, result.accuracy.right)
    monkeypatch.setattr(probe_module, "build_extractor", lambda *_, **__: StandIn([0] * len(labels)))
    assert run_probe(config).accuracy.top1 < 30  # nothing to find


@pytest.mark.parametrize("kind", ["knn", "linear", "attentive"])
def test_each_kind_runs_on_an_encoder(digits, kind):
    result = run_probe(ProbeConfig(str(digits), "demo:digits", kind, labels="0.2", workers=0, epochs=1))
    assert result.training_images == 287
    assert result.accuracy.images.sum() == 359


def test_a_linear_probe_of_few_labels_works_without_a_part_to_choose_on(digits):
    result = run_probe(ProbeConfig(str(digits), "demo:digits", "linear", labels="1/class", workers=0))
    assert result.training_images == 10
    assert result.accuracy.top1 > 10


def test_python_names_the_settings(digits):
    result = fastmim.probe(encoder=digits, data="demo:digits", kind="knn", labels="1/class", workers=0)
    assert result.training_images == 10
    with pytest.raises(UsageError, match=r"did you mean kind"):
        fastmim.probe(encoder=digits, data="demo:digits", knid="knn")


def test_the_command_line_prints_a_line_or_json(digits, capsys):
    command = ["probe", "--encoder", str(digits), "--data", "demo:digits", "--kind", "knn", "--workers", "0"]
    assert main(command) == 0
    assert "knn probe (20 neighbours) on 1438 labelled images: top-1" in capsys.readouterr().out
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert 0 < found["top1"] < 100
    assert len(found["per_class"]) == 10


def test_the_help_says_what_is_known(capsys):
    with pytest.raises(SystemExit):
        main(["probe", "--help"])
    assert "never choose" in " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_embeddings_are_the_mean_of_the_encoders_features(pretrained, photos, tmp_path):
    (tmp_path / "photos").mkdir()
    for number, path in enumerate(sorted(photos.rglob("*.jpg"))[:5]):
        (tmp_path / "photos" / f"{number}.jpg").write_bytes(b"broken" if number == 2 else path.read_bytes())
    file = tmp_path / "new" / "features.parquet"
    written = embed(EmbedConfig(str(pretrained), str(tmp_path / "photos"), str(file), workers=0))
    assert (written.images, written.width, len(written.unreadable)) == (4, 32, 1)
    table = pq.read_table(file)
    assert table.column_names == ["image", "embedding"]
    assert table["image"].to_pylist() == ["0.jpg", "1.jpg", "3.jpg", "4.jpg"]
    extractor = build_extractor(str(pretrained), workers=0)
    source = open_images(str(tmp_path / "photos"))
    wanted = torch.cat([part.values for part in extractor.features(source, np.arange(5))])
    torch.testing.assert_close(torch.tensor(table["embedding"].to_pylist()), wanted)
    with pytest.raises(UsageError, match="--overwrite"):
        embed(EmbedConfig(str(pretrained), str(tmp_path / "photos"), str(file), workers=0))
    assert [path.name for path in file.parent.iterdir()] == ["features.parquet"]


def test_classes_go_into_the_file_where_there_are_some(pretrained, photos, tmp_path, capsys):
    file = tmp_path / "f.parquet"
    command = ["embed", "--encoder", str(pretrained), "--data", str(photos), "--out", str(file)]
    assert main([*command, "--image-size", "48"]) == 0
    assert "24 images, 32 numbers each" in capsys.readouterr().out
    table = pq.read_table(file)
    assert set(table["class"].to_pylist()) == {"class0", "class1"}
    rows = table.to_pylist()
    assert all(row["image"].startswith(row["class"]) for row in rows)


def test_nothing_readable_leaves_no_file(pretrained, tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.jpg").write_text("no image")
    with pytest.raises(RunError, match=r"a\.jpg"):
        embed(EmbedConfig(str(pretrained), str(tmp_path / "texts"), str(tmp_path / "f.parquet"), workers=0))
    assert not list(tmp_path.glob("*parquet*"))


def test_names_that_are_no_utf8_are_written_as_text(digits, tmp_path):
    """As `os.fsencode` knows them: each byte that is none becomes \\xNN, and no two names become one."""
    folder = os.fsencode(tmp_path / "images")
    names = [b"plain.png", b"caf\xe9.png", b"caf\xe8.png", "ü🙂.png".encode(), b"\xff/\xfe.png", b"a\nb.png"]
    for number, name in enumerate(names):
        os.makedirs(os.path.dirname(os.path.join(folder, name)), exist_ok=True)
        with open(os.path.join(folder, name), "wb") as file:
            Image.fromarray(photo(number, 16, 16)).save(file, "PNG")
    with open(os.path.join(folder, b"broken\xe9.png"), "wb") as file:
        file.write(b"no image")
    written = embed(
        EmbedConfig(str(digits), str(tmp_path / "images"), str(tmp_path / "e.parquet"), workers=0)
    )
    assert written.images == len(names)
    assert written.unreadable[0].startswith("broken\\xe9.png: ")
    found = pq.read_table(tmp_path / "e.parquet").column("image").to_pylist()
    assert set(found) == {name.decode(errors="backslashreplace") for name in names}


@pytest.mark.parametrize("name", ["x.csv", "x.npy", "x.parquet.gz", "x", "x.json"])
def test_another_format_is_refused_before_anything_is_read(digits, tmp_path, name, capsys):
    out = tmp_path / name
    assert main(["embed", "--encoder", str(digits), "--data", "demo:digits", "--out", str(out)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert name in line
    assert ".parquet" in line
    assert not list(tmp_path.iterdir())
