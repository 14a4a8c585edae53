"""Encoders in other libraries' forms: loaded as a user would, they give the same outputs on photographs."""

import json
import sys

import pytest
import safetensors
import timm
import torch
import yaml

from conftest import mostly_slow, same
from fastmim.data.decode.image import crop_and_resize
from fastmim.data.decode.resize import Box
from fastmim.data.sources.open import open_images
from fastmim.encoders.build import build_encoder
from fastmim.encoders.registry import create
from fastmim.encoders.settings import EncoderConfig
from fastmim.errors import RunError, UsageError
from fastmim.export import export
from fastmim.export.export import export_encoder
from fastmim.export.torchvision import load_torchvision
from fastmim.weights.encoder_file import describe_encoder, save_encoder
from fastmim.weights.load import load_encoder

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
VIT = ("vit_tiny_patch16_224", {"embed_dim": 32, "depth": 2, "num_heads": 2})
SWIN = ("swin_tiny_patch4_window7_224", {"embed_dim": 16, "depths": [2, 2], "num_heads": [1, 2]})
THREE_STAGES = {"embed_dim": 16, "depths": [2, 2, 2], "num_heads": [1, 2, 2]}
CONVNEXT = ("convnext_tiny", {"depths": [1, 1, 1, 1], "dims": [8, 16, 16, 16]})
RESNET = ("resnet18", {"layers": [1, 1, 1, 1]})
BEIT = ("beit_base_patch16_224", {"embed_dim": 32, "depth": 1, "num_heads": 2})
CMT = ("cmt_s", {"depths": [1, 1, 1, 1], "embed_dims": [8, 16, 16, 16], "stem_width": 8})
MODELS = [VIT, SWIN, CONVNEXT, RESNET, CMT]
CLASSES = {"num_classes": 3}


@pytest.fixture(scope="module")
def photos():
    """Photographs of 64 pixels, normalised."""
    source = open_images("demo:photos")
    whole = [
        crop_and_resize(source.read(index), lambda height, width: Box(0, 0, height, width), (64, 64), 3)
        for index in range(3)
    ]
    pixels = torch.stack([torch.from_numpy(image.copy()) for image in whole]).permute(0, 3, 1, 2) / 255
    return ((pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]).contiguous()


def saved(folder, name, kwargs, size=64, depth=None, **more):
    """A run's folder with an encoder none of whose tensors are constant."""
    torch.manual_seed(0)
    folder.mkdir(exist_ok=True)
    if "num_classes" in more:
        kwargs = {**kwargs, **more}
        model = create(name, {**kwargs, "img_size": size} if "img_size" in more else kwargs)
        origin = {
            "model": name,
            "kwargs": kwargs,
            "image_size": [size, size],
            "in_chans": 3,
            "mean": list(MEAN),
            "std": list(STD),
            "method": "fine-tuned",
            "classes": ["cat", "dog", "emu"],
            "fine_tuned_from": {"from": "/home/someone/run", "method": "fastmim"},
            "fastmim_version": "0",
        }
    else:
        config = EncoderConfig(depth=depth)
        encoder = build_encoder(name, (size, size), model_kwargs={**kwargs, **more}, config=config)
        model = encoder.model
        origin = describe_encoder(encoder, MEAN, STD, "fastmim", "hog")
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    save_encoder(folder, model, origin)
    return folder


def expected(run, photos):
    with torch.inference_mode():
        return load_encoder(run).eval()(photos)


def close(found, wanted):
    assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()


@pytest.mark.parametrize(("name", "kwargs"), mostly_slow(MODELS, [VIT, SWIN, CMT]))
def test_timm(tmp_path, photos, name, kwargs):
    run = saved(tmp_path / "run", name, kwargs)
    exported = export_encoder(run, tmp_path / "out", "timm", images=photos)
    assert exported.files == ["README.md", "config.json", "model.safetensors"]
    assert exported.difference < 1e-5
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out", "run"]
    loaded = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    assert same(loaded.state_dict(), load_encoder(run).state_dict())
    with torch.inference_mode():
        close(loaded(photos), expected(run, photos))
    data = timm.data.resolve_model_data_config(loaded)
    assert [tuple(data[key]) for key in ("input_size", "mean", "std")] == [(3, 64, 64), MEAN, STD]
    said = json.loads((tmp_path / "out" / "config.json").read_text())["pretrained_cfg"]
    assert not {"tag", "license", "origin_url", "hf_hub_id", "url"} & set(said)  # those of timm's own weights


def test_another_image_size_and_a_classifier(tmp_path, photos):
    pooled = saved(tmp_path / "run", *VIT, img_size=64, global_pool="avg", **CLASSES)
    export_encoder(pooled, tmp_path / "timm", "timm", image_size=96)
    loaded = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    assert loaded(torch.zeros(1, 3, 96, 96)).shape == (1, 3)
    assert loaded.pretrained_cfg["label_names"] == ["cat", "dog", "emu"]


