import itertools
import json

import pytest
import timm
import torch
from timm.models.swin_transformer import window_partition
from torch.utils.flop_counter import FlopCounterMode

import fastmim
from conftest import TINY, batch, lively, mostly_slow, weights
from fastmim.config import merge
from fastmim.encoders.build import build_encoder
from fastmim.encoders.visible.windows import Groups, Windows, best_groups
from fastmim.errors import UsageError
from fastmim.mim.grids import spread_mask, visible_places
from fastmim.pretraining import build_method
from fastmim.recipes.methods import defaults_of

SWIN = {"embed_dim": 16, "depths": [2, 2, 2, 1], "num_heads": [1, 2, 2, 4]}
TWINS = {"embed_dims": [16, 32, 32, 64], "num_heads": [1, 2, 2, 4], "depths": [2, 2, 2, 1]}
MODELS = [
    ("swin_tiny_patch4_window7_224", SWIN, (224, 224)),
    ("swin_tiny_patch4_window7_224", SWIN, (96, 160)),
    ("swin_tiny_patch4_window7_224", {**SWIN, "always_partition": True, "window_size": 4}, (128, 128)),
    ("swin_s3_tiny_224", {**SWIN, "window_size": [4, 4, 8, 4]}, (128, 128)),
]


def small(model="swin_tiny_patch4_window7_224", model_kwargs=SWIN, image_size=(128, 192), **settings):
    torch.manual_seed(0)
    base = {"model": model, "model_kwargs": model_kwargs, "image_size": image_size, "decoder.width": 64}
    return build_method(merge(defaults_of("greenmim"), {**base, **settings}))


def blind(block, hidden_hw):
    """A Swin block in whose windows, dense and all, nobody looks at hidden tokens."""
    own = block.attn.forward

    def forward(x, mask=None):
        rolled = torch.roll(hidden_hw, (-block.shift_size[0], -block.shift_size[1]), (0, 1))
        keys = window_partition(rolled.float()[None, :, :, None], block.window_size).flatten(1)
        nobody = -1e4 * keys[:, None, :].expand(-1, keys.shape[1], -1)
        return own(x, mask=nobody if mask is None else mask + nobody)

    return forward


