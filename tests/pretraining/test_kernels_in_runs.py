"""Other ways to compute a step, end to end."""

import shutil
from dataclasses import asdict

import pytest

import fastmim
from conftest import TINY, mostly_slow, same, weights
from fastmim.errors import UsageError
from fastmim.train.checkpoint_folder import load_checkpoint


@pytest.mark.parametrize("model", mostly_slow(["vit_tiny_patch16_224", "test_convnext"], ["test_convnext"]))
def test_other_kernels_are_kept_by_a_resumed_run(photos, tmp_path, model):
    kernels = TINY["kernels"] | {
        "attention": "plain",
        "memory_format": "channels-last",
        "optimizer": "foreach",
    }
    settings = TINY | {"steps": 6, "checkpoint_every_steps": 3, "keep_checkpoints": 2, "kernels": kernels}
    if model == "test_convnext":
        settings |= {"model": model, "model_kwargs": {}, "image_size": 64}
    whole = fastmim.pretrain(data=photos, out=tmp_path / "whole", **settings).run
    halves = tmp_path / "halves"
    shutil.copytree(whole, halves)
    shutil.copy(next((halves / "checkpoints").glob("step-*3.ckpt")), halves / "last.ckpt")
    choices = load_checkpoint(halves / "last.ckpt").choices.kernels
    assert asdict(choices) == kernels
    fastmim.pretrain(out=halves, resume=True, quiet=True)
    assert same(weights(whole), weights(halves))
    assert fastmim.load_encoder(whole) is not None
    with pytest.raises(UsageError, match=r"kernels\.attention = 'fused' differs"):
        fastmim.pretrain(out=halves, resume=True, quiet=True, **{"kernels.attention": "fused"})


@pytest.mark.slow
@pytest.mark.usefixtures("real_trials")
def test_a_model_that_keeps_its_biases_outside_training_is_tried_too(photos, tmp_path, monkeypatch):
    monkeypatch.setenv("FASTMIM_CACHE", "off")
    settings = TINY | {
        "model": "tiny_vit_5m_224",
        "model_kwargs": {"embed_dims": [16, 32, 32, 32], "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1]},
        "image_size": 64,
        "steps": 1,
        "kernels": {},
    }
    assert fastmim.pretrain(data=photos, out=tmp_path / "run", **settings).complete


def test_recomputed_activations_end_with_the_same_weights(photos, tmp_path):
    settings = TINY | {"steps": 3, "decoder": {"depth": 2, "width": 32}}
    kept = fastmim.pretrain(data=photos, out=tmp_path / "kept", **settings).run
    again = fastmim.pretrain(
        data=photos, out=tmp_path / "again", activation_checkpointing=True, **settings
    ).run
    assert same(weights(kept), weights(again))


@pytest.mark.slow
def test_a_distilled_run_recomputes_too(photos, tmp_path):
    settings = TINY | {"steps": 2, "image_size": 64, "distill": {"teacher": "none", "model": "test_convnext"}}
    kept = fastmim.pretrain(data=photos, out=tmp_path / "kept", **settings).run
    again = fastmim.pretrain(
        data=photos, out=tmp_path / "again", activation_checkpointing=True, **settings
    ).run
    assert same(weights(kept), weights(again))


def test_a_method_that_cannot_recompute_says_so(photos, tmp_path):
    small = {"method": "fcmae", "model": "test_convnext", "model_kwargs": {}, "image_size": 64}
    with pytest.raises(UsageError, match="activation_checkpointing: method = fcmae"):
        fastmim.pretrain(data=photos, out=tmp_path / "run", activation_checkpointing=True, **(TINY | small))


def test_a_model_that_cannot_recompute_is_refused_before_anything_is_written(photos, tmp_path):
    with pytest.raises(UsageError, match="activation_checkpointing"):
        fastmim.pretrain(
            data=photos,
            out=tmp_path / "run",
            activation_checkpointing=True,
            **(TINY | {"model": "cspdarknet53", "model_kwargs": {}, "image_size": 64}),
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("what", ["target", "model"])
def test_a_compiled_run_learns_the_same_and_resumes(photos, tmp_path, what):
    plain = fastmim.pretrain(data=photos, out=tmp_path / "plain", steps=4, **TINY)
    settings = TINY | {
        "kernels": TINY["kernels"] | {"compile": what},
        "checkpoint_every_steps": 2,
        "keep_checkpoints": 2,
    }
    whole = fastmim.pretrain(data=photos, out=tmp_path / "whole", steps=4, **settings)
    assert whole.held_out_loss == pytest.approx(plain.held_out_loss, rel=1e-3)
    halves = tmp_path / "halves"
    shutil.copytree(whole.run, halves)
    shutil.copy(next((halves / "checkpoints").glob("step-*2.ckpt")), halves / "last.ckpt")
    fastmim.pretrain(out=halves, resume=True, quiet=True)
    assert same(weights(whole.run), weights(halves))
