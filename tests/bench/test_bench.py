import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from conftest import mostly_slow
from fastmim.bench import dense, document, growth, hog, measure, methods, parts, shared, step
from fastmim.bench.document import Results, as_markdown, read_results, write_page
from fastmim.bench.flops import flops_per_image
from fastmim.bench.growth import Cost
from fastmim.bench.harness import prepare
from fastmim.bench.hog import bench_hog, plain_hog
from fastmim.bench.measure import Figure
from fastmim.cli.entry import main
from fastmim.config import PretrainConfig
from fastmim.errors import UsageError
from fastmim.mim.hog_features import hog as ours
from fastmim.system import threads
from fastmim.system.hardware import others_compute

CPU = torch.device("cpu")
SMALL = PretrainConfig(
    model="vit_tiny_patch16_224",
    model_kwargs={"embed_dim": 64, "depth": 2, "num_heads": 2},
    image_size=32,
    batch_size=4,
    precision="32-true",
)


def test_contestants_take_turns():
    calls = []
    ways = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    seconds = measure.side_by_side(ways, CPU, rounds=2, warm_up=1)
    assert calls == list("abc" + "abcabc")
    assert {name: len(times) for name, times in seconds.items()} == {"a": 2, "b": 2, "c": 2}


def test_the_baseline_is_hog_too():
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(plain_hog(images), ours(images), rtol=1e-4, atol=1e-5)


def test_a_form_that_is_no_hog_cannot_win(monkeypatch):
    monkeypatch.setattr(hog, "hog", lambda images, **_: torch.zeros_like(plain_hog(images)))
    with pytest.raises(AssertionError, match="differs from the plain form"):
        bench_hog(CPU, 2, 32, 1)


def test_without_a_compiler_hog_is_measured_as_it_is(monkeypatch):
    monkeypatch.setattr(hog, "can_compile", lambda _: False)
    (line,) = bench_hog(CPU, 2, 32, 1)
    assert "eager" in line.name
    assert line.ratio == pytest.approx(line.baseline / line.ours)
    assert line.met == (line.ratio >= hog.EAGER_TARGET)


def test_floating_point_operations_are_those_of_the_shapes():
    found = prepare(SMALL)
    width, tokens, patch = 64, 5, 3 * 16 * 16
    decoder, out = 256, 9 * 3 * 4
    block = tokens * width * width * 12 + 2 * tokens * tokens * width
    small = tokens * (decoder * decoder * 12 + 2 * tokens * decoder + width * decoder) + 4 * decoder * out
    products = 4 * patch * width + 2 * block + small
    assert flops_per_image(found.method, found.forward) == 3 * 2 * products


@pytest.mark.parametrize("model", mostly_slow(["test_vit", "test_convnext"], ["test_vit"]))
def test_a_step_is_set_beside_peak_and_backbone(model, monkeypatch):
    monkeypatch.setattr(measure, "PEAK_SHAPES", ((64, 64, 64),))
    config = replace(SMALL, model=model, model_kwargs={}, image_size=160)
    said = []
    lines = step.bench_step(config, 1, said.append)
    assert model in said[0]
    shares = [line.share for line in lines if line.share is not None]
    assert all(share > 0 for share in shares)
    assert [line.met is not None for line in lines[:3]] == [
        model == "test_vit",
        model != "test_vit",
        True,
    ]


def test_memory_is_compared_with_full_size_and_with_recomputing(monkeypatch):
    asked = []

    def measured(config):
        asked.append((config.image_size, config.activation_checkpointing))
        return Cost(
            config.batch_size, config.size[0], None, 10.0, 1000.0 if config.image_size == 224 else 400.0
        )

    monkeypatch.setattr(growth, "measure_cost", measured)
    lines = growth.bench_memory(SMALL, lambda _: None)
    assert asked == [(32, False), (224, False), (32, True)]
    assert lines[0].ratio == 2.5
    assert lines[0].met


def test_growth_changes_one_thing_at_a_time(monkeypatch):
    asked = []

    def measured(config):
        asked.append((config.batch_size, config.image_size, config.encoder.depth))
        return Cost(config.batch_size, config.size[0], config.encoder.depth, 10.0, 100.0)

    monkeypatch.setattr(growth, "measure_cost", measured)
    found = growth.bench_growth(SMALL, 12, lambda _: None)
    assert [cost.batch for cost in found["batch"]] == [8, 16, 32, 64]
    assert [cost.size for cost in found["size"]] == [64, 96, 128, 160, 192, 224]
    assert [cost.depth for cost in found["depth"]] == [3, 6, 9, 12]
    assert all(
        changed >= 2
        for changed in (sum(a == b for a, b in zip(x, (4, 32, None), strict=True)) for x in asked)
    )