@pytest.mark.parametrize(("name", "kwargs", "size"), MODELS)
def test_grouped_windows_equal_full_windows_in_which_masked_tokens_are_not_seen(
    name, kwargs, size, monkeypatch
):
    encoder = build_encoder(name, size, model_kwargs=kwargs)
    model = lively(encoder.model)
    encoder.check_visible()
    images = torch.randn(2, 3, *size)
    h, w = encoder.grid
    hidden = torch.randperm(h * w, generator=torch.Generator().manual_seed(0)).view(1, h, w) >= h * w // 4
    places = visible_places(hidden, h * w // 4).expand(2, -1)
    sparse = encoder.forward_blocks(images, places)
    dense = encoder(images)
    assert {any(block.shift_size) for stage in model.layers for block in stage.blocks} == {False, True}
    for stage in model.layers:
        for block in stage.blocks:
            side = block.input_resolution[0] // h
            at_stage = spread_mask(hidden, side, block.input_resolution)[0]
            monkeypatch.setattr(block.attn, "forward", blind(block, at_stage))
    expected = encoder(images).flatten(2).transpose(1, 2)[:, places[0]]
    assert torch.allclose(sparse, expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(sparse, dense.flatten(2).transpose(1, 2)[:, places[0]], atol=1e-2)


def test_gradients_are_those_of_full_windows():
    encoder = build_encoder("swin_tiny_patch4_window7_224", (128, 128), model_kwargs=SWIN)
    model = lively(encoder.model)
    images = torch.randn(2, 3, 128, 128)
    encoder(images).square().mean().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    everything = torch.arange(16).expand(2, -1)
    encoder.forward_blocks(images, everything).square().mean().backward()
    for name, gradient in expected.items():
        assert torch.allclose(model.get_parameter(name).grad, gradient, atol=1e-5, rtol=1e-3), name


def groups_one_by_one(windows, side, window, shift):
    """The groups of one layout, token by token."""
    rows, columns = (side * blocks for blocks in windows.grid)
    members, within = {}, []
    for i, place, j in itertools.product(range(side), windows.places.tolist(), range(side)):
        y, x = side * (place // windows.grid[1]) + i, side * (place % windows.grid[1]) + j
        down, right = (y - shift[0]) % rows, (x - shift[1]) % columns
        owner = (down // window[0], y < shift[0], right // window[1], x < shift[1])
        members.setdefault(owner, []).append(len(within))
        within.append(down % window[0] * window[1] + right % window[1])
    tokens = [members[owner] for owner in sorted(members)]
    size, groups = best_groups(tuple(map(len, tokens)))
    table = torch.zeros(len(groups), size, dtype=torch.long)
    owners, place = torch.full_like(table, -1), torch.zeros(len(within), dtype=torch.long)
    for row, group in enumerate(groups):
        for column, (number, token) in enumerate((n, token) for n in group for token in tokens[n]):
            table[row, column], owners[row, column] = token, number
            place[token] = row * size + column
    together = owners[:, :, None] == owners[:, None, :]
    return Groups(table, place, torch.tensor(within)[table], together)


@pytest.mark.parametrize(
    ("name", "kwargs", "size"),
    [
        *(pytest.param(*model, marks=pytest.mark.slow) for model in MODELS[1:3]),
        MODELS[3],
        ("twins_svt_small", TWINS, (224, 224)),
    ],
)
def test_groups_planned_at_once_give_the_same_bits_as_one_by_one(name, kwargs, size, monkeypatch):
    network = small(name, kwargs, size)
    lively(network.encoder.model)
    images, mask = batch(network)
    results = []
    for planned in (Windows.groups, groups_one_by_one):
        monkeypatch.setattr(Windows, "groups", planned)
        network.zero_grad()
        loss = network(images, mask).loss
        loss.backward()
        results.append([loss, *(p.grad for p in network.parameters() if p.grad is not None)])
    assert len(results[0]) == len(results[1]) > 10
    assert all(map(torch.equal, *results))


def local_attention(module, hidden_hw):
    """Twins's windows one by one, with what is visible of each."""

    def forward(x, size):
        out = torch.zeros_like(x)
        rows, columns = torch.arange(size[0]) // module.ws, torch.arange(size[1]) // module.ws
        owner = (rows[:, None] * size[1] + columns).masked_fill(hidden_hw, -1).flatten()
        for window in owner.unique():
            if window >= 0:
                there = (owner == window).nonzero().flatten()
                q, k, v = module.qkv(x[:, there]).chunk(3, dim=-1)
                q, k, v = (part.unflatten(-1, (module.num_heads, -1)).transpose(1, 2) for part in (q, k, v))
                mixed = (q @ k.transpose(-2, -1) * module.scale).softmax(-1) @ v
                out[:, there] = module.proj(mixed.transpose(1, 2).flatten(2))
        return out

    return forward


def global_attention(module, hidden_hw):
    """Twins's attention to a summary of each patch, where keys of hidden patches are taken away."""

    def forward(x, size):
        q = module.q(x).unflatten(-1, (module.num_heads, -1)).transpose(1, 2)
        summary, ratio = x, module.sr_ratio
        if module.sr is not None:
            summary = module.norm(module.sr(x.transpose(1, 2).unflatten(2, size)).flatten(2).transpose(1, 2))
        summary = summary[:, ~hidden_hw[::ratio, ::ratio].flatten()]
        kv = module.kv(summary).unflatten(-1, (2, module.num_heads, -1))
        k, v = (part.transpose(1, 2) for part in kv.unbind(2))
        mixed = (q @ k.transpose(-2, -1) * module.scale).softmax(-1) @ v
        return module.proj(mixed.transpose(1, 2).flatten(2))

    return forward


def position_convolution(own, hidden_hw):
    def forward(x, size):
        return own(x * ~hidden_hw.flatten()[:, None], size)

    return forward


def test_twins_windows_are_grouped_and_its_convolutions_see_what_is_visible(monkeypatch):
    encoder = build_encoder("twins_svt_small", (224, 224), model_kwargs=TWINS)
    model = lively(encoder.model)
    encoder.check_visible()
    images = torch.randn(1, 3, 224, 224)
    hidden = torch.randperm(49, generator=torch.Generator().manual_seed(0)).view(1, 7, 7) >= 12
    places = visible_places(hidden, 12)
    sparse = encoder.forward_blocks(images, places)
    for stage, (blocks, position) in enumerate(zip(model.blocks, model.pos_block, strict=True)):
        there = spread_mask(hidden, 8 >> stage, (56 >> stage, 56 >> stage))[0]
        for block in blocks:
            kind = local_attention if hasattr(block.attn, "ws") else global_attention
            monkeypatch.setattr(block.attn, "forward", kind(block.attn, there))
        monkeypatch.setattr(position, "forward", position_convolution(position.forward, there))
    expected = encoder(images).flatten(2).transpose(1, 2)[:, places[0]]
    assert torch.allclose(sparse, expected, atol=1e-4, rtol=1e-4)


def test_the_mask_is_one_a_batch_of_the_exact_number_in_blocks_of_the_last_stride():
    config = defaults_of("greenmim")
    assert (config.image_size, config.mask.ratio, config.target.name, config.target.loss) == (
        224,
        0.75,
        "pixels-norm",
        "l2",
    )
    assert (config.decoder.depth, config.decoder.width) == (1, 512)
    network = small(image_size=(224, 224))
    assert network.block == 32
    mask = network.draw_mask(torch.Generator().manual_seed(0), 5, (224, 224))
    assert mask.shape == (5, 7, 7)
    assert (mask.sum((1, 2)) == 37).all()  # 49 - int(49 / 4)
    assert (mask == mask[:1]).all()
    other = network.draw_mask(torch.Generator().manual_seed(1), 5, (224, 224))
    assert not torch.equal(mask, other)
    mask[1] = other[0]
    with pytest.raises(ValueError, match="the same mask"):
        network(torch.randn(5, 3, 224, 224), mask)


def test_only_what_is_visible_is_computed():
    encoder = build_encoder("swin_tiny_patch4_window7_224", (224, 224), model_kwargs=SWIN)
    images = torch.randn(1, 3, 224, 224)
    places = visible_places(small(image_size=(224, 224)).draw_mask(torch.Generator(), 1, (224, 224)), 12)
    with torch.no_grad():
        with FlopCounterMode(display=False) as dense:
            encoder(images)
        with FlopCounterMode(display=False) as sparse:
            encoder.forward_blocks(images, places)
    share = sparse.get_total_flops() / dense.get_total_flops()
    assert 0.8 * 12 / 49 < share < 1.1 * 12 / 49


def test_what_is_masked_is_not_seen_and_what_is_visible_not_scored():
    network = small(**{"target.name": "hog"}).eval()
    images, mask = batch(network)
    result = network(images, mask)
    pixels = mask.repeat_interleave(32, 1).repeat_interleave(32, 2).unsqueeze(1)
    other = torch.where(pixels, torch.randn_like(images), images)
    assert torch.equal(network(other, mask).prediction, result.prediction)
    assert torch.equal(network.masked_images(other, mask), network.masked_images(images, mask))
    difference = ((result.prediction - result.target) ** 2).mean(1)
    assert torch.allclose(result.loss, difference[result.mask].mean())


@pytest.mark.parametrize("target", mostly_slow(["hog", "pixels-norm"], ["hog"]))
@pytest.mark.parametrize(
    "settings",
    mostly_slow(
        [{}, {"mask.size": 64}, {"mask.token": "zeros"}, {"mask.pattern": "blockwise"}],
        [{"mask.size": 64}, {"mask.token": "zeros"}],
    ),
)
def test_every_parameter_gets_a_gradient_and_the_model_is_as_before(target, settings):
    network = small(**{"target.name": target, **settings})
    keys, before = (
        list(network.encoder.model.state_dict()),
        dict(vars(network.encoder.model.layers[0].blocks[0])),
    )
    images, mask = batch(network)
    result = network(images, mask)
    assert result.prediction.shape == result.target.shape
    assert result.mask.float().mean() == mask.float().mean()
    result.loss.backward()
    assert [n for n, p in network.named_parameters() if p.requires_grad and p.grad is None] == []
    assert list(network.encoder.model.state_dict()) == keys
    assert vars(network.encoder.model.layers[0].blocks[0]).keys() == before.keys()
    assert network.encoder.model.patch_embed.strict_img_size
    assert network.encoder(images).shape[2:] == network.encoder.grid


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"mask.place": "patch"}, r"mask\.place = 'patch': method = greenmim does not use it"),
        ({"mask.size": 16}, r"mask\.size = 16: .* must be a multiple of that"),
        ({"mask.size": 64, "image_size": 160}, r"image_size = 160x160 must be a multiple"),
        ({"decoder.depth": 0}, r"decoder\.depth = 0"),
        (
            {"model": "vit_tiny_patch16_224", "model_kwargs": {}},
            "vit_tiny_patch16_224 cannot leave blocks out",
        ),
        ({"model": "swinv2_tiny_window8_256", "image_size": 256}, "cannot leave blocks out at 256x256"),
        ({"model": "beit_base_patch16_224", "model_kwargs": {"depth": 1}, "image_size": 224}, "cannot leave"),
        (
            {"model": "twins_svt_small", "model_kwargs": TWINS},
            "windows of 7x7 tokens do not divide a map of 32x48",
        ),
        ({"model_kwargs": {**SWIN, "window_size": 7}}, "windows of 7x7 tokens do not divide a map of 32x48"),
    ],
)
def test_what_cannot_be_is_told(settings, part):
    with pytest.raises(UsageError, match=part):
        small(**settings)


