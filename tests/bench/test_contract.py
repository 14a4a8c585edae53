"""One small model of each architecture family keeps the contract; shapes of every model, as a slow test."""

import contextlib
import io
import subprocess
from functools import cache

import pytest
import timm

from conftest import mostly_slow
from fastmim.bench import contract as backbones
from fastmim.bench.contract import check, check_by_pretraining, look_up_and_check
from fastmim.cli.entry import main
from fastmim.encoders.catalogue import family_of, levels_of, look_up, names_like
from fastmim.encoders.sizes import working_sizes
from fastmim.errors import UsageError

# Of each module of timm 1.0.31 (and of this package) the model with the fewest parameters.
SMALLEST = """
beit_base_patch16_224 halonet_h1 test_byobnet cait_xxs24_224 cmt_ti coat_tiny convit_tiny
convmixer_768_32 test_convnext cpubone_nano crossvit_tiny_240 csatv2 cs3darknet_focus_s cspnext_tiny
davit_tiny deepseek_vit_412m deit_tiny_patch16_224 densenet121 dla46x_c dpn48b edgenext_xx_small
efficientformer_l1 efficientformerv2_s0 test_efficientnet efficientvim_m1 efficientvit_b0
efficientvit_m0 vit_tiny_patch16_dinov3_qkvb fasternet_t0 fastvit_t8 focalnet_tiny_srf gcvit_xxtiny
gemma4_vit_167m ghostnet_050 hardcorenas_b hgnetv2_b0 hiera_tiny_224 sam2_hiera_tiny hrnet_w18_small
iformer_t inception_next_atto inception_resnet_v2 inception_v3 inception_v4 lcnetv2_small levit_128s
lowformer_b0 test_mambaout test_coatnet poolformerv2_s12 gmlp_ti16_224 lcnet_035 mobilenetv5_base
mobilevit_xxs mvitv2_tiny naflexvit_base_patch16_parfac_gap nasnetalarge nest_tiny nextvit_small
test_nfnet pit_ti_224 pnasnet5large pvt_tiny pvt_v2_b0 qwen3_vit_88m rdnet_tiny regnetx_002
repghostnet_050 repvit_m1 res2next50 resnest14d test_resnet resnetv2_18 rexnet_100 selecsls42
legacy_seresnet18 sequencer2d_s shvit_s1 skresnet18 starnet_s050 swiftformer_xs
swin_tiny_patch4_window7_224 swinv2_tiny_window16_256 swinv2_cr_tiny_224 tiny_vit_5m_224
tnt_s_legacy_patch16_224 tresnet_m twins_svt_small vgg11 visformer_tiny test_vit vit_tiny_r_s16_p8_224
test_vit_relpos samvit_base_patch16_224 vitamin_small_224 volo_d1_224 ese_vovnet19b_slim_dw
legacy_xception xception41p xcit_nano_12_p8_224
""".split()  # noqa: SIM905
# What makes the largest of them cheap; the best size of those that do not take 128.
LARGE = ("deepseek_vit_412m", "gemma4_vit_167m", "qwen3_vit_88m", "beit_base_patch16_224")
KWARGS = {name: {"depth": 2} for name in LARGE}
NEAR = {"convmixer_768_32": 126, "deepseek_vit_412m": 126, "sequencer2d_s": 126, "halonet_h1": 256}
NEAR |= {"crossvit_tiny_240": 120, "efficientformer_l1": 224}


@cache
def families() -> dict[str, str]:
    """Family -> a model: the one above, or of a family that is newer, any."""
    found: dict[str, str] = {}
    for name in [*SMALLEST, *timm.list_models()]:
        found.setdefault(family_of(name), name)
    return found


# A plain transformer, a pyramid and a convolutional network.
DEFAULT = ["vision_transformer", "pvt_v2", "resnet"]


def test_the_default_families_are_there():
    assert set(DEFAULT) <= set(families())


@pytest.mark.parametrize("family", mostly_slow(sorted(families()), DEFAULT))
def test_the_contract(family):
    name = families()[family]
    result = check(name, NEAR.get(name, 128), KWARGS.get(name))
    assert result.passed, str(result)
    assert result.image_size == NEAR.get(name, 128)


def test_there_is_no_family_without_a_model():
    assert len(families()) >= 98


@pytest.mark.parametrize("name", mostly_slow(["halonet_h1", "efficientformer_l1"], ["efficientformer_l1"]))
def test_a_model_of_one_size_says_which(name):
    known = look_up(name)
    assert known.sizes.working == (NEAR[name],)
    assert "128" in known.sizes.failing[128]