@pytest.mark.slow
def test_the_cost_of_a_step_is_measured_in_a_process_of_its_own():
    small = growth.measure_cost(SMALL)
    large = growth.measure_cost(replace(SMALL, batch_size=64, image_size=128))
    assert large.memory_mib > small.memory_mib > 0
    assert small.images_per_second > 0


def results():
    lines = [Figure("HOG", 0.05, "ms/image", "plain", 1.5, 30.0, target="at least 20 times", met=True)]
    missed = [Figure("step", 20.0, "images/s", share=0.4, limit="peak", target="at least 50%", met=False)]
    costs = [Cost(8, 128, None, 10.0, 100.0), Cost(16, 128, None, 11.0, 180.0)]
    return Results(
        {"processor": "some", "cpus": 2, "versions": {"torch": "2"}},
        "fastmim bench all",
        "2026-01-01",
        {"hog": lines, "step": missed},
        {"hog": ["a note"]},
        {"batch": costs},
    )


def test_a_page_is_written_from_the_json(tmp_path, capsys):
    results().write(tmp_path / "bench.json")
    assert read_results(tmp_path / "bench.json") == results()
    page = tmp_path / "docs" / "performance.md"
    assert main(["bench", "document", "--json", str(tmp_path / "bench.json"), "--page", str(page)]) == 0
    text = page.read_text()
    for expected in ("processor some", "30.00x", "at least 20 times: met", "40.0%", "at least 50%: MISSED"):
        assert expected in text
    assert "| 16 | 11.0 | 90.9 | 180 |" in text
    assert (page.parent / "performance.png").read_bytes()[:4] == b"\x89PNG"
    assert "performance.png: written" in capsys.readouterr().out


def test_a_page_without_growth_has_no_plot(tmp_path):
    assert write_page(replace(results(), growth={}), tmp_path / "page.md", "again") == [tmp_path / "page.md"]
    assert "![" not in as_markdown(replace(results(), growth={}), "x.png", "fastmim bench document")


@pytest.mark.parametrize("text", [None, "{", "{}", '{"figures": {"hog": [{"nonsense": 1}]}}'])
def test_a_file_that_is_no_benchmark_is_refused(tmp_path, text):
    file = tmp_path / "bench.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UsageError, match=r"json: .*bench\.json"):
        read_results(file)


def test_the_command_prints_a_table_and_writes_json(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(hog, "can_compile", lambda _: False)
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "hog", "--batch-size", "2", "--image-size", "32", "--rounds", "1"]) == 0
    assert "at least 4 times" in " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert [file.name for file in tmp_path.iterdir()] == ["bench-hog.json"]
    raw = json.loads((tmp_path / "bench-hog.json").read_text())
    assert raw["machine"]["versions"]["torch"]
    assert raw["command"].startswith("fastmim bench hog")
    assert raw["figures"]["hog"][0]["unit"] == "ms/image"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "nothing"),
        (["hog", "--rounds", "0"], "rounds = 0"),
        (["growth", "--model", "test_convnext"], "model = test_convnext"),
    ],
)
def test_wrong_usage_is_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", *arguments]) == 2
    assert message in capsys.readouterr().err


def cost_of(config, speeds):
    speed, flops, memory = speeds(config)
    return Cost(config.batch_size, config.size[0], None, speed, memory, flops)


def test_methods_are_set_beside_fastmim_on_the_same_backbone(monkeypatch):
    told = []

    def measured(config):
        told.append(config)
        slow = 4.0 if config.method == "simmim" else 1.0
        return cost_of(config, lambda c: (100 / slow, 1e9 * slow, 500.0))

    monkeypatch.setattr(methods, "measure_cost", measured)
    monkeypatch.setattr(methods, "matmul_peak", lambda *_: 4e11)
    said = []
    found = methods.bench_methods(lambda config: replace(config, batch_size=2), CPU, said.append)
    assert [cost.recipe for cost in found] == [row.name for row in methods.ROWS]
    assert all(config.batch_size == 2 and config.planned_stages[0].steps == 1 for config in told)
    by_name = {cost.recipe: cost for cost in found}
    simmim, fastmim = by_name["simmim/vit-b"], by_name["table3/fastmim-vit-b-800"]
    assert (simmim.times_fastmim, simmim.multiply_adds) == (4.0, 4.0)
    assert simmim.paper == pytest.approx(4.1 / 0.8)
    assert (fastmim.times_fastmim, fastmim.paper) == (1.0, 1.0)
    assert by_name["fastmim-drop/vit-b"].paper is None
    assert simmim.share == fastmim.share == pytest.approx(0.25)
    assert len(said) == len(found)


