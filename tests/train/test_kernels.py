import pytest
import timm
import torch
from torch import nn

from fastmim.errors import UsageError
from fastmim.system import hardware
from fastmim.system.cache import cached_on_disk
from fastmim.train import device
from fastmim.train import distributed as launch
from fastmim.train.kernels import KernelChoices, apply, checkpoint_activations, own_threads
from fastmim.train.optim import build_adamw, guarded_step, use_kernel
from fastmim.train.settings import OptimConfig


@pytest.fixture(autouse=True)
def _nothing_remembered(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTMIM_CACHE", str(tmp_path))


def vit():
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, embed_dim=32, depth=2, num_heads=2, num_classes=0
    )


def convnext():
    return timm.create_model("convnext_atto", num_classes=0)


@pytest.mark.parametrize(("build", "size"), [(vit, 32), (convnext, 64)])
def test_every_way_computes_the_same(build, size):
    torch.manual_seed(0)
    model = build().eval()
    images = torch.randn(2, 3, size, size)
    expected = model(images)
    for way in (
        KernelChoices(),
        KernelChoices(attention="plain"),
        KernelChoices(memory_format="channels-last"),
    ):
        apply(model, way)
        torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-5)
    strides = [p.is_contiguous(memory_format=torch.channels_last) for p in model.parameters() if p.ndim == 4]
    assert all(strides)


def test_threads_are_the_process_own_for_a_while():
    before = torch.get_num_threads()
    with own_threads():
        apply(nn.Linear(1, 1), KernelChoices(threads=before + 1))
        assert torch.get_num_threads() == before + 1
        apply(nn.Linear(1, 1), KernelChoices())
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


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
    assert cached_on_disk("kind", {"a": 1}, lambda: {"b": 2}) == {"b": 2}
    monkeypatch.setenv("FASTMIM_CACHE", "off")
    assert cached_on_disk("kind", {"a": 1}, lambda: {"b": 3}) == {"b": 3}
    monkeypatch.setenv("FASTMIM_CACHE", str(tmp_path / "cache"))
    assert cached_on_disk("kind", {"a": 1}, lambda: {"b": 4}) == {"b": 4}
    assert cached_on_disk("kind", {"a": 1}, lambda: {"b": 5}) == {"b": 4}
    assert cached_on_disk("kind", {"a": 2}, lambda: {"b": 6}) == {"b": 6}


def test_of_two_that_find_out_at_once_both_take_the_first_answer(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTMIM_CACHE", str(tmp_path))

    def slow():
        cached_on_disk("kind", {}, lambda: {"by": "the quicker"})
        return {"by": "the slower"}

    assert cached_on_disk("kind", {}, slow) == {"by": "the quicker"}
    assert [file.suffix for file in (tmp_path / "kind").iterdir()] == [".json"]


def test_a_run_on_a_cpu_keeps_the_memory_it_frees(monkeypatch):
    asked = []
    monkeypatch.setattr(launch, "keep_freed_memory", lambda: asked.append(True))
    launch.build_fabric("cpu", 1, 1, "32-true")
    assert asked == [True]


def test_keeping_memory_is_glibcs_affair(monkeypatch):
    monkeypatch.setattr(hardware.ctypes, "CDLL", lambda _: object())  # a library without mallopt
    hardware.keep_freed_memory()


def test_bfloat16_is_taken_where_it_is_faster_and_remembered(monkeypatch):
    monkeypatch.setattr(device, "_bfloat16_gain", lambda: 1.1)
    assert device.choose_precision(torch.device("cpu")) == "32-true"
    monkeypatch.setattr(device, "_bfloat16_gain", lambda: 3.0)
    assert device.choose_precision(torch.device("cpu")) == "32-true"
    monkeypatch.setenv("FASTMIM_CACHE", "off")
    assert device.choose_precision(torch.device("cpu")) == "bf16-mixed"
