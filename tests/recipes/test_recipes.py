"""Every recipe resolves, comes from paper.yaml, and runs in its smoke size."""

import json
import re
from dataclasses import asdict
from inspect import getmembers, isfunction

import pytest
import timm
import torch
import yaml

from conftest import mostly_slow
from fastmim.cli.entry import main
from fastmim.config import FinetuneConfig, PretrainConfig, build, differences, merge, to_yaml
from fastmim.encoders.registry import is_known
from fastmim.errors import UsageError
from fastmim.pretraining import build_method
from fastmim.recipes import ablations, catalogue, main_results, recipe, resolve, smoke
from fastmim.recipes.backbones import narrow_kwargs
from fastmim.recipes.definition import NO_FIGURE
from fastmim.recipes.methods import defaults_of
from fastmim.recipes.supervised import AUTHORS
from fastmim.recipes.tables import TABLES, paper_figures, rows_of

ALL = list(catalogue())
NAMES = [name for name in ALL if recipe(name).verb == "pretrain"]
TABLED = [name for name in NAMES if name.startswith("table")]  # the others are the methods' own
TUNED = [name for name in ALL if recipe(name).verb == "finetune"]
# One of each backbone, and of each kind of run that sets more than size, epochs and target.
KINDS = [
    "table1a/vit-b-200e-96px",
    "table1a/swin-b-100e-64px",
    "table1b/vit-b-pixel-224px",
    "table1c/vit-b-10-blocks",
    "table1c/swin-b-2-2-18-0",
    "table2/swin-l-hog-192px",
    "table3/fastmim-p-vit-l-800",
    "table3/fastmim-p-swin-l-400",
    "table4/twins-l",
    "table4/pvt-v1-l",
    "table4/pvt-v2-b2",
    "table4/convnext-t",
    "table4/convnextv2-b",
    "table4/cmt-s",
    "table4/cmt-b",
    "table9/vit-b-fastmim-kd",
    "table10a/mim-patch-encoder-zeros",
    "table10b/vit-b-8px-0.85",
    "table10b/swin-b-64px-0.65",
    "table16/vit-l-8b768d",
    "table10a/mae-patch-decoder-zeros",
    "table15/mae-vit-b-400e-96px",
    "mae/vit-b-8b512d",
    "mae/vit-b-1b512d",
    "simmim/vit-b",
    "simmim/swin-b",
    "maskfeat/vit-b",
    "lomar/vit-b",
    "ummae/swin-t",
    "greenmim/swin-b",
    "greenmim/swin-l",
    "fcmae/convnextv2-b",
    "fastmim-drop/vit-b",
]
# Of the kinds, those that the default run builds, and those of the sample that it trains.
BUILT = [
    "table3/fastmim-p-vit-l-800",
    "table4/cmt-s",
    "table9/vit-b-fastmim-kd",
    "ummae/swin-t",
    "fcmae/convnextv2-b",
]
TRAINED = ["table1a/vit-b-200e-96px", "greenmim/swin-b"]
SAMPLE = [
    "table1a/vit-b-200e-96px",
    "table1c/swin-b-2-2-16-2",
    "table3/fastmim-p-swin-l-400",
    "table9/pvt-v2-b2-fastmim-kd",
    "lomar/vit-b",
    "ummae/swin-t",
    "greenmim/swin-b",
    "fcmae/convnextv2-b",
    "fastmim-drop/vit-b",
]


METHODS_OF_TABLE3 = ("fastmim", "greenmim", "mae", "maskfeat", "lomar", "simmim_vit", "simmim_swin")


def recipe_config(name):
    return recipe(name).config


def numbers(value):
    """Every number below a YAML value."""
    if isinstance(value, dict | list):
        items = value.values() if isinstance(value, dict) else value
        return {number for item in items for number in numbers(item)}
    return {float(value)} if isinstance(value, int | float) else set()


def dashed(key):
    """A row as its recipes are named."""
    return key.removesuffix("_224").removesuffix("_192").replace("_", "-")


