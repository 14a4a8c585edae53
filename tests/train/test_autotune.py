"""Which kernels are taken, and that trying them can cost nothing."""

import os
import signal
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import timm
import torch
from lightning_fabric import Fabric
from torch import nn

from fastmim.errors import UsageError
from fastmim.system import hardware
from fastmim.train import autotune as tuning
from fastmim.train import trial_process, trials
from fastmim.train.autotune import StepToTune, autotune
from fastmim.train.kernels import KernelChoices, own_threads
from fastmim.train.settings import KernelConfig
from fastmim.train.trial_process import Parcel, Trial

pytestmark = pytest.mark.usefixtures("real_trials")

LAST = {"memory_format": torch.channels_last}


@pytest.fixture(autouse=True)
def _nothing_remembered(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTMIM_CACHE", str(tmp_path))
    monkeypatch.setattr(tuning, "others_compute", lambda threads: False)


@pytest.fixture
def fabric():
    return Fabric(accelerator="cpu", devices=1)


def vit():
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, embed_dim=32, depth=2, num_heads=2, num_classes=0
    )


def convnext():
    return timm.create_model("convnext_atto", num_classes=0)


class Tried:
    """In place of another process: what comes of a way is ``outcome(kernels)``; a number is its seconds."""

    def __init__(self, outcome):
        self.outcome = outcome
        self.ways = []

    def __call__(self, *_):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def of(self, kernels):
        self.ways.append(kernels)
        found = self.outcome(kernels)
        return found if isinstance(found, Trial) else Trial(found, 0.0)


def step(module, images, planned=8.0, **facts):
    return StepToTune(module, lambda count: (images[:count],), len(images), planned, {"model": "m", **facts})


def settle(fabric, config, module, outcome, monkeypatch, planned=1.0):
    """What is chosen where a way comes out so, which ways were tried, and what was said."""
    tried, said = Tried(outcome), []
    monkeypatch.setattr(tuning, "Trials", tried)
    images = torch.zeros(8, 3, 32, 32)
    chosen = autotune(fabric, config, step(module, images, planned), said.append)
    return chosen, tried.ways, said


def test_the_faster_way_is_taken_and_remembered(fabric, monkeypatch):
    fast_plain = lambda kernels: 1.0 if kernels.attention == "plain" else 2.0  # noqa: E731
    config = KernelConfig(optimizer="fused", compile="none", threads=1)
    chosen, tried, _ = settle(fabric, config, vit(), fast_plain, monkeypatch)
    assert chosen == KernelChoices(attention="plain", threads=1)
    assert [way.attention for way in tried] == ["fused", "plain"]
    chosen, tried, _ = settle(fabric, config, vit(), lambda _: 1.0, monkeypatch)
    assert chosen == KernelChoices(attention="plain", threads=1)
    assert tried == []


def test_on_a_busy_machine_nothing_is_remembered(fabric, monkeypatch):
    monkeypatch.setattr(tuning, "others_compute", lambda threads: True)
    config = KernelConfig(optimizer="fused", compile="none", threads=1)
    for plain, expected in ((1.0, "plain"), (3.0, "fused")):
        outcome = lambda kernels: plain if kernels.attention == "plain" else 2.0  # noqa: E731, B023
        chosen, tried, said = settle(fabric, config, vit(), outcome, monkeypatch)
        assert chosen.attention == expected
        assert tried
        assert "busy" in said[-1]


def test_a_way_that_gains_little_or_fails_is_not_taken(fabric, monkeypatch):
    def fails(kernels):
        return Trial(failure="crashed (SIGABRT)") if kernels.memory_format == "channels-last" else 1.0

    config = KernelConfig(optimizer="fused", compile="none", threads=1)
    chosen, tried, said = settle(fabric, config, convnext(), fails, monkeypatch)
    assert chosen == KernelChoices(threads=1)
    assert len(tried) == 2
    assert said[-1] == "memory_format channels-last crashed (SIGABRT): not taken"
    monkeypatch.setenv("FASTMIM_CACHE", "off")
    little = lambda kernels: 0.97 if kernels.memory_format == "channels-last" else 1.0  # noqa: E731
    assert settle(fabric, config, convnext(), little, monkeypatch)[0] == KernelChoices(threads=1)


