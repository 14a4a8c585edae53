from types import SimpleNamespace

import pytest
import timm
import torch
from lightning_fabric import Fabric
from torch import nn

from fastmim.cache import remembered
from fastmim.errors import UsageError
from fastmim.train import device, launch
from fastmim.train import kernels as k
from fastmim.train.kernels import KernelConfig, Kernels, apply, checkpoint_activations, settle_kernels
from fastmim.train.optim import OptimConfig, build_adamw, guarded_step, use_kernel


@pytest.fixture(autouse=True)
def _nothing_remembered(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTMIM_CACHE", str(tmp_path))


@pytest.fixture
def fabric():
    return Fabric(accelerator="cpu", devices=1)


def vit():
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, embed_dim=32, depth=2, num_heads=2, num_classes=0
    )


def convnext():
    return timm.create_model("convnext_atto", num_classes=0)


def settle(fabric, config, module, seconds, monkeypatch, planned=1.0):
    """What is chosen where a step takes ``seconds(kernels)``, and which ways were tried."""
    tried = []

    def measured(_, __, kernels, ___):
        tried.append(kernels)
        return seconds(kernels)

    monkeypatch.setattr(k, "_step_seconds", measured)
    chosen = settle_kernels(fabric, config, module, lambda count: None, 8, planned, {"model": "m"})
    return chosen, tried


def test_the_faster_way_is_taken_and_remembered(fabric, monkeypatch):
    fast_plain = lambda kernels: 1.0 if kernels.attention == "plain" else 2.0  # noqa: E731
    config = KernelConfig(optimizer="fused", compile="none")
    chosen, tried = settle(fabric, config, vit(), fast_plain, monkeypatch)
    assert chosen == Kernels(attention="plain")
    assert [way.attention for way in tried] == ["fused", "plain"]
    chosen, tried = settle(fabric, config, vit(), lambda _: 1.0, monkeypatch)
    assert chosen == Kernels(attention="plain")
    assert tried == []


def test_a_way_that_gains_little_or_fails_is_not_taken(fabric, monkeypatch):
    def seconds(kernels):
        if kernels.memory_format == "channels-last":
            raise RuntimeError("no such kernel")
        return 1.0

    config = KernelConfig(optimizer="fused", compile="none")
    chosen, tried = settle(fabric, config, convnext(), seconds, monkeypatch)
    assert chosen == Kernels()
    assert len(tried) == 2
    little = lambda kernels: 0.97 if kernels.memory_format == "channels-last" else 1.0  # noqa: E731
    assert settle(fabric, config, convnext(), little, monkeypatch)[0] == Kernels()


def test_what_is_told_is_not_measured(fabric, monkeypatch):
    told = KernelConfig("plain", "channels-last", "target", "foreach")
    chosen, tried = settle(fabric, told, convnext(), lambda _: 1.0, monkeypatch)
    assert chosen == Kernels("plain", "channels-last", "target", "foreach")
    assert tried == []


def test_compiling_is_tried_only_where_the_run_is_long(fabric, monkeypatch):
    config = KernelConfig(attention="fused", memory_format="contiguous", optimizer="fused")
    fast = lambda kernels: 0.5 if kernels.compile == "model" else 1.0  # noqa: E731
    assert settle(fabric, config, vit(), fast, monkeypatch, planned=80)[0].compile == "none"
    assert settle(fabric, config, vit(), fast, monkeypatch, planned=80_000)[0].compile == "model"


def test_cuda_graphs_need_cuda(fabric):
    with pytest.raises(UsageError, match=r"kernels\.compile = cudagraphs"):
        settle_kernels(fabric, KernelConfig(compile="cudagraphs"), vit(), lambda _: None, 1, 1, {})


def test_measuring_leaves_the_module_as_it_was(fabric):
    model = timm.create_model("resnet10t", num_classes=0).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    images = torch.randn(4, 3, 32, 32)
    settle_kernels(
        fabric,
        KernelConfig(compile="none"),
        model,
        lambda count: SimpleNamespace(loss=model(images[:count]).square().mean()),
        4,
        4,
        {"model": "resnet10t"},
    )
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(("build", "size"), [(vit, 32), (convnext, 64)])
def test_every_way_computes_the_same(build, size):
    torch.manual_seed(0)
    model = build().eval()
    images = torch.randn(2, 3, size, size)
    expected = model(images)
    for way in (Kernels(), Kernels(attention="plain"), Kernels(memory_format="channels-last")):
        apply(model, way)
        torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-5)
    strides = [p.is_contiguous(memory_format=torch.channels_last) for p in model.parameters() if p.ndim == 4]
    assert all(strides)