def cells(value):
    """How many numbers stand below a YAML value."""
    if isinstance(value, dict | list):
        return sum(map(cells, value.values() if isinstance(value, dict) else value))
    return int(value is not None)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_survives_yaml_and_lacks_data_and_out_only(name):
    config = recipe_config(name)
    assert (config.data, config.out) == ("", "")
    values = yaml.safe_load(to_yaml(config))
    assert build(PretrainConfig, values) == merge(PretrainConfig(), values) == config
    assert is_known(config.model)
    assert narrow_kwargs(config.model)
    assert merge(config, asdict(smoke(config))) == smoke(config)


@pytest.mark.parametrize("name", TABLED)
def test_a_recipe_says_where_it_stands_and_what_the_paper_says(name):
    found = recipe(name)
    table = next(table for table in TABLES if name.startswith(f"{table.name}/"))
    number = table.name.removeprefix("table")
    assert found.title.startswith(f"Table {number}, ")
    assert found.table.startswith(f"table {number}: ")
    row = next(entry for key, entry in rows_of(table) if name.startswith(f"{table.name}/{dashed(key)}"))
    said = {float(number) for number in re.findall(r"(?<!-)\b\d+(?:\.\d+)?", found.paper)}
    assert said
    assert said <= numbers(row)


@pytest.mark.parametrize(
    ("name", "key", "path"),
    [
        ("table1a/swin-b-400e-96px", "table1a_resolution", ("swin_b", 400, 96)),
        ("table1b/swin-b-hog-128px", "table1b_target", ("swin_b", "hog_128", 1)),
        ("table1c/swin-b-2-2-18-0", "table1c_depth", ("swin_b", 22)),
        ("table2/vit-b-pixel-224px", "table2_loss", ("vit_b_224", "pixel", 0)),
        ("table2/swin-l-hog-128px", "table2_loss", ("swin_l_192", "hog", 1)),
        ("table3/fastmim-p-vit-l-800", "table3", ("fastmim_p_vit_l_800", 3)),
        ("table4/cmt-b", "table4", ("cmt_b", 7)),
        ("table4/cmt-b", "table4", ("cmt_b", 8)),
        ("table7/vit-l-pixel-128px", "table7_target_resolution", ("vit_l_224", 1)),
        ("table7/cmt-b-hog-224px", "table7_target_resolution", ("cmt_b_224", 2)),
        ("table8/in1k-128px", "table8_swin_b", (1, 4)),
        ("table9/vit-b-fastmim-kd", "table9_distillation", ("vit_b", "fastmim_kd")),
        ("table9/pvt-v2-b2-fastmim", "table9_distillation", ("pvt_v2_b2", "fastmim")),
        ("table10a/mim-patch-encoder-zeros", "table10a_masking", ("mim_patch_encoder", 0)),
        ("table10b/vit-b-8px-0.85", "table10b_mask", ("vit_b", 8, 3)),
        ("table3/mae-vit-l", "table3", ("mae_vit_l", 5)),
        ("table10a/mae-patch-decoder-learned", "table10a_masking", ("mae_patch_decoder", 1)),
        ("table15/mae-vit-b-800e-96px", "table15_mae_resolution", (800, 96)),
        ("table16/vit-l-8b512d", "table16_decoder", ("vit_l", "8b512d")),
    ],
)
def test_a_run_has_the_figure_of_its_own_cell(name, key, path):
    value = paper_figures()[key]
    for part in path:
        value = value[part]
    assert str(value) in recipe(name).paper.replace(",", " ").replace("(", " ").split()


