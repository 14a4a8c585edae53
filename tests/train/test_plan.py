from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from fastmim.train.optim import build_adamw, carry_state, guarded_step
from fastmim.train.sampler import Stream
from fastmim.train.schedules import build_schedule
from fastmim.train.settings import OptimConfig, ScheduleConfig
from fastmim.train.stages import Stage, build_plan, parse_stages

THREE = parse_stages("128x2e,160x3s@8/2,192x1e")


def test_a_plan_goes_on_where_the_stage_before_ended():
    plan = build_plan(THREE, images=20, batch_size=4, micro_batch=None)
    assert [(leg.first_step, leg.last_step, leg.first_sample) for leg in plan.legs] == [
        (0, 10, 0),
        (10, 13, 40),
        (13, 18, 64),
    ]
    assert [leg.micro_batch for leg in plan.legs] == [None, 2, None]
    assert plan.total_steps == 18
    assert plan.total_epochs == pytest.approx(84 / 20)


def test_the_order_of_the_data_knows_no_stages():
    plan = build_plan(THREE, 20, 4, None)
    stream = Stream(np.arange(20), seed=3)
    staged = [i for leg in plan.legs for _, i in stream.batches(leg, leg.first_step)]
    assert np.array_equal(np.concatenate(staged), Stream(np.arange(20), seed=3).take(0, 84))


@pytest.mark.parametrize("name", ["cosine", "step"])
def test_the_schedule_goes_on_and_follows_the_batch(name):
    plan = build_plan(THREE, 20, 4, None)
    whole = build_plan([Stage(128, steps=21)], 20, 4, None)  # as many images in steps of the first batch
    config = ScheduleConfig(name=name, warmup_epochs=1, decay_epochs=2)
    one = build_schedule(config, 1.0, whole, whole.legs[0])
    for leg in plan.legs:
        schedule = build_schedule(config, 1.0, plan, leg)
        for step in range(leg.first_step, leg.last_step):
            same_place = leg.samples_before(step) // 4
            assert schedule.lr(step) == pytest.approx(one.lr(same_place) * leg.batch_size / 4)


def test_the_schedule_of_one_size_in_pieces_is_the_schedule_of_the_whole():
    pieces = build_plan(parse_stages("96x10s,128x20s,160x10s"), 50, 4, None)
    whole = build_plan([Stage(96, steps=40)], 50, 4, None)
    rates = [
        build_schedule(ScheduleConfig(), 1.0, pieces, leg).lr(step)
        for leg in pieces.legs
        for step in range(leg.first_step, leg.last_step)
    ]
    assert rates == [build_schedule(ScheduleConfig(), 1.0, whole, whole.legs[0]).lr(s) for s in range(40)]
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

    def carry(tensors):
        return tensors | {
            "table": nn.functional.interpolate(tensors["table"], (6, 6), mode="bicubic", antialias=True)
        }

    carry_state(old, new, carry)
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
