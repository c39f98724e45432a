"""Every registered model: size, forward, backward, any input size, mixed precision, timm's arguments."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F

import deformvit  # noqa: F401 - registers the models
from deformvit import DAT, UserError
from deformvit.layers import DeformableAttention, ReductionAttention, WindowAttention, common
from deformvit.models.blocks import stage_specs
from deformvit.paper.tables import TABLES

PARAMETERS = {  # paper.md: the released models' counts, to the last one; dat_nano is ours
    "dat_tiny": 28_319_138, "dat_small": 49_700_402, "dat_base": 87_881_632, "dat_base_384": 88_178_272,
    "datpp_tiny": 23_962_876, "datpp_small": 53_127_366, "datpp_base": 93_690_640, "datpp_base_384": 93_690_640,
}  # fmt: skip
SMALL = {
    "dims": (8, 16, 32, 64),
    "num_heads": (2, 2, 4, 4),
    "groups": (1, 1, 2, 2),
    "depths": (2, 2, 2, 2),
    "num_classes": 5,
}


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_parameters_as_published(name, count):
    with torch.device("meta"):
        model = timm.create_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


@pytest.mark.parametrize("hw", [(32, 32), (33, 47), (64, 32), (70, 101), (224, 96)])
@pytest.mark.parametrize("name", ["dat_tiny", "datpp_tiny"])
@pytest.mark.parametrize("training", [False, True])
def test_any_input_size(name, hw, training):
    model = timm.create_model(name, **SMALL).train(training)
    x = torch.randn(2, 3, *hw)
    final, stages = model.forward_intermediates(x)
    assert [tuple(s.shape[2:]) for s in stages] == [tuple(-(-side // r) for side in hw) for r in (4, 8, 16, 32)]
    assert torch.isfinite(final).all()
    out = model(x)
    assert out.shape == (2, 5)
    out.square().sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


@pytest.mark.parametrize("name", ["dat_tiny", "datpp_tiny"])
def test_map_sizes_are_what_the_stages_give(name):
    model = timm.create_model(name, output_stride=16, **SMALL).eval()
    _, stages = model.forward_intermediates(torch.randn(1, 3, 70, 101))
    assert model.map_sizes((70, 101)) == [tuple(stage.shape[2:]) for stage in stages]


@pytest.mark.parametrize(
    "change",
    [
        {"blocks": ("window shifted",) * 4},
        {"blocks": ("neighborhood",) * 4},
        {"blocks": ("window shifted",) * 4, "shifting": "swin"},
        {"blocks": ("deformable",) * 4},
    ],
)
def test_what_lies_in_the_padding_does_not_matter(change, monkeypatch):
    """Attention pads maps to windows and tiles; if it used the padding, other values there would change the output."""
    model = DAT(**SMALL | change).double().eval()
    x = torch.randn(1, 3, 4 * 19, 4 * 23, dtype=torch.float64)  # 19 x 23: no multiple of the window
    blocks = model.stages[0].blocks
    features = model.stem(x)
    expected = [block.attn(features) for block in blocks]
    pad = torch.nn.functional.pad

    def garbage(tensor, ends, *args, **kwargs):
        return pad(tensor, ends, value=1e3)

    padded = []
    monkeypatch.setattr(torch.nn.functional, "pad", lambda *args, **kw: padded.append(args[1]) or garbage(*args, **kw))
    for block, value in zip(blocks, expected, strict=True):
        torch.testing.assert_close(block.attn(features), value)
    assert padded or "deformable" in change["blocks"][0]


def test_released_neighbourhoods_see_zeros_on_small_maps():
    """Unlike ours: exact for the authors' checkpoints, chosen by model_from_released."""
    whole, zeros = (
        timm.create_model("datpp_tiny", small_map=kind, **SMALL).double().eval() for kind in ("whole", "zeros")
    )
    zeros.load_state_dict(whole.state_dict())
    small, large = (torch.randn(1, 3, side, side, dtype=torch.float64) for side in (64, 128))
    torch.testing.assert_close(whole(large), zeros(large))
    assert (whole(small) - zeros(small)).abs().max() > 1e-6


@pytest.mark.parametrize("name", ["dat_tiny", "datpp_tiny"])
def test_nominal_size_can_change(name):
    model = timm.create_model(name, img_size=(64, 96), **SMALL).eval()
    table = model.stages[2].blocks[1].attn.bias_table
    assert table.shape[1:] == (7, 11)
    model.set_input_size((96, 64))
    assert model.img_size == (96, 64)
    resized = model.stages[2].blocks[1].attn.bias_table
    torch.testing.assert_close(resized, F.interpolate(table[None], size=(11, 7), mode="bicubic")[0])
    assert resized.requires_grad
    other = timm.create_model(name, img_size=(96, 64), **SMALL).eval()
    other.load_state_dict(model.state_dict())
    x = torch.randn(1, 3, 96, 64)
    torch.testing.assert_close(other(x), model(x))