def test_every_run_of_the_paper_has_a_recipe():
    paper = paper_figures()
    here = {name: sum(full.startswith(f"{name}/") for full in NAMES) for name in (t.name for t in TABLES)}
    wanted = {
        "table1a": cells(paper["table1a_resolution"]),
        "table1b": cells(paper["table1b_target"]) // 3,
        "table1c": cells(paper["table1c_depth"]),
        "table2": cells(paper["table2_loss"]),
        "table3": sum(row.startswith(METHODS_OF_TABLE3) for row in paper["table3"]),
        "table4": len(paper["table4"]),
        "table7": cells(paper["table7_target_resolution"]),
        "table8": len({(line[0], line[2]) for line in paper["table8_swin_b"]}),
        "table9": 2 * len(paper["table9_distillation"]),  # without the supervised baselines
        "table10a": cells(paper["table10a_masking"]),
        "table10b": cells(paper["table10b_mask"]),
        "table15": cells(paper["table15_mae_resolution"]),
        "table16": cells(paper["table16_decoder"]),
    }
    assert here == wanted
    assert sum(here.values()) == len(TABLED)


def test_every_row_is_used():
    titles = {recipe(name).title for name in TABLED}
    rows = {
        name: row.__doc__.splitlines()[0]
        for module in (ablations, main_results)
        for name, row in getmembers(module, isfunction)
        if name.startswith("table")
    }
    assert set(rows.values()) == titles
    assert len(rows) == len(titles), "two rows have the same title"


def test_the_columns_arrive():
    def changes(name, base):
        return set(differences(recipe_config(base), recipe_config(name)))

    assert changes("table1a/vit-b-400e-64px", "table4/vit-b") == {"epochs", "image_size", "target.name"}
    assert recipe_config("table1a/vit-b-400e-64px").size == (64, 64)
    assert recipe_config("table1c/swin-b-2-2-18-0").encoder.depth == (2, 2, 18, 0)
    assert changes("table7/swin-l-hog-128px", "table4/swin-l") == set()
    assert changes("table10a/mim-image-encoder-learned", "table4/vit-b") == {"target.name", "image_size"}
    assert recipe_config("table10a/mim-patch-encoder-zeros").mask.token == "zeros"
    assert changes("table10b/swin-b-64px-0.50", "table4/swin-b") == {"mask.size", "mask.ratio"}
    assert changes("table16/vit-l-4b768d", "table3/fastmim-vit-l-800") == {
        "decoder.depth",
        "decoder.width",
        "epochs",
    }


EPOCHS = {"vit-b": 800, "vit-l": 800, "swin-b": 400, "swin-l": 400, "cmt": 800, "pvt": 800}


@pytest.mark.parametrize("name", [name for name in TABLED if name.startswith(("table2/", "table7/"))])
def test_epochs_are_those_of_the_captions(name):
    table, row = name.split("/")
    epochs = next(epochs for backbone, epochs in EPOCHS.items() if row.startswith(backbone))
    assert recipe_config(name).epochs == (800 if table == "table7" else epochs)


def test_table_10a_is_at_224_pixels_and_has_appendix_a2s_sizes():
    for place in ("mae-patch-decoder", "mim-patch-encoder", "mim-image-encoder"):
        for token in ("zeros", "learned"):
            assert recipe_config(f"table10a/{place}-{token}").size == (224, 224)


# (drop path, EMA, batch, rate for 256, decay, warm-up, norm), each looked up at the backbone's authors.
FROM_SCRATCH = {
    "vit-b": (0.1, 0.9999, 4096, 1e-4, 0.3, 20, None),
    "swin-b": (0.5, None, 1024, 2.5e-4, 0.05, 20, 5.0),
    "swin-l": (0.5, None, 1024, 2.5e-4, 0.05, 20, 5.0),
    "twins-l": (0.5, None, 1024, 2.5e-4, 0.05, 5, 5.0),
    "pvt-v1-l": (0.3, None, 1024, 2.5e-4, 0.05, 5, 1.0),
    "pvt-v2-b2": (0.1, None, 1024, 2.5e-4, 0.05, 5, None),
    "pvt-v2-b5": (0.3, None, 1024, 2.5e-4, 0.05, 5, 1.0),
    "convnext-t": (0.1, 0.9999, 4096, 2.5e-4, 0.05, 20, None),
    "convnext-b": (0.5, 0.9999, 4096, 2.5e-4, 0.05, 20, None),
    "convnextv2-b": (0.5, 0.9999, 4096, 2.5e-4, 0.05, 20, None),
    "cmt-s": (0.1, 0.99996, 1024, 2.5e-4, 0.05, 20, None),
    "cmt-b": (0.25, 0.99996, 1024, 2.5e-4, 0.05, 20, None),
}