def test_a_shortened_encoder_stays_short(tmp_path, photos):
    run = saved(tmp_path / "run", *VIT, depth=1)
    export_encoder(run, tmp_path / "out", "timm", images=photos)
    loaded = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    assert len(loaded.blocks) == 1  # rather than blocks that nobody trained


@pytest.mark.parametrize(("name", "kwargs"), mostly_slow([VIT, SWIN, CMT], [VIT, CMT]))
def test_hugging_face(tmp_path, photos, name, kwargs):
    transformers = pytest.importorskip("transformers")
    run = saved(tmp_path / "run", name, kwargs)
    export_encoder(run, tmp_path / "out", "huggingface", images=photos)
    loaded = transformers.AutoModel.from_pretrained(tmp_path / "out").eval()
    with torch.inference_mode():
        close(loaded(photos).pooler_output, expected(run, photos))
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert processor.data_config["input_size"] == (3, 64, 64)


def test_a_classifier_for_hugging_face(tmp_path, photos):
    transformers = pytest.importorskip("transformers")
    run = saved(tmp_path / "run", *SWIN, img_size=64, **CLASSES)
    export_encoder(run, tmp_path / "out", "huggingface", images=photos)
    loaded = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "out").eval()
    assert loaded.config.id2label == {0: "cat", 1: "dog", 2: "emu"}
    with torch.inference_mode():
        close(loaded(photos).logits, expected(run, photos))


@pytest.mark.parametrize("classes", mostly_slow([{}, CLASSES], [CLASSES]))
@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        (VIT[0], {**VIT[1], "img_size": 64}),
        (SWIN[0], {**SWIN[1], "img_size": 64, "window_size": 4}),
        (CONVNEXT[0], {**CONVNEXT[1], "conv_mlp": True}),
        RESNET,
        pytest.param("resnext50_32x4d", {"layers": [1, 1, 1, 1]}, marks=pytest.mark.slow),
    ],
)
def test_torchvision(tmp_path, photos, name, kwargs, classes):
    run = saved(tmp_path / "run", name, kwargs, **classes)
    exported = export_encoder(run, tmp_path / "out", "torchvision", images=photos)
    assert exported.files == ["README.md", "config.json", "model.safetensors"]
    loaded = load_torchvision(tmp_path / "out").eval()
    assert type(loaded).__module__.startswith("torchvision.")
    with torch.inference_mode():
        close(loaded(photos), expected(run, photos))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["constructor"].startswith("torchvision.models.")
    assert config["pretrained_cfg"]["input_size"] == [3, 64, 64]


@pytest.mark.parametrize(
    ("model", "more", "message"),
    [
        (VIT, {"global_pool": "avg", "img_size": 64, **CLASSES}, "pools by 'avg', .* by the class token"),
        (VIT, {"init_values": 0.1}, "is none of the architectures that torchvision has: ViT .*ResNet"),
        (VIT, {"qkv_bias": False}, r"has no encoder\.layers\.encoder_layer_0\.self_attention\.in_proj_bias"),
        ((SWIN[0], THREE_STAGES), {"window_size": 7}, r"window size is not the same everywhere: \(4, 4\), "),
        pytest.param(BEIT, {}, "is none of the architectures", marks=pytest.mark.slow),
        pytest.param(CMT, {}, "is none of the architectures", marks=pytest.mark.slow),
        (("swinv2_tiny_window8_256", SWIN[1]), {"window_size": 4}, "has no .*relative_position_bias_table"),
        (("resnet50d", RESNET[1]), {}, "is none of the architectures"),
        pytest.param(
            ("convnextv2_tiny", CONVNEXT[1]), {}, "is none of the architectures", marks=pytest.mark.slow
        ),
    ],
)  # fmt: skip
def test_what_torchvision_has_not_is_said_in_one_line(tmp_path, model, more, message):
    run = saved(tmp_path / "run", *model, **more)
    with pytest.raises(UsageError, match=message) as error:
        export_encoder(run, tmp_path / "out", "torchvision")
    assert "\n" not in str(error.value)
    assert [file.name for file in tmp_path.iterdir()] == ["run"]