def test_compiling_leaves_it_as_it_is():
    network = small()
    images, _ = batch(network)
    masks = [network.draw_mask(torch.Generator().manual_seed(seed), 2, network.image_size) for seed in (0, 1)]
    expected = [network(images, mask).loss for mask in masks]
    network.compile(backend="eager")
    assert [network(images, mask).loss for mask in masks] == expected


@pytest.mark.slow
def test_a_run_goes_through_stages_and_leaves_timms_weights(photos, tmp_path):
    run = tmp_path / "run"
    model = {"model": "swin_tiny_patch4_window7_224", "model_kwargs": SWIN, "method": "greenmim"}
    settings = {**TINY, **model, "image_size": None, "stages": "96x1s,128x1s"}
    assert fastmim.pretrain(data=photos, out=run, **settings).complete
    origin = json.loads((run / "encoder.json").read_text())
    assert (origin["method"], origin["image_size"]) == ("greenmim", [128, 128])
    timm.create_model(origin["model"], **origin["kwargs"]).load_state_dict(weights(run), strict=True)
    again = fastmim.pretrain(config=run / "config.yaml", out=tmp_path / "again", quiet=True)
    assert again.complete
    assert (run / "encoder.safetensors").read_bytes() == (tmp_path / "again/encoder.safetensors").read_bytes()


@pytest.mark.parametrize(("name", "kwargs", "size"), [*MODELS[1:3], ("twins_svt_small", TWINS, (224, 224))])
def test_plain_attention_gives_what_fused_attention_gives(name, kwargs, size):
    encoder = build_encoder(name, size, model_kwargs=kwargs)
    lively(encoder.model)
    images = torch.randn(2, 3, *size)
    places = torch.tensor([[0, 3, 4, 7]]).expand(2, -1)
    outputs = []
    for fused in (True, False):
        for module in encoder.model.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = fused
        outputs.append(encoder.forward_blocks(images, places).detach())
    assert torch.allclose(*outputs, atol=1e-4 * float(outputs[0].abs().max()))
    assert not torch.equal(*outputs)  # they are two ways