@pytest.mark.parametrize(
    "name",
    mostly_slow(
        ["vit_tiny_patch16_224", "convmixer_768_32", "pit_ti_224"],
        ["vit_tiny_patch16_224", "convmixer_768_32"],
    ),
)
def test_stride_and_sizes_are_seen(name):
    strides = {"vit_tiny_patch16_224": 16, "convmixer_768_32": 7, "pit_ti_224": 32}
    sizes = look_up(name).sizes
    assert sizes.stride == strides[name]
    assert all(side % sizes.stride == 0 for side in sizes.working) or not sizes.uniform


def test_a_filter_finds_parts_and_patterns():
    assert "resnet50d" in names_like("resnet*d")
    assert "vit_tiny_patch16_224" in names_like("tiny_patch16")
    with pytest.raises(UsageError, match="nothing_like_this"):
        names_like("nothing_like_this")


def in_this_process(words, **_):
    """`subprocess.run` of a command of fastmim, without the start of a process."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        code = main(words[3:])
    return subprocess.CompletedProcess(words, code, output.getvalue(), "")


def test_a_check_through_the_command_sees_what_a_run_leaves(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(backbones.subprocess, "run", in_this_process)
    page = tmp_path / "page.md"
    words = ["backbones", "test_convnext3", "--check", "--pretrain", "--processes", "1", "--write", str(page)]
    assert main(words) == 0
    known = names_like("test_convnext3")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(known)
    assert all("pre-trains at 128" in line for line in lines[1:])
    text = page.read_text()
    assert f"    fastmim {' '.join(words)}" in text
    assert f"{len(known)} of {len(known)} pass" in text
    assert f"| {levels_of('test_convnext3')} |" in text
    assert main(["backbones", "resnet", "--pretrain"]) == 2
    assert "pretrain needs --check" in capsys.readouterr().err


def test_the_table_is_kept_whenever_the_check_stops(tmp_path, monkeypatch, capsys):
    page = tmp_path / "new" / "page.md"
    checks = iter([look_up_and_check("test_convnext")])

    def stopped(way, names, processes):
        yield from checks
        raise KeyboardInterrupt

    monkeypatch.setattr("fastmim.bench.backbones.each", stopped)
    assert main(["backbones", "test_convnext", "--check", "--write", str(page)]) == 130
    assert "1 of 1 pass" in page.read_text()
    monkeypatch.setattr("fastmim.bench.backbones.names_like", lambda _: pytest.fail("looked for"))
    capsys.readouterr()
    for place in (tmp_path, page / "under.md"):
        assert main(["backbones", "--check", "--write", str(place)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("fastmim: write: ")


def test_a_run_that_fails_is_told_by_its_last_line(monkeypatch):
    lost = subprocess.CompletedProcess([], -6, "", "fastmim: nothing\nfastmim: it broke\n")
    monkeypatch.setattr(backbones.subprocess, "run", lambda *_, **__: lost)
    _, check = check_by_pretraining("test_convnext")
    assert check.failures == ("exit code -6: fastmim: it broke",)
    monkeypatch.setattr(backbones, "free_bytes", lambda _: 0)
    _, check = check_by_pretraining("test_convnext")
    assert "not tried: it needs about" in str(check)


@pytest.mark.slow
@pytest.mark.parametrize("name", timm.list_models())
def test_every_model_has_a_size_a_stride_and_a_width(name):
    sizes = working_sizes(name, sides=(128,))
    assert sizes.width > 0
    assert all(side % sizes.stride == 0 for side in sizes.working) or not sizes.uniform


def test_a_check_resumes_from_its_page(tmp_path, capsys, monkeypatch):
    page = tmp_path / "page.md"
    command = ["backbones", "test_vit", "--every", "9", "--check", "--processes", "1", "--write", str(page)]
    assert main([*command, "--resume"]) == 0  # nothing to resume yet
    first = page.read_text()
    assert "1 of 1 pass" in first
    monkeypatch.setattr(
        "fastmim.bench.backbones.look_up_and_check", lambda name: pytest.fail(f"{name} again")
    )
    assert main([*command, "--resume"]) == 0
    assert page.read_text() == first
    page.write_text(first.replace("torch ", "torch 0."))
    assert main([*command, "--resume"]) == 2
    assert f"write = {page}" in capsys.readouterr().err
    page.write_text(first.replace("pre-trains at", "fails: not at"))
    with pytest.raises(pytest.fail.Exception):
        main([*command, "--resume", "--debug"])