def test_a_way_with_other_gradients_is_not_taken_however_fast(fabric, monkeypatch):
    def wrong(kernels):
        return Trial(0.1, 0.01) if kernels.memory_format == "channels-last" else Trial(1.0, 0.0)

    config = KernelConfig(optimizer="fused", compile="none", threads=1)
    chosen, _, said = settle(fabric, config, convnext(), wrong, monkeypatch)
    assert chosen == KernelChoices(threads=1)
    assert "gave other gradients (0.01 apart): not taken" in said[-1]


def test_where_rounding_is_coarse_as_much_is_allowed():
    usual = Trial(1.0, 0.02)  # in bfloat16, from float32
    assert Trial(1.0, 0.03).agrees_with(usual)
    assert not Trial(1.0, 0.06).agrees_with(usual)
    assert not Trial(1.0).agrees_with(usual)  # not finite
    assert Trial(1.0, 0.03).agrees_with(Trial(1.0, 0.0, noise=0.02))  # rounding moves it as much


def test_what_is_told_is_not_measured(fabric, monkeypatch):
    told = KernelConfig("plain", "channels-last", "target", "foreach", 1)
    chosen, tried, _ = settle(fabric, told, convnext(), lambda _: 1.0, monkeypatch)
    assert chosen == KernelChoices("plain", "channels-last", "target", "foreach", 1)
    assert tried == []
    with pytest.raises(UsageError, match=r"kernels\.threads = -1"):
        KernelConfig(threads=-1)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({0: 1.0, 4: 0.9, 2: 1.5, 1: 1.5}, 4),  # faster
        ({0: 1.0, 4: 1.01, 2: 1.02, 1: 1.5}, 2),  # as fast
        ({0: 1.0, 4: 1.5, 2: 2.0, 1: 3.0}, 0),
    ],
)
def test_the_fewest_threads_that_are_as_fast_are_taken(fabric, monkeypatch, seconds, expected):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    config = KernelConfig("fused", "contiguous", "none", "fused")
    with own_threads():
        torch.set_num_threads(8)
        outcome = lambda kernels: seconds[kernels.threads]  # noqa: E731
        chosen, _, _ = settle(fabric, config, vit(), outcome, monkeypatch)
        assert chosen.threads == expected
        monkeypatch.setenv("OMP_NUM_THREADS", "8")  # the user's word
        assert settle(fabric, config, vit(), outcome, monkeypatch)[:2] == (KernelChoices(), [])


def test_compiling_is_tried_only_where_the_run_is_long(fabric, monkeypatch):
    config = KernelConfig(attention="fused", memory_format="contiguous", optimizer="fused", threads=1)
    fast = lambda kernels: 0.5 if kernels.compile == "model" else 1.0  # noqa: E731
    assert settle(fabric, config, vit(), fast, monkeypatch, planned=80)[0].compile == "none"
    assert settle(fabric, config, vit(), fast, monkeypatch, planned=80_000)[0].compile == "model"


def test_cuda_graphs_need_cuda(fabric):
    with pytest.raises(UsageError, match=r"kernels\.compile = cudagraphs"):
        autotune(fabric, KernelConfig(compile="cudagraphs"), step(vit(), torch.zeros(1)))


class Delicate(nn.Module):
    """Its loss hangs on the last digits of what it computes, so that each way of computing has another."""

    def __init__(self):
        super().__init__()
        self.convolutions = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3))

    def forward(self, images):
        if not self.convolutions[0].weight.is_contiguous(**LAST):
            time.sleep(0.05)
        return SimpleNamespace(loss=torch.sin(1e6 * self.convolutions(images).square().mean()))


@pytest.mark.slow
def test_a_step_that_rounding_moves_is_measured_by_that(fabric):
    torch.manual_seed(0)
    images = torch.randn(2, 3, 8, 8)
    said = []
    config = KernelConfig(compile="none", optimizer="fused", threads=1)
    chosen = autotune(fabric, config, step(Delicate(), images), said.append)
    assert chosen.memory_format == "channels-last"
    assert len(said) == 1