def test_a_difference_that_keys_do_not_show_is_found(tmp_path, photos):
    run = saved(tmp_path / "run", *RESNET, act_layer="silu")  # torchvision's has ReLU
    with pytest.raises(RunError, match="outputs differ by"):
        export_encoder(run, tmp_path / "out", "torchvision", images=photos)
    assert [file.name for file in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        VIT,
        pytest.param(SWIN[0], {**SWIN[1], "depths": [1, 2]}, marks=pytest.mark.slow),
        pytest.param(*BEIT, marks=pytest.mark.slow),
    ],
)
def test_onnx(tmp_path, photos, name, kwargs):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    run = saved(tmp_path / "run", name, kwargs)
    exported = export_encoder(run, tmp_path / "out", "onnx", images=photos)
    assert exported.files == ["README.md", "model.onnx"]
    session = runtime.InferenceSession(tmp_path / "out" / "model.onnx")
    pooled, features = session.run(None, {"images": photos.repeat(2, 1, 1, 1)[:5].numpy()})  # another batch
    model = load_encoder(run).eval()
    with torch.inference_mode():
        close(torch.from_numpy(pooled)[:3], model(photos))
        close(torch.from_numpy(features)[:3], model.forward_features(photos))
    assert b"site-packages" not in (tmp_path / "out" / "model.onnx").read_bytes()  # paths of this machine


@pytest.mark.slow
def test_a_classifier_as_onnx(tmp_path, photos):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    run = saved(tmp_path / "run", *CONVNEXT, **CLASSES)
    export_encoder(run, tmp_path / "out", "onnx", images=photos[:1])
    (logits,) = runtime.InferenceSession(tmp_path / "out" / "model.onnx").run(
        None, {"images": photos.numpy()}
    )
    close(torch.from_numpy(logits), expected(run, photos))


def test_the_card(tmp_path, photos):
    run = saved(tmp_path / "run", *CMT)
    config = {"data": "/home/someone/private/flowers/", "epochs": 12.0, "steps": None, "batch_size": 32}
    (run / "config.yaml").write_text(yaml.safe_dump({**config, "stages": [{"image_size": 32, "steps": 5}]}))
    exported = export_encoder(run / "encoder.safetensors", tmp_path / "out", "timm", images=photos)
    card = (exported.folder / "README.md").read_text()
    for said in (
        "| Model | `cmt_s` |",
        "| Image size | 64 x 64 pixels |",
        "| Data | flowers |",
        "| Epochs | 12.0 |",
        "| Stages | image_size 32, steps 5 |",
        "| Batch size | 32 |",
        "| Target | hog |",
        'timm.create_model("local-dir:out", pretrained=True)',
        "import fastmim.encoders.registry",
        "3 real images",
        "Yours to choose",
    ):
        assert said in card
    assert "Steps |" not in card
    assert "license:" not in card
    assert "someone" not in card
    assert str(tmp_path) not in card
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "timm"


def test_a_folder_is_not_overwritten_unasked(tmp_path, photos):
    run = saved(tmp_path / "run", *VIT)
    out = tmp_path / "out"
    out.mkdir()  # an empty one is free
    export_encoder(run, out, "timm", images=photos)
    with pytest.raises(UsageError, match="already holds an export"):
        export_encoder(run, out, "timm", images=photos)
    export_encoder(run, out, "torchvision", images=photos, overwrite=True)
    assert load_torchvision(out)
    (out / "thesis.tex").write_text("")
    with pytest.raises(UsageError, match=r"thesis\.tex, which is not from an export"):
        export_encoder(run, out, "timm", images=photos, overwrite=True)
    with pytest.raises(UsageError, match="is a file"):
        export_encoder(run, out / "config.json", "timm")


def test_what_cannot_be_exported(tmp_path, photos, monkeypatch):
    run = saved(tmp_path / "run", *VIT)
    out = tmp_path / "out"
    with pytest.raises(UsageError, match="format = 'keras' must be one of timm, huggingface"):
        export_encoder(run, out, "keras")
    with pytest.raises(UsageError, match=r"images of shape \(3, 3, 32, 32\) must be \(B, 3, 64, 64\)"):
        export_encoder(run, out, "timm", images=photos[..., :32, :32])
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UsageError, match=r"onnx needs onnxruntime: pip install 'fastmim\[export\]'"):
        export_encoder(run, out, "onnx")
    own = {**json.loads((run / "encoder.json").read_text()), "model": "somewhere:factory"}
    save_encoder(run, load_encoder(run), own)
    with pytest.raises(UsageError, match="not somewhere:factory; format onnx takes any model"):
        export_encoder(run, out, "timm")
    with pytest.raises(UsageError, match="is not an export"):
        load_torchvision(run)


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    run = saved(tmp_path / "run", *VIT)
    monkeypatch.setattr(export, "save_for_hf", full)
    with pytest.raises(RunError, match="No space left on device"):
        export_encoder(run, tmp_path / "out", "timm")
    assert [file.name for file in tmp_path.iterdir()] == ["run"]


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path, monkeypatch):
    run = saved(tmp_path / "run", *VIT)

    def full(*_, **__):
        raise safetensors.SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr(export, "save_for_hf", full)
    with pytest.raises(RunError, match="No space left on device"):
        export_encoder(run, tmp_path / "out", "timm")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