def test_from_scratch_each_backbone_is_trained_as_its_authors_do():
    names = [name for name in TUNED if name.endswith("/scratch")]
    assert {name.split("/")[1] for name in names} == set(FROM_SCRATCH)
    for name in names:
        config = recipe_config(name)
        optim = config.optim
        found = (config.drop_path, config.ema, config.batch_size, optim.base_lr, optim.weight_decay)
        wanted = FROM_SCRATCH[name.split("/")[1]]
        assert (*found, config.schedule.warmup_epochs, optim.clip_norm) == wanted, name
        assert AUTHORS[recipe(name).backbone].source in recipe(name).notes


def test_vit_b_has_table_12s_rate_and_the_released_one_under_its_own_name():
    for name in TUNED:
        if recipe(name).backbone == "vit_base_patch16_224" and not name.endswith("/scratch"):
            released = name.endswith("-released")
            assert recipe_config(name).optim.base_lr == (6e-4 if released else 1e-3), name
            assert "0.0006" in recipe(name).header or released
    for name in ("table3/fastmim-vit-b-800", "table4/vit-b"):
        changed = differences(recipe_config(f"{name}/finetune"), recipe_config(f"{name}/finetune-released"))
        assert set(changed) == {"optim.base_lr"}


def test_hardware_is_said_only_where_there_is_a_figure():
    for name in (*NAMES, *TUNED):  # of detection and segmentation the paper names none
        assert ("V100" in recipe(name).header) == (recipe(name).paper != NO_FIGURE), name


def test_the_optimiser_is_that_of_table_11():
    for name in NAMES:
        config = recipe_config(name)
        optim = config.optim
        if config.method in ("simmim", "maskfeat"):  # they have their own
            continue
        base_lr = 1e-4 if config.method == "greenmim" else 1.5e-4  # its authors'
        assert (optim.base_lr, optim.weight_decay, optim.betas) == (base_lr, 0.05, (0.9, 0.95)), name
        assert (config.batch_size, config.schedule.warmup_epochs) == (2048, 10), name
        if config.method == "fastmim":
            assert (config.schedule.name == "step") == ("swin-l" in name), name
        epochs = sum(stage.epochs for stage in config.planned_stages)
        assert epochs == (config.epochs or int(name.rpartition("-")[2])), name


@pytest.mark.parametrize("name", [name for name in NAMES if name not in TABLED])
def test_a_methods_recipe_has_its_own_defaults_and_names_its_paper(name):
    found, config = recipe(name), recipe_config(name)
    own = name.partition("/")[0]
    assert "arXiv" in found.table or own == "fastmim-drop"
    changed = set(differences(defaults_of(config.method), config))
    free = {"model", "epochs", "batch_size", "schedule.warmup_epochs", "image_size"}
    if own == "fastmim-drop":
        free |= {"target.name", "decoder.depth", "decoder.width"}
    if own == "simmim":  # its authors' 800 epochs
        free |= {"optim.base_lr", "schedule.name", "schedule.decay_epochs"}
        assert (config.optim.base_lr, config.schedule.decay_epochs, config.epochs) == (5e-5, 700, 800)
    assert changed <= free | {"model_kwargs"} | ({"decoder.depth"} if "1b" in name else set())
    if "%" in found.paper:
        tabled = name.replace(f"{own}/", f"table3/{own}-").removesuffix("-8b512d")
        assert recipe_config(tabled) == config
        assert recipe(tabled).paper.split(" ")[0] == found.paper.split(" ")[0]


