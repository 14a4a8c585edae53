import pytest
import yaml

from fastmim.cli.entry import main
from fastmim.config import PretrainConfig, build, differences, merge, read_yaml, to_yaml
from fastmim.errors import UsageError
from fastmim.mim.settings import Masking


def test_yaml_round_trip(tmp_path):
    config = merge(
        PretrainConfig(), {"mask.ratio": 0.6, "image_size": (96, 128), "model_kwargs": {"depth": 2}}
    )
    (tmp_path / "c.yaml").write_text(to_yaml(config))
    assert build(PretrainConfig, read_yaml(tmp_path / "c.yaml")) == config


def test_nested_dotted_and_typed_settings_are_the_same():
    ways = [{"mask": {"ratio": 0.6}}, {"mask.ratio": 0.6}, {"mask": Masking(ratio=0.6)}]
    assert len({merge(PretrainConfig(), way).mask.ratio for way in ways}) == 1


def test_model_kwargs_are_replaced_not_mixed():
    base = merge(PretrainConfig(), {"model_kwargs": {"depth": 2}})
    assert merge(base, {"model_kwargs": {"embed_dim": 32}}).model_kwargs == {"embed_dim": 32}


def test_yaml_numbers_that_yaml_reads_as_text():
    values = yaml.safe_load("optim: {base_lr: 1e-3}")
    assert isinstance(values["optim"]["base_lr"], str)
    assert merge(PretrainConfig(), values).optim.base_lr == 1e-3


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"batchsize": 3}, "did you mean batch_size?"),
        ({"mask": {"ratoi": 0.5}}, "unknown setting mask.ratoi; did you mean mask.ratio?"),
        ({"mask": 0.5}, "ratio, size, token"),
        ({"mask.ratio": "half"}, "mask.ratio = 'half'"),
        ({"mask.ratio": 1.5}, "mask.ratio = 1.5 must be below 1"),
        ({"target.name": "hgo"}, "target.name = 'hgo'"),
        ({"steps": 0}, "steps = 0 must be at least 1"),
        ({"epochs": 0}, "epochs = 0"),
        ({"batch_size": 9, "devices": 2}, "multiple of the 2 devices"),
        ({"image_size": 1}, "image_size"),
        ({"optim.base_lr": -1}, "optim.base_lr"),
        ({"decoder.width": 100}, "multiple of 32"),
    ],
)
def test_a_wrong_setting_is_named_with_its_value(settings, part):
    with pytest.raises(UsageError) as raised:
        merge(PretrainConfig(), settings)
    assert part in str(raised.value)


def test_differences_are_named():
    other = merge(PretrainConfig(), {"seed": 3, "mask.ratio": 0.6})
    assert differences(PretrainConfig(), other) == {"seed": (0, 3), "mask.ratio": (0.75, 0.6)}


def test_stages_are_text_or_a_list_and_the_file_gives_them_back():
    text = "128x200e,160:192x30s@1024/64,192x100e@/8"
    config = merge(PretrainConfig(), {"stages": text})
    assert ",".join(map(str, config.stages)) == text
    assert config.size == (128, 128)
    listed = [
        {"image_size": 128, "epochs": 200},
        {"image_size": [160, 192], "steps": 30, "batch_size": 1024, "micro_batch": 64},
        {"image_size": 192, "epochs": 100, "micro_batch": 8},
    ]
    assert merge(PretrainConfig(), {"stages": listed}).stages == config.stages
    assert merge(PretrainConfig(), {"stages": text.split(",")}).stages == config.stages
    assert merge(PretrainConfig(image_size=64, steps=3), {"stages": text}).stages == config.stages
    assert build(PretrainConfig, yaml.safe_load(to_yaml(config))) == config


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"stages": "128x200"}, "'128x200'"),
        ({"stages": "128x0e"}, "epochs = 0"),
        ({"stages": "128x2.5s"}, "'128x2.5s'"),
        ({"stages": [{"image_size": 128}]}, "epochs or steps"),
        ({"stages": "128x2e", "steps": 4}, "steps = 4"),
        ({"stages": "128x2e", "image_size": 64}, "image_size = 64"),
        ({"stages": ","}, "''"),
        ({"stages": [{"image_size": 128, "epochs": 2, "batch": 3}]}, "did you mean stages.0.batch_size?"),
        ({"epochs": float("inf")}, "epochs = inf"),
        ({"stages": "128x2e@5", "devices": 2}, "batch_size = 5"),
        ({"in_chans": 4, "crop": {"mean": [0.5] * 3, "std": [0.5] * 3}}, "crop.mean has 3"),
    ],
)
def test_stages_and_channels_that_cannot_be_are_told(settings, part):
    with pytest.raises(UsageError) as raised:
        merge(PretrainConfig(), settings)
    assert part in str(raised.value)


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("optim: {base_lr: .nan}", "optim.base_lr = nan"),
        ("optim: {base_lr: .inf}", "optim.base_lr = inf"),
        ("optim: {base_lr: 1.0e400}", "optim.base_lr = inf"),
        ("optim: {base_lr: yes}", "optim.base_lr = true"),
        ("optim: {weight_decay: .nan}", "optim.weight_decay = nan"),
        ("optim: {betas: [.nan, 0.9]}", "optim.betas"),
        ("optim: {betas: [0.9, 1.5]}", "optim.betas"),
        ("optim: {clip_norm: .nan}", "optim.clip_norm"),
        ("schedule: {warmup_epochs: .nan}", "schedule.warmup_epochs"),
        ("schedule: {min_lr: .inf}", "schedule.min_lr"),
        ("batch_size: yes", "batch_size = true"),
        ("batch_size: 2026-01-01", "batch_size"),
        ("batch_size: 1000000000000", "batch_size"),
        ("steps: 0x" + "f" * 5000, "steps"),
        ("steps: yes", "steps = true"),
        ("epochs: .inf", "epochs"),
        ("workers: 99999999999", "workers"),
        ("image_size: 1000000000", "image_size = 1000000000x1000000000"),
        ("image_size: [32, 100000]", "image_size = 32x100000"),
        ("in_chans: 1000000000", "in_chans"),
        ("decoder: {width: 1000000000000}", "decoder.width"),
        ("decoder: {depth: 1000000}", "decoder.depth"),
        ("model_kwargs: {scale: .nan}", "model_kwargs.scale = nan"),
        ("model: [a]", "model"),
        ("crop: 5", "crop"),
        ("5: 6", "unknown setting 5"),
    ],
    ids=lambda value: value[:24],
)
def test_settings_that_mean_nothing_are_named(text, field, tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text(text)
    with pytest.raises(UsageError) as refused:
        build(PretrainConfig, read_yaml(file), f"{file}: ")
    said = str(refused.value)
    assert field in said
    assert len(said.splitlines()) == 1
    assert len(said) < 800


@pytest.mark.parametrize("flags", ["--optim.base-lr nan", "--schedule.min-lr inf", "--in-chans 100000"])
def test_flags_that_mean_nothing_are_named(flags, tmp_path, capsys):
    command = f"pretrain --data demo:digits --out {tmp_path / 'run'} {flags}"
    assert main(command.split()) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert flags.split()[0].removeprefix("--").replace("-", "_") in line
    assert not (tmp_path / "run").exists()
