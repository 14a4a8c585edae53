import os
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from fastmim.data.loading.train_loader import Share
from fastmim.errors import RunError, why
from fastmim.system.files import write_atomically
from fastmim.train.checkpoint import Checkpoint, Choices, OptimizerState, Progress
from fastmim.train.checkpoint_folder import load_checkpoint, save_checkpoint
from fastmim.train.device import choose_micro_batch, saved_bytes
from fastmim.train.kernels import KernelChoices
from fastmim.train.logs import MetricsFile
from fastmim.train.optim import build_adamw, guarded_step, scaled_lr
from fastmim.train.run_files import LAST
from fastmim.train.sampler import InfiniteSampler
from fastmim.train.schedules import build_schedule
from fastmim.train.settings import OptimConfig, ScheduleConfig
from fastmim.train.stages import StageConfig, build_plan


def plan_of(steps, batch, images):
    return build_plan([StageConfig(128, steps=steps)], images, batch, None)


def stage(steps, batch):
    return plan_of(steps, batch, 100).stages[0]


def schedule_of(config, steps, images, batch=256):
    plan = plan_of(steps, batch, images)
    return build_schedule(config, 1.0, plan, plan.stages[0])


def test_each_epoch_is_a_permutation_and_batches_run_across_epochs():
    stream = InfiniteSampler(np.arange(10, 20), seed=1)
    order = stream.take(0, 40)
    for epoch in range(4):
        assert sorted(order[10 * epoch : 10 * epoch + 10]) == list(range(10, 20))
    assert not np.array_equal(order[:10], order[10:20])
    batches = [indices for _, indices in stream.batches(stage(10, 4), 0)]
    assert np.array_equal(np.concatenate(batches), order)
    later = list(InfiniteSampler(np.arange(10, 20), seed=1).batches(stage(10, 4), 7))
    assert [step for step, _ in later] == [7, 8, 9]
    assert np.array_equal(later[0][1], batches[7])


def test_ranks_share_a_batch_without_overlap():
    stream = InfiniteSampler(np.arange(100), seed=0)
    whole = [i for _, i in stream.batches(stage(3, 8), 0)]
    shares = [Share.of(8, rank, 2).part for rank in (0, 1)]
    halves = [
        [i for _, i in InfiniteSampler(np.arange(100), 0).batches(stage(3, 8), 0, part)] for part in shares
    ]
    for step in range(3):
        assert np.array_equal(np.concatenate([halves[0][step], halves[1][step]]), whole[step])