def test_dropping_with_hog_at_low_resolution_is_a_recipe():
    config = recipe_config("fastmim-drop/vit-b")
    assert (config.method, config.target.name, config.size, config.mask.ratio) == (
        "mae",
        "hog",
        (128, 128),
        0.75,
    )
    assert differences(config, recipe_config("table4/vit-b")) == {"method": ("mae", "fastmim")}


def test_resolving_writes_out_what_follows_from_the_backbone():
    before = torch.get_rng_state()
    config = resolve(recipe_config("table4/swin-b"))
    assert torch.equal(before, torch.get_rng_state())
    assert (config.mask.size, config.target.cell, config.model_kwargs["window_size"]) == (32, 8, 4)
    assert resolve(config) == config
    shortened = resolve(recipe_config("table1c/vit-b-8-blocks"))
    assert shortened.encoder.depth == 8
    assert "depth" not in shortened.model_kwargs
    assert resolve(recipe_config("table2/swin-l-pixel-192px")).model_kwargs["window_size"] == 12


def built(name):
    method = build_method(smoke(recipe_config(name)))
    assert method.encoder.width < 200
    assert sum(parameter.numel() for parameter in method.parameters()) < 3e6
    return method


@pytest.mark.parametrize("name", mostly_slow(KINDS, BUILT))
def test_a_smoke_size_builds(name):
    method = built(name)
    for stage in recipe_config(name).stages[1:]:
        method.set_image_size(stage.size)