def test_a_method_that_wastes_the_device_is_marked():
    good = methods.MethodCost("a", "fastmim", "vit", 128, 10.0, 1.0, 1.0, 0.6, 100.0, 1.0)
    idle, other = replace(good, recipe="b", share=0.4), replace(good, model="swin", share=0.1)
    rows = document.methods_rows([good, idle, other])
    assert [row[6] for row in rows] == ["60%", "40% LOW", "10%"]
    page = as_markdown(replace(results(), methods=[good]), "x.png", "fastmim bench document")
    assert "| a | 128 | 10.0 | 1.00 | 1.00 | 1.00 | 60% | 100 |" in page


def test_all_is_its_parts_each_in_a_process_of_its_own(tmp_path, monkeypatch, capsys):
    run = []

    def child(words):
        part = words[words.index("bench") + 1]
        run.append(words)
        replace(results(), figures={part: results().figures["hog"]}, notes={part: []}, growth={}).write(
            Path(words[-1])
        )
        return subprocess.CompletedProcess(words, 0)

    monkeypatch.setattr(parts.subprocess, "run", child)
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "all", "--rounds", "1"]) == 0
    assert [words[words.index("bench") + 1] for words in run] == [
        "step",
        "hog",
        "loader",
        "packs",
        "memory",
        "shared",
        "growth",
        "dense",
    ]
    assert all(words[-4:-1] == ["--rounds", "1", "--json"] for words in run)
    found = read_results(tmp_path / "bench.json")
    assert list(found.figures) == [
        *("step", "hog", "loader", "packs"),
        *("memory", "shared", "growth", "dense"),
    ]
    assert found.command == "fastmim bench all --rounds 1"
    monkeypatch.setattr(parts.subprocess, "run", lambda words: subprocess.CompletedProcess(words, 2))
    assert main(["bench", "all"]) == 1
    assert "bench step ended with exit code 2" in capsys.readouterr().err


@pytest.mark.slow
def test_ways_of_waiting_take_turns_quiet_and_busy(monkeypatch):
    """Beside a busy process each turn is of real steps in processes that were told how to wait."""
    monkeypatch.setattr(shared, "SECONDS", 0.2)
    monkeypatch.setenv(threads.POLICY, "ACTIVE")
    said = []
    config = replace(SMALL, kernels=shared.USUAL)
    quiet, busy = shared.bench_shared([config], 1, said.append)
    assert threads.POLICY in os.environ  # as it was
    assert os.environ[threads.POLICY] == "ACTIVE"
    assert quiet.ratio == pytest.approx(quiet.ours / quiet.baseline)
    assert busy.met == (busy.ratio >= shared.GAIN)
    assert "quiet: waiting briefly" in said[0]
    assert "alongside a busy process: waiting briefly" in said[1]


def test_the_ways_of_waiting_are_told_by_the_environment():
    ours, theirs, asleep, one = shared.ways(4)
    assert ours.variables == {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": None}
    assert set(theirs.variables.values()) == {None}
    assert asleep.variables["GOMP_SPINCOUNT"] is None
    assert [way.threads for way in (ours, theirs, asleep, one)] == [4, 4, 4, 1]
    with shared._busy():
        assert others_compute(os.cpu_count())


@pytest.mark.slow
def test_a_contestant_has_its_own_way_of_waiting_and_threads(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    config = replace(SMALL, kernels=shared.USUAL)
    way = shared.ways(2)[3]
    with shared._started(config, way) as pool:
        assert pool.submit(os.getenv, "GOMP_SPINCOUNT").result() == "1000"
        assert pool.submit(torch.get_num_threads).result() == way.threads == 1
    assert "GOMP_SPINCOUNT" not in os.environ


@pytest.mark.parametrize("flag", ["--model", "--models"])
def test_a_wrong_model_is_told_before_anything_is_measured(flag, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(parts, "_show_part", lambda *_: pytest.fail("it was measured"))
    assert main(["bench", "shared", flag, "resnet5000"]) == 2
    assert "did you mean resnet50" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["file/bench.json", "folder"])
def test_where_figures_cannot_lie_nothing_is_measured(place, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    monkeypatch.setattr(parts, "_show_part", lambda *_: pytest.fail("it was measured"))
    assert main(["bench", "hog", "--json", str(tmp_path / place)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("fastmim: json: ")


@pytest.mark.slow
def test_dense_steps_are_compared_with_other_libraries():
    said = []
    figures = dense.bench_dense(64, 2, 1, torch.device("cpu"), said.append)
    assert "resnet50 at 64x64, batch 2" in said[0]
    assert figures[0].against == "torchvision's maskrcnn_resnet50_fpn"
    assert figures[0].ratio == pytest.approx(figures[0].ours / figures[0].baseline)
    assert len(figures) == 1 + (dense.NOT_COMPARED not in said)