def test_second_generation_at_384_keeps_the_tables_of_224():
    with torch.device("meta"):
        model = timm.create_model("datpp_base_384")
    assert model.default_cfg["input_size"] == (3, 384, 384)
    assert model.stages[2].blocks[1].attn.bias_table.shape == (16, 27, 27)


def test_windows_can_change():
    model = timm.create_model("dat_tiny", **SMALL).eval()
    model.set_input_size(384, window_size=12)
    assert [block.attn.window_size for block in model.stages[0].blocks] == [12, 12]
    assert [block.attn.shift_size for block in model.stages[0].blocks] == [0, 6]
    large = timm.create_model("dat_tiny", img_size=384, window_size=12, **SMALL).eval()
    large.load_state_dict(model.state_dict())
    x = torch.randn(1, 3, 96, 128)
    torch.testing.assert_close(large(x), model(x))
    with pytest.raises(ValueError, match="one value for each of 4 stages"):
        model.set_input_size(384, window_size=(7, 7))


def test_swin_by_configuration_is_timms_swin():
    """All windows shifted, Swin's rounding and downsampling: the same numbers from the same weights."""
    change = TABLES["7"].rows[-1].args
    swin = timm.create_model("swin_tiny_patch4_window7_224", num_classes=7, depths=(2, 2, 2, 2)).double().eval()
    ours = timm.create_model("dat_tiny", num_classes=7, depths=(2, 2, 2, 2), **change).double().eval()
    names = {
        "patch_embed.proj": "stem.conv", "patch_embed.norm": "stem.norm", "layers": "stages",
        "relative_position_bias_table": "bias_table",
    }  # fmt: skip
    weights = {}
    for name, value in swin.state_dict().items():
        for theirs, mine in names.items():
            name = name.replace(theirs, mine)
        weights[name] = value
    missing, unexpected = ours.load_state_dict(weights, strict=False)
    assert not missing
    assert not [name for name in unexpected if "relative_position_index" not in name and "attn_mask" not in name]
    x = torch.randn(2, 3, 224, 224, dtype=torch.float64)
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), swin(x))
        features = ours.forward_intermediates(x, intermediates_only=True)
        for mine, theirs in zip(features, swin.forward_intermediates(x, intermediates_only=True), strict=True):
            torch.testing.assert_close(mine, theirs)


def test_norm_for_every_stage():
    model = timm.create_model("datpp_tiny", features_only=True, output_norms=True, out_indices=(1, 3), **SMALL)
    maps = model(torch.randn(2, 3, 70, 90))
    for features in maps:  # a fresh LayerNorm leaves every pixel with mean 0 and variance 1
        assert features.mean(1).abs().max() < 1e-5
        torch.testing.assert_close(features.var(1, correction=0), torch.ones_like(features[:, 0]), rtol=0.05, atol=0.05)
    sum(features.square().sum() for features in maps).backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


KINDS = {
    "dat_nano": {}, "dat_tiny": {}, "datpp_tiny": {},
    "log_cpb": {"position": "log_cpb", "layer_scale": 0.1},
    "rivals": {"blocks": ("conv", "reduction", "deformable_detr", "neighborhood"), "downsample": "deformable"},
}  # fmt: skip


def kind(name):
    if name == "dat_nano":
        return timm.create_model(name, num_classes=5)
    return timm.create_model(name if name in KINDS and name.startswith("dat") else "dat_tiny", **SMALL | KINDS[name])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", KINDS)
def test_autocast(name, dtype):
    model = kind(name)
    x = torch.randn(2, 3, 48, 64)
    exact = model(x)
    with torch.autocast("cpu", dtype):
        low = model(x).float()
    assert (low - exact).norm() / exact.norm() < 40 * torch.finfo(dtype).eps
    low.square().mean().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


@pytest.mark.parametrize("name", KINDS)
def test_whole_model_in_bfloat16(name):
    model = kind(name)
    x = torch.randn(2, 3, 48, 64)
    exact = model(x)
    low = model.bfloat16()(x.bfloat16())
    assert low.dtype == torch.bfloat16
    assert (low - exact).norm() / exact.norm() < 40 * torch.finfo(torch.bfloat16).eps


@pytest.mark.gpu
@pytest.mark.parametrize("name", KINDS)
def test_cuda_equals_cpu(name):
    model = kind(name).eval()
    x = torch.randn(2, 3, 70, 101)
    with torch.inference_mode():
        expected = model(x)
        torch.testing.assert_close(model.cuda()(x.cuda()).cpu(), expected, rtol=1e-3, atol=1e-3)


def test_blocks_are_what_they_are_called():
    model = DAT(**SMALL | {"blocks": ("reduction", "window shifted", "window deformable", "deformable")})
    kinds = [[type(block.attn) for block in stage.blocks] for stage in model.stages]
    assert kinds == [
        [ReductionAttention] * 2,
        [WindowAttention] * 2,
        [WindowAttention, DeformableAttention],
        [DeformableAttention] * 2,
    ]  # fmt: skip
    assert [block.attn.shift_size for block in model.stages[1].blocks] == [0, 4]


