import pytest
import yaml

from fastmim.config import PretrainConfig, build, differences, merge, read_yaml, to_yaml
from fastmim.errors import UsageError
from fastmim.masking import Masking
from fastmim.recipes import RECIPES, find_recipe


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
        ({"mask.ratio": 1.5}, "between 0 and 1"),
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


def test_the_learning_rate_is_a_function_of_the_batch():
    assert merge(PretrainConfig(), {"batch_size": 2048}).peak_lr == pytest.approx(1.2e-3)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_resolve_and_say_where_they_stand(name):
    config = find_recipe(name)
    assert config.data == ""
    assert "Paper, table" in RECIPES[name].__doc__
    assert build(PretrainConfig, yaml.safe_load(to_yaml(config))) == config