def test_the_kinds_cover_every_backbone():
    assert {recipe_config(name).model for name in NAMES} - {recipe_config(name).model for name in KINDS} == {
        "pvt_v2_b5",  # PVTv2-B2 and ConvNeXt-T, but for depth
        "convnext_base",
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_smoke_size_builds(name):
    built(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_runs(name, tmp_path):
    assert main(["pretrain", "--recipe", name, "--smoke", "--out", str(tmp_path / "run")]) == 0


@pytest.mark.parametrize("name", mostly_slow(SAMPLE, TRAINED))
def test_a_sample_runs_in_its_smoke_size(name, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["pretrain", "--recipe", name, "--smoke", "--out", str(run), "--seed", "3"]) == 0
    steps = max(2, len(recipe_config(name).stages))
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert metrics[-1]["step"] == steps
    stored = yaml.safe_load((run / "config.yaml").read_text())
    assert (stored["data"], stored["batch_size"], stored["seed"]) == ("demo:photos", 4, 3)
    origin = json.loads((run / "encoder.json").read_text())
    timm.create_model(origin["model"], **origin["kwargs"])
    assert "constant baseline" in capsys.readouterr().out


def test_smoke_takes_given_data_and_needs_a_recipe(photos, tmp_path, capsys):
    run = tmp_path / "run"
    arguments = ["pretrain", "--smoke", "--data", str(photos), "--out", str(run)]
    assert main(arguments) == 2
    assert "give --recipe NAME" in capsys.readouterr().err
    assert not run.exists()
    assert main([*arguments, "--recipe", "table10a/mim-patch-encoder-learned", "--image-size", "32"]) == 0
    assert yaml.safe_load((run / "config.yaml").read_text())["data"] == str(photos)


def test_recipes_lists_all_or_those_that_begin_so(capsys):
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines if line.startswith("  ")] == ALL
    assert main(["recipes", "table3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line.startswith("  ")] == [
        name for name in ALL if name.startswith("table3/")
    ]
    assert "measured" in lines[0]


@pytest.mark.parametrize(
    "name",
    mostly_slow(
        ["table3/fastmim-vit-l-800", "table3/fastmim-p-swin-l-400", "table4/cmt-b"],
        ["table3/fastmim-p-swin-l-400"],
    ),
)
def test_a_name_prints_settings_that_pretrain_reads_back(name, tmp_path, capsys):
    assert main(["recipes", name]) == 0
    text = capsys.readouterr().out
    head = [line for line in text.splitlines() if line.startswith("#")]
    assert text.startswith("\n".join(head))
    for part in (recipe(name).paper, recipe(name).command, "8 V100", "not measured here"):
        assert part in "\n".join(head)
    config = build(PretrainConfig, yaml.safe_load(text))
    assert config == resolve(recipe_config(name))


@pytest.mark.parametrize("command", ["recipes {}", "pretrain --recipe {} --data demo:photos --out never"])
@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("table3/fastmim-vitb-800", "table3/fastmim-vit-b-800"),
        ("swin-b-400", "did you mean table3/fastmim-swin-b-400"),
        ("tabel4/cmt-s", "table4/cmt-s"),
        ("nothing-like-it", "`fastmim recipes` lists them"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(command, name, part, capsys):
    assert main(command.format(name).split()) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert part in line
    with pytest.raises(UsageError):
        recipe_config(name)


@pytest.mark.parametrize("name", TUNED)
def test_a_fine_tuning_survives_yaml_and_belongs_to_a_pre_training(name):
    config, found = recipe_config(name), recipe(name)
    assert (config.data, config.out) == ("", "")
    assert build(FinetuneConfig, yaml.safe_load(to_yaml(config))) == config
    base = name.rpartition("/")[0]
    assert found.backbone == recipe_config(base).model
    assert config.encoder == ("none" if name.endswith("/scratch") else f"runs/{base}")
    assert found.title.startswith(recipe(base).title.rstrip(".").split(":")[0])
    assert config.batch_size == (1024 if "/finetune" in name else AUTHORS[found.backbone].batch_size)
    assert "fastmim finetune" in found.header
    assert ("not measured here" in found.header) == (found.paper != NO_FIGURE)


def test_fine_tuning_has_the_papers_epochs_and_table_12():
    paper = paper_figures()
    for row, entry in paper["table4"].items():
        name = f"table4/{row.replace('_', '-')}"
        assert recipe_config(f"{name}/finetune").epochs == entry[4]
        if row in paper["table4_supervised"]:
            assert recipe_config(f"{name}/scratch").epochs == paper["table4_supervised"][row][0]
            assert str(entry[-1]) in recipe(f"{name}/scratch").paper
    swin = recipe_config("table4/swin-l/finetune")
    assert (swin.layer_decay, swin.drop_path, swin.optim.betas) == (0.75, 0.3, (0.9, 0.999))
    assert recipe_config("table3/fastmim-vit-b-800/finetune").layer_decay == 0.7
    assert recipe_config("table7/cmt-s-hog-128px/finetune").epochs == 200
    for row in ("vit-b", "pvt-v2-b2"):  # its caption: 400 epochs of pre-training and 100 of fine-tuning
        for arm in ("fastmim", "fastmim-kd"):
            assert recipe_config(f"table9/{row}-{arm}").epochs == 400
            assert recipe_config(f"table9/{row}-{arm}/finetune").epochs == 100
    assert recipe_config("table15/mae-vit-b-400e-96px/finetune").epochs == 100
    assert recipe("table9/vit-b-fastmim-kd/finetune").paper.startswith("83.8 %")
    sizes = {name: recipe_config(name).image_size for name in TUNED if name.startswith("table8/")}
    assert sorted(sizes.values()) == sorted(line[3] for line in paper["table8_swin_b"])


def test_fcmae_is_fine_tuned_as_its_authors_do():
    for epochs in (100, 300):
        config = recipe_config(f"table4/fcmae-convnextv2-b-{epochs}/finetune")
        assert (config.layer_decay, config.layer_decay_blocks, config.ema) == (0.6, 3, 0.9999)
        assert config.optim.base_lr * config.batch_size / 256 == pytest.approx(2.5e-3)
        assert (config.schedule.warmup_epochs, config.epochs, config.drop_path) == (20, epochs, 0.1)
        assert (config.augment.erase, config.augment.mixup, config.augment.cutmix) == (0.25, 0.8, 1.0)
    assert recipe_config("table4/convnextv2-b/finetune").layer_decay_blocks == 1


@pytest.mark.parametrize(
    "name", mostly_slow(["table4/vit-b/finetune", "table4/swin-b/scratch"], ["table4/vit-b/finetune"])
)
def test_a_fine_tuning_runs_in_its_smoke_size(name, tmp_path):
    run = tmp_path / "run"
    assert main(["finetune", "--recipe", name, "--smoke", "--out", str(run)]) == 0
    assert json.loads((run / "results.json").read_text())["steps"] == 2


def test_a_recipe_of_another_verb_says_which(tmp_path, capsys):
    arguments = ["--data", "demo:photos", "--out", str(tmp_path / "run")]
    assert main(["pretrain", "--recipe", "table4/vit-b/finetune", *arguments]) == 2
    assert "fastmim finetune" in capsys.readouterr().err


# Detection and segmentation.

DENSE = [name for name in ALL if recipe(name).verb in ("detect", "segment")]


def test_dense_rows_are_the_papers():
    """13 of table 5's rows, of which BEiT's and the one without a schedule are not ours; 4 of table 6's."""
    figures = paper_figures()
    five = [name for name in DENSE if name.startswith("table5/")]
    assert len(five) == 13
    assert len([name for name in DENSE if name.startswith("table6/")]) == 4
    assert len([name for name in DENSE if name.startswith("table1b/")]) == 6
    box, *_, mask, _, _ = figures["table5_coco"]["mae_setting_25e"]["fastmim_vit_b"]
    assert recipe("table5/mae-setting-25e/fastmim-vit-b").paper == f"{box} % box AP, {mask} % mask AP"
    assert recipe("table6/simmim-setting/fastmim-swin-b").paper == "52.6 % mIoU"
    assert recipe("table1b/vit-b-hog-128px/detect").paper == "50.7 % box AP, 45.1 % mask AP"


@pytest.mark.parametrize("name", DENSE)
def test_dense_recipes_start_from_the_encoder_of_a_recipe(name):
    found = recipe(name)
    run = recipe_config(name).encoder.removeprefix("runs/")
    assert run in ALL
    assert recipe(run).backbone == found.backbone
    assert yaml.safe_load(found.settings)["encoder"] == f"runs/{run}"
    assert build(type(found.config), yaml.safe_load(found.settings)) == found.config


def test_settings_of_the_papers_appendix():
    """Peak learning rate, batch, weight decay, epochs, drop path, schedule (tables 13 and 14)."""

    def facts(name: str) -> tuple:
        config = recipe_config(name)
        peak = config.optim.base_lr * config.batch_size / 256
        return (
            round(peak, 9),
            config.batch_size,
            config.optim.weight_decay,
            config.drop_path,
            config.schedule.name,
        )

    assert facts("table5/mae-setting-100e/mae-vit-b") == (8e-5, 32, 0.1, 0.1, "cosine")
    assert facts("table5/simmim-setting/fastmim-swin-b") == (6e-5, 32, 0.05, 0.2, "step")
    assert facts("table5/simmim-setting/fastmim-p-swin-l-ft") == (6e-5, 32, 0.05, 0.3, "step")
    assert facts("table5/greenmim-setting/greenmim-swin-b") == (1e-4, 16, 0.05, 0.2, "step")
    assert facts("table6/mae-setting/fastmim-vit-b") == (1e-3, 16, 0.05, 0.1, "linear")
    assert facts("table6/simmim-setting/fastmim-swin-b") == (3e-4, 16, 0.05, 0.1, "linear")
    assert [recipe_config(f"table5/mae-setting-{e}e/mae-vit-b").epochs for e in (25, 100)] == [25, 100]
    assert recipe_config("table5/simmim-setting/fastmim-swin-b").epochs == 36
    assert recipe_config("table6/mae-setting/fastmim-vit-b").layer_decay == 0.65
    assert recipe_config("table6/simmim-setting/fastmim-swin-b").layer_decay == 0.9
    assert {recipe_config(name).schedule.warmup_steps for name in DENSE} == {1500}
    assert recipe_config("table6/mae-setting/fastmim-vit-b").steps == 160_000