def test_checkpointed_activations_give_the_same_gradients_and_keep_less():
    torch.manual_seed(0)
    model = vit().train()
    images = torch.randn(2, 3, 32, 32)

    def gradients():
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, lambda t: t):
            loss = model(images).square().mean()
        loss.backward()
        found = [parameter.grad.clone() for parameter in model.parameters()]
        model.zero_grad()
        return found, sum(kept)

    plain, much = gradients()
    checkpoint_activations(model, "vit")
    again, little = gradients()
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
    assert little < much / 2
    with pytest.raises(UsageError, match="activation_checkpointing: mine"):
        checkpoint_activations(nn.Linear(2, 2), "mine")


@pytest.mark.parametrize("kernel", ["fused", "foreach"])
def test_both_kernels_of_adamw_step_alike_and_skip_what_is_not_finite(kernel):
    torch.manual_seed(0)
    module = nn.Linear(4, 4)
    optimizer = build_adamw(module, OptimConfig())
    use_kernel(optimizer, kernel)
    module.weight.grad, module.bias.grad = torch.ones(4, 4), torch.ones(4)
    before = module.weight.detach().clone()
    _, taken = guarded_step(optimizer, 0.1, None)
    assert taken == 1
    expected = before * (1 - 0.1 * 0.05) - 0.1
    torch.testing.assert_close(module.weight.detach(), expected, rtol=1e-4, atol=1e-5)
    module.weight.grad, module.bias.grad = torch.full((4, 4), torch.inf), torch.ones(4)
    after = module.weight.detach().clone()
    _, taken = guarded_step(optimizer, 0.1, None)
    assert taken == 0
    assert torch.equal(module.weight, after)


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FASTMIM_CACHE", str(tmp_path / "file"))
    assert remembered("kind", {"a": 1}, lambda: {"b": 2}) == {"b": 2}
    monkeypatch.setenv("FASTMIM_CACHE", "off")
    assert remembered("kind", {"a": 1}, lambda: {"b": 3}) == {"b": 3}
    monkeypatch.setenv("FASTMIM_CACHE", str(tmp_path / "cache"))
    assert remembered("kind", {"a": 1}, lambda: {"b": 4}) == {"b": 4}
    assert remembered("kind", {"a": 1}, lambda: {"b": 5}) == {"b": 4}
    assert remembered("kind", {"a": 2}, lambda: {"b": 6}) == {"b": 6}


def test_of_two_that_find_out_at_once_both_take_the_first_answer(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTMIM_CACHE", str(tmp_path))

    def slow():
        remembered("kind", {}, lambda: {"by": "the quicker"})
        return {"by": "the slower"}

    assert remembered("kind", {}, slow) == {"by": "the quicker"}
    assert [file.suffix for file in (tmp_path / "kind").iterdir()] == [".json"]


def test_a_run_on_a_cpu_keeps_the_memory_it_frees(monkeypatch):
    asked = []
    monkeypatch.setattr(launch, "keep_freed_memory", lambda: asked.append(True))
    launch.build_fabric("cpu", 1, 1, "32-true")
    assert asked == [True]


def test_keeping_memory_is_glibcs_affair(monkeypatch):
    monkeypatch.setattr(device.ctypes, "CDLL", lambda _: object())  # a library without mallopt
    device.keep_freed_memory()


def test_bfloat16_is_taken_where_it_is_faster_and_remembered(monkeypatch):
    monkeypatch.setattr(device, "_bfloat16_gain", lambda: 1.1)
    assert device.choose_precision(torch.device("cpu")) == "32-true"
    monkeypatch.setattr(device, "_bfloat16_gain", lambda: 3.0)
    assert device.choose_precision(torch.device("cpu")) == "32-true"
    monkeypatch.setenv("FASTMIM_CACHE", "off")
    assert device.choose_precision(torch.device("cpu")) == "bf16-mixed"