class Faulty(nn.Module):
    """Behaves as told as soon as its weights lie in memory as channels-last has them."""

    def __init__(self, fault):
        super().__init__()
        self.fault = fault
        self.convolutions = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3))

    def forward(self, images):
        loss = self.convolutions(images).square().mean()
        if not self.convolutions[0].weight.is_contiguous(**LAST):
            time.sleep(0.05)
        elif self.fault == "crash":
            os.kill(os.getpid(), signal.SIGABRT)
        elif self.fault == "crash in evaluation" and not self.training:
            os.kill(os.getpid(), signal.SIGSEGV)
        elif self.fault == "hang":
            time.sleep(3600)
        elif self.fault == "exit":
            os._exit(3)
        elif self.fault == "error":
            raise RuntimeError("no such\nkernel")
        elif self.fault == "nan":
            loss = loss * torch.nan
        elif self.fault == "memory" and len(images) > 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        elif self.fault == "wrong":
            loss = loss * 1.01
        return SimpleNamespace(loss=loss)


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("crash", "crashed (SIGABRT)"),
        pytest.param("crash in evaluation", "crashed (SIGSEGV)", marks=pytest.mark.slow),
        pytest.param("hang", "did not end", marks=pytest.mark.slow),
        pytest.param("exit", "ended with code 3", marks=pytest.mark.slow),
        pytest.param("error", "failed (RuntimeError: no such kernel)", marks=pytest.mark.slow),
        pytest.param("nan", "gave a loss or gradients that are not finite", marks=pytest.mark.slow),
        pytest.param("wrong", "gave other gradients (0.01 apart)", marks=pytest.mark.slow),
        pytest.param("none", None, marks=pytest.mark.slow),
    ],
)
def test_a_fault_in_a_trial_costs_that_way_alone(fabric, monkeypatch, fault, told):
    monkeypatch.setattr(trials, "LEAST_SECONDS", 1.0)
    monkeypatch.setattr(trials, "TIMES_USUAL", 0.1)
    module = Faulty(fault).train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    images = torch.randn(8, 3, 16, 16)
    config = KernelConfig(compile="none", optimizer="fused", threads=1)
    for expected in ([f"memory_format channels-last {told}: not taken"] if told else [], []):
        said = []
        chosen = autotune(fabric, config, step(module, images, fault=fault), said.append)
        assert chosen == KernelChoices(memory_format="contiguous" if told else "channels-last", threads=1)
        assert said[1:] == expected  # the second time it is remembered
    assert module.training
    assert all(parameter.grad is None for parameter in module.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


def test_where_memory_is_short_fewer_images_are_tried(fabric):
    """On a GPU; on a CPU a trial begins with few."""
    bench = trial_process.Bench(
        Faulty("memory"), (torch.randn(32, 3, 16, 16),), Parcel("cpu", False, 1, False, KernelChoices())
    )
    bench.parcel = replace(bench.parcel, device="cuda")  # does not begin with few
    trial = bench.trial(KernelChoices(memory_format="channels-last"))
    assert trial.ran
    assert bench.count == 8
    assert trial.agrees_with(bench.trial(KernelChoices()))
    hopeless = trial_process.Bench(
        Faulty("memory"), (torch.randn(9, 3, 16, 16),), Parcel("cpu", False, 1, False, KernelChoices())
    )
    hopeless.module.forward = no_memory
    assert hopeless.trial(KernelChoices()).failure == "failed (OutOfMemoryError: none left)"


def no_memory(images):
    raise torch.OutOfMemoryError("none left")


def test_where_the_usual_way_fails_it_is_kept_and_said(fabric):
    module = Faulty("none")
    module.forward = None  # calling it raises
    said = []
    config = KernelConfig(compile="none", optimizer="fused", threads=1)
    images = torch.zeros(8, 3, 16, 16)
    chosen = autotune(fabric, config, step(module, images), said.append)
    assert chosen == KernelChoices(threads=1)
    assert "a trial step failed (TypeError" in said[-1]


def test_a_module_that_cannot_be_copied_keeps_the_usual_way(fabric, tmp_path):
    module = Faulty("none")
    module.hook = lambda: None
    said = []
    config = KernelConfig(compile="none", optimizer="fused", threads=1)
    images = torch.zeros(8, 3, 16, 16)
    chosen = autotune(fabric, config, step(module, images), said.append)
    assert chosen == KernelChoices(threads=1)
    assert "cannot be run in a separate process" in said[-1]
    assert not (tmp_path / "kernels").exists()


def test_other_processes_are_seen(monkeypatch):
    monkeypatch.setattr(hardware.os, "cpu_count", lambda: 10**6)
    assert not hardware.others_compute(1)
    monkeypatch.setattr(hardware.os, "cpu_count", lambda: 1)
    assert hardware.others_compute(2)
    monkeypatch.setattr(hardware, "Path", lambda name: SimpleNamespace(read_text=lambda: ""))  # no such field
    assert not hardware.others_compute(1)