def test_cosine_with_warm_up():
    schedule = schedule_of(ScheduleConfig(warmup_epochs=2, min_lr=0.01), 100, 5 * 256)
    rates = [schedule.lr(step) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[10] == 1.0
    assert all(a >= b for a, b in pairwise(rates[10:]))
    assert schedule.lr(100) == pytest.approx(0.01)
    assert schedule.lr(55) == pytest.approx(0.505)


def test_steps_down_by_ten():
    config = ScheduleConfig(name="step", warmup_epochs=0, decay_epochs=2)
    schedule = schedule_of(config, 100, 5 * 256)
    assert [schedule.lr(s) for s in (0, 9, 10, 19, 20)] == pytest.approx([1, 1, 0.1, 0.1, 0.01])


def test_warm_up_is_ten_epochs_but_at_most_a_tenth_of_the_run():
    assert schedule_of(ScheduleConfig(), 8000, 10 * 256).warmup_steps == 100
    assert schedule_of(ScheduleConfig(), 100, 10 * 256).warmup_steps == 10


def test_the_learning_rate_grows_with_the_batch():
    assert scaled_lr(1.5e-4, 2048) == pytest.approx(1.2e-3)


def test_only_matrices_and_kernels_decay():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    module.token = nn.Parameter(torch.zeros(1, 1, 5))
    groups = build_adamw(module, OptimConfig()).param_groups
    names = [set(group["param_names"]) for group in groups]
    assert [group["weight_decay"] for group in groups] == [0.05, 0.0]
    assert names == [{"0.weight", "2.weight"}, {"0.bias", "1.weight", "1.bias", "2.bias", "token"}]


def network():
    torch.manual_seed(0)
    module = nn.Linear(3, 2)
    return module, build_adamw(module, OptimConfig(weight_decay=0.1))


def backward(module, scale):
    (module(torch.ones(4, 3)).sum() * scale).backward()


def test_a_step_with_a_non_finite_gradient_changes_nothing():
    module, optimizer = network()
    backward(module, 1.0)
    guarded_step(optimizer, 1e-2, None)
    weights = [p.clone() for p in module.parameters()]
    state = {k: v.clone() for k, v in optimizer.state[module.weight].items()}
    backward(module, float("nan"))
    _, taken = guarded_step(optimizer, 1e-2, 1.0)
    assert taken == 0
    assert all(torch.equal(a, b) for a, b in zip(weights, module.parameters(), strict=True))
    assert all(torch.equal(v, optimizer.state[module.weight][k]) for k, v in state.items())
    backward(module, 1.0)
    _, taken = guarded_step(optimizer, 1e-2, None)
    assert taken == 1
    assert not torch.equal(weights[0], module.weight)


def test_clipping_bounds_the_gradient_and_reports_its_length():
    module, optimizer = network()
    backward(module, 100.0)
    before = torch.cat([p.grad.flatten() for p in module.parameters()]).norm()
    seen = []
    optimizer.register_step_pre_hook(
        lambda *_: seen.append(torch.cat([p.grad.flatten() for p in module.parameters()]).norm())
    )
    norm, _ = guarded_step(optimizer, 1e-2, 0.5)
    assert torch.allclose(norm, before)
    assert float(seen[0]) == pytest.approx(0.5, rel=1e-4)


def checkpoint_at(step):
    """A run without weights, at a step."""
    return Checkpoint(
        module={},
        optimizer=OptimizerState({}, []),
        progress=Progress(step),
        stage=0,
        metrics_bytes=0,
        choices=Choices("32-true", 4, KernelChoices()),
        identity={"data_digest": "abc"},
        world_size=1,
    )


def test_checkpoints_are_kept_to_the_number_asked_for(tmp_path):
    for step in range(5):
        save_checkpoint(tmp_path, checkpoint_at(step), keep=3)
    assert load_checkpoint(tmp_path / LAST) == checkpoint_at(4)
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["step-000000002.ckpt", "step-000000003.ckpt"]  # and last.ckpt, of step 4
    assert load_checkpoint(tmp_path / "checkpoints" / kept[0]).progress.step == 2


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, lambda file: file.write(b"old"))

    def fails(file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(RunError, match="No space left on device; the earlier one is intact"):
        write_atomically(path, fails)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_damaged_checkpoint_is_named_with_the_one_before(tmp_path):
    for step in (1, 2):
        save_checkpoint(tmp_path, checkpoint_at(step), keep=2)
    (tmp_path / LAST).write_bytes(b"rubbish")
    with pytest.raises(RunError, match=r"last\.ckpt is damaged.*step-000000001\.ckpt"):
        load_checkpoint(tmp_path / LAST)


def test_code_in_a_checkpoint_is_never_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "evil"), "w"))

    torch.save({"module": Evil()}, tmp_path / LAST)
    with pytest.raises(RunError, match="damaged"):
        load_checkpoint(tmp_path / LAST)
    assert not (tmp_path / "evil").exists()


def test_activations_are_counted_without_the_weights():
    module = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 5))
    inputs = torch.randn(7, 10)
    assert saved_bytes(module, lambda: module(inputs)) == 4 * 7 * (10 + 20)


def test_the_micro_batch_divides_the_share_evenly():
    device = torch.device("cpu")
    assert choose_micro_batch(256, 1, 0, device) == 64
    assert choose_micro_batch(100, 1, 0, device) == 50
    assert choose_micro_batch(7, 1, 0, device) == 7
    assert choose_micro_batch(64, 10**15, 0, device) == 1


def test_metrics_that_cannot_be_written_are_one_line(tmp_path, monkeypatch):
    """A full device takes nothing, however often it is asked: also what is left over at the end."""
    if not os.path.exists("/dev/full"):
        pytest.skip("there is no /dev/full")
    metrics = MetricsFile(tmp_path / "metrics.jsonl", 0)
    metrics._file.close()
    metrics._file = open("/dev/full", "ab")  # noqa: SIM115
    with pytest.raises(RunError, match=r"cannot write .*metrics\.jsonl: No space left on device"):
        metrics.write({"step": 1})
    metrics.close()
    metrics = MetricsFile(tmp_path / "metrics.jsonl", 0)

    def fails(_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(RunError, match=r"cannot write .*metrics\.jsonl: Input/output error"):
        metrics.size()
    metrics.close()


def test_a_file_where_a_folder_should_be_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot write .*: Not a directory"):
        write_atomically(tmp_path / "file" / "x", lambda file: file.write(b"1"))


def test_the_systems_words_are_found_in_those_of_pyarrow():
    wrapped = OSError(28, "Error writing bytes to file. Detail: [errno 28] No space left on device")
    assert why(wrapped) == "No space left on device"
    assert why(OSError("cut off")) == "cut off"