def test_batch_order_does_not_matter():
    model = timm.create_model("dat_tiny", **SMALL).double().eval()
    x = torch.randn(3, 3, 50, 66, dtype=torch.float64)
    order = torch.tensor([1, 2, 0])
    torch.testing.assert_close(model(x)[order], model(x[order]))


def test_drop_path_rises_linearly():
    model = timm.create_model("dat_tiny", drop_path_rate=0.2, **SMALL)
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for stage in model.stages for block in stage.blocks]
    assert rates == pytest.approx([0.2 * i / 7 for i in range(8)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks": ("window",) * 3}, "blocks must have one value for each of the 4 stages"),
        ({"blocks": ("swin",) * 4}, "unknown block 'swin'"),
        ({"blocks": ("window shifted deformable",) * 4}, "stage 1.*do not repeat evenly to depth 2"),
        ({"groups": (1, 1)}, r"groups must have one value for each of the 4 stages, got \(1, 1\)"),
        ({"position": "rel"}, "'rel'"),
        ({"embed": "conv3"}, "'conv3'"),
        ({"conv_mlp": "dw"}, "'dw'"),
        ({"shifting": "up"}, "'up'"),
        ({"downsample": "pool"}, "'pool'"),
        ({"small_map": "crop", "blocks": ("neighborhood",) * 4}, "'crop'"),
        ({"neighborhood_size": 4, "blocks": ("neighborhood",) * 4}, "kernel_size must be odd and positive, got 4"),
        ({"points": 0, "blocks": ("deformable_detr",) * 4}, "points must be at least 1, got 0"),
        ({"blocks": ("conv",) * 4, "window_size": 4}, "odd window_size.*got 4"),
        ({"sampling": "pooled"}, "needs offsets=False"),
        ({"offset_kernel": 4, "offset_padding": "none"}, "stride's size 1, got 4"),
        ({"embed": "stacked", "patch_size": 3}, "even stride and dim, got stride="),
        ({"groups": 3}, "num_heads=4, groups=3"),
    ],
)
def test_bad_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        DAT(**SMALL | change)


def test_misspelt_argument_is_not_swallowed():
    with pytest.raises(TypeError, match="postion"):
        timm.create_model("dat_tiny", postion="none")


def test_one_value_stands_for_all_stages():
    common = {
        "dim": (1, 2), "num_heads": (1, 1), "window_size": 7, "neighborhood_size": 7, "groups": 1, "stride": (1, 2),
        "reduction": 1, "points": 16, "offset_kernel": 3, "offset_padding": "same", "offset_range": 2.0,
        "bound": "range", "offsets": True, "sampling": "bilinear", "position": "relative", "conv_mlp": "none",
        "local_perception": False, "layer_scale": None,
    }  # fmt: skip
    first, second = stage_specs((2, 4), ("window shifted", ["window", "deformable"]), **common)
    assert (first.window_size, second.stride, first.position) == (7, 2, "relative")
    assert second.blocks == ("window", "deformable") * 2


@pytest.fixture
def one_thread():
    """Chunks grow with the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["dat_nano", "dat_tiny"])
def test_inference_in_chunks_equals_training(name, one_thread, monkeypatch):
    """In inference on the CPU, windows go through a kernel and MLPs are computed in chunks, with the same results."""
    model = timm.create_model(name, num_classes=5, drop_path_rate=0.2).eval()
    x = torch.randn(3, 3, 70, 85)
    expected = model(x)
    counts = []
    split = common.chunks
    monkeypatch.setattr(common, "chunks", lambda *a: counts.append(len(parts := split(*a))) or parts)
    with torch.inference_mode():
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    assert max(counts) > 1
    counts.clear()
    model.train()
    with torch.no_grad():  # drop path is drawn for whole images
        model(x)
    assert not counts


def test_hooks_see_complete_maps_in_inference(one_thread):
    model = timm.create_model("dat_tiny", num_classes=5).eval()
    outputs = []
    block = model.stages[0].blocks[1]
    for module in (block.norm2, block.mlp.fc1, block.attn.qkv):
        module.register_forward_hook(lambda _, inputs, out: outputs.append((inputs[0], inputs[0].clone(), out.shape)))
    with torch.no_grad():
        model(torch.randn(3, 3, 70, 85))
    assert [tuple(shape) for _, _, shape in outputs] == [(3, 18, 22, 288), (3, 96, 18, 22), (3, 18, 22, 384)]
    assert common.CHUNK_SIZE < 3 * 18 * 22 * 384  # without the hooks there would be several chunks
    assert all(torch.equal(kept, copy) for kept, copy, _ in outputs)


def test_a_model_by_its_arguments_alone_has_no_weights():
    with pytest.raises(UserError, match="dat is DAT with the arguments given, which has no weights"):
        timm.create_model("dat", pretrained=True)
