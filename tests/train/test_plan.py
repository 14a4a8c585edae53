from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from fastmim.train.optim import build_adamw, guarded_step, resample_state
from fastmim.train.sampler import InfiniteSampler
from fastmim.train.schedules import build_schedule
from fastmim.train.settings import OptimConfig, ScheduleConfig
from fastmim.train.stages import StageConfig, build_plan, parse_stages

THREE = parse_stages("128x2e,160x3s@8/2,192x1e")


def test_a_plan_goes_on_where_the_stage_before_ended():
    plan = build_plan(THREE, images=20, batch_size=4, micro_batch=None)
    assert [(stage.first_step, stage.last_step, stage.first_sample) for stage in plan.stages] == [
        (0, 10, 0),
        (10, 13, 40),
        (13, 18, 64),
    ]
    assert [stage.micro_batch for stage in plan.stages] == [None, 2, None]
    assert plan.total_steps == 18
    assert plan.total_epochs == pytest.approx(84 / 20)


def test_the_order_of_the_data_knows_no_stages():
    plan = build_plan(THREE, 20, 4, None)
    stream = InfiniteSampler(np.arange(20), seed=3)
    staged = [i for stage in plan.stages for _, i in stream.batches(stage, stage.first_step)]
    assert np.array_equal(np.concatenate(staged), InfiniteSampler(np.arange(20), seed=3).take(0, 84))


@pytest.mark.parametrize("name", ["cosine", "step"])
def test_the_schedule_goes_on_and_follows_the_batch(name):
    plan = build_plan(THREE, 20, 4, None)
    whole = build_plan(
        [StageConfig(128, steps=21)], 20, 4, None
    )  # as many images in steps of the first batch
    config = ScheduleConfig(name=name, warmup_epochs=1, decay_epochs=2)
    one = build_schedule(config, 1.0, whole, whole.stages[0])
    for stage in plan.stages:
        schedule = build_schedule(config, 1.0, plan, stage)
        for step in range(stage.first_step, stage.last_step):
            same_place = stage.samples_before(step) // 4
            assert schedule.lr(step) == pytest.approx(one.lr(same_place) * stage.batch_size / 4)


def test_the_schedule_of_one_size_in_pieces_is_the_schedule_of_the_whole():
    pieces = build_plan(parse_stages("96x10s,128x20s,160x10s"), 50, 4, None)
    whole = build_plan([StageConfig(96, steps=40)], 50, 4, None)
    rates = [
        build_schedule(ScheduleConfig(), 1.0, pieces, stage).lr(step)
        for stage in pieces.stages
        for step in range(stage.first_step, stage.last_step)
    ]
    assert rates == [build_schedule(ScheduleConfig(), 1.0, whole, whole.stages[0]).lr(s) for s in range(40)]
    assert all(a >= b for a, b in pairwise(rates[4:]))


def test_the_optimiser_goes_on_with_tables_of_another_size():
    torch.manual_seed(0)
    small = nn.ParameterDict({"table": torch.randn(1, 2, 4, 4), "kernel": torch.randn(3, 3)})
    large = nn.ParameterDict({"kernel": small["kernel"], "table": torch.randn(1, 2, 6, 6)})
    small["bias"] = large["bias"] = nn.Parameter(torch.zeros(3))
    old, new = build_adamw(small, OptimConfig()), build_adamw(large, OptimConfig())
    for parameter in small.values():
        parameter.grad = torch.randn_like(parameter)
    guarded_step(old, 1e-3, None)

    def resample(tensors):
        return tensors | {
            "table": nn.functional.interpolate(tensors["table"], (6, 6), mode="bicubic", antialias=True)
        }

    resample_state(old, new, resample)
    before = {name: old.state[parameter] for name, parameter in small.items()}
    after = {name: new.state[parameter] for name, parameter in large.items()}
    assert all(torch.equal(after["kernel"][key], before["kernel"][key]) for key in before["kernel"])
    assert after["table"]["step"] == 1
    assert after["table"]["exp_avg"].shape == (1, 2, 6, 6)
    assert (after["table"]["exp_avg_sq"] >= 0).all()
    for parameter in large.values():
        parameter.grad = torch.randn_like(parameter)
    _, taken = guarded_step(new, 1e-3, None)
    assert taken == 1
    assert new.state[large["table"]]["step"] == 2
