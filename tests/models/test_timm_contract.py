"""The tests that timm has for its own models, for every registered name."""

from __future__ import annotations

import math

import pytest
import timm
import torch
from timm.layers import get_notrace_functions, get_notrace_modules
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

import deformvit

QUICK = ["dat_nano", "dat_tiny", "datpp_tiny"]
REGISTERED = [
    "dat", "dat_base", "dat_base_384", "dat_nano", "dat_small", "dat_tiny", "datpp_base", "datpp_base_384",
    "datpp_small", "datpp_tiny",
]  # fmt: skip
NAMES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in REGISTERED]
SMALL = {"dims": (8, 16, 32, 64), "num_heads": (2, 2, 4, 4), "groups": (1, 1, 2, 2), "depths": (2, 2, 2, 2)}


def image(model, batch=1, largest=10**6):
    channels, *sides = model.default_cfg["input_size"]
    return torch.randn(batch, channels, *(min(side, largest) for side in sides))


def test_registered_names():
    assert timm.list_models(module="dat") == REGISTERED


@pytest.mark.parametrize("name", NAMES)
def test_checkpointed_blocks_are_recomputed_with_the_same_result(name):
    model = timm.create_model(name, num_classes=3).eval()
    x = image(model, largest=384)
    calls = []
    model.stages[2].blocks[0].norm1.register_forward_hook(lambda *_: calls.append(1))
    out, gradients = [], []
    for enable, expected in ((False, 1), (True, 2)):
        model.set_grad_checkpointing(enable)
        calls.clear()
        model.zero_grad()
        out.append(model(x))
        out[-1].square().sum().backward()
        gradients.append(model.stem.conv.weight.grad.clone())
        assert len(calls) == expected
    assert torch.isfinite(out[0]).all()
    torch.testing.assert_close(out[1], out[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_backward_reaches_every_parameter(name):
    model = timm.create_model(name, num_classes=42).train()
    out = model(image(model, batch=2, largest=128))
    out.mean().backward()
    assert out.shape == (2, 42)
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


@pytest.mark.parametrize("name", NAMES)
def test_default_configuration_is_true(name):
    model = timm.create_model(name).eval()
    cfg, x = model.default_cfg, image(model)
    state = model.state_dict()
    assert f"{cfg['classifier']}.weight" in state
    assert f"{cfg['first_conv']}.weight" in state
    assert cfg["license"] == "apache-2.0"
    with torch.inference_mode():
        features = model.forward_features(x)
        pooled = model.forward_head(features, pre_logits=True)
        assert features.shape == (1, model.num_features, *cfg["pool_size"])
        assert pooled.shape == (1, model.head_hidden_size)
        model.reset_classifier(0)
        assert model.num_classes == 0
        assert model(x).shape == pooled.shape
        model.reset_classifier(0, "")
        assert model(x).shape == features.shape
        bare = timm.create_model(name, num_classes=0, global_pool="").eval()
        assert bare(x).shape == features.shape


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("out_indices", [None, (1, 3), (-1,), (0,)])
def test_features(name, out_indices):
    kwargs = {} if out_indices is None else {"out_indices": out_indices}
    model = timm.create_model(name, features_only=True, **kwargs).eval()
    x = image(model, largest=96)
    with torch.inference_mode():
        maps = model(x)
    assert len(maps) == len(model.feature_info.channels()) == (4 if out_indices is None else len(out_indices))
    for channels, stride, features in zip(
        model.feature_info.channels(), model.feature_info.reduction(), maps, strict=True
    ):
        assert features.shape == (1, channels, *(math.ceil(side / stride) for side in x.shape[2:]))


@pytest.mark.parametrize("name", NAMES)
def test_intermediates(name):
    model = timm.create_model(name).eval()
    x = image(model, largest=96)
    with torch.inference_mode():
        final, maps = model.forward_intermediates(x)
        torch.testing.assert_close(final, model.forward_features(x))
        assert len(maps) == len(model.feature_info)
        nhwc = model.forward_intermediates(x, indices=[1, 2], intermediates_only=True, output_fmt="NHWC")
        torch.testing.assert_close(nhwc[0].permute(0, 3, 1, 2), maps[1])
        (last,) = model.forward_intermediates(x, indices=1, norm=True, intermediates_only=True)
        torch.testing.assert_close(last, final)
        early = model.forward_intermediates(x, indices=[0], stop_early=True, intermediates_only=True)
        torch.testing.assert_close(early[0], maps[0])


@pytest.mark.parametrize("name", NAMES)
def test_fx_as_timm_traces(name):
    model = timm.create_model(name, num_classes=7).eval()
    x = image(model, largest=128)
    options = {
        "leaf_modules": get_notrace_modules(), "autowrap_functions": get_notrace_functions(),
        "param_shapes_constant": True,
    }  # fmt: skip
    train_nodes, eval_nodes = get_graph_node_names(model, tracer_kwargs=options)
    traced = create_feature_extractor(
        model, train_return_nodes=[train_nodes[-1]], eval_return_nodes=[eval_nodes[-1]], tracer_kwargs=options
    )
    with torch.inference_mode():
        # A traced graph keeps to what it recorded, the model takes the kernels for inference.
        torch.testing.assert_close(next(iter(traced(x).values())), model(x), rtol=1e-4, atol=1e-5)
    traced.train()
    next(iter(traced(x.repeat(2, 1, 1, 1)).values())).mean().backward()
    assert not [name for name, parameter in traced.named_parameters() if parameter.grad is None]


VARIANTS = {
    "dat_nano": {}, "dat_tiny": {}, "datpp_tiny": {},
    "reduction": {"blocks": ("reduction",) * 4},
    "deformable_detr": {"blocks": ("window", "conv", "deformable_detr", "deformable_detr"), "points": 5},
    "log_cpb": {"position": "log_cpb", "convention": "datpp", "bound": "clamp"},
    "fixed": {"position": "fixed"}, "dwconv": {"position": "dwconv"},
    "pooled": {"offsets": False, "sampling": "pooled", "position": "none", "stride": 2},
    "deformable_patches": {"embed": "deformable"},
    "swin": {"blocks": ("window shifted",) * 4, "shifting": "swin", "downsample": "merging"},
    "dense": {"output_stride": 8, "output_norms": True, "num_classes": 0},
    "side_by_side": {"stride": 2, "offset_kernel": 2, "offset_padding": "none", "layer_scale": 0.1},
}  # fmt: skip


def variant(key):
    if key in QUICK:
        return timm.create_model(key, num_classes=5, **({} if key == "dat_nano" else SMALL)).eval()
    return timm.create_model("dat_tiny", **{"num_classes": 5, **SMALL, **VARIANTS[key]}).eval()


RARE = ("dwconv", "pooled", "side_by_side", "reduction")
"""Of no published model."""


@pytest.mark.parametrize("key", [pytest.param(key, marks=pytest.mark.slow if key in RARE else ()) for key in VARIANTS])
def test_graphs_compute_the_same(key):
    """Plain torch.fx at any size, torch.compile without a break at two sizes, torch.export."""
    model = variant(key)
    first, second = torch.randn(1, 3, 64, 96), torch.randn(1, 3, 70, 45)
    with torch.inference_mode():
        traced = torch.fx.symbolic_trace(model)
        for x in (first, second):
            torch.testing.assert_close(traced(x), model(x), rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager", dynamic=False)
    for x in (first, second):
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)
    exported = torch.export.export(model, (first,)).module()
    torch.testing.assert_close(exported(first), model(first), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dat_tiny", "datpp_tiny"])
def test_compiled_for_changing_sizes(name):
    model = variant(name)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager", dynamic=True)
    with torch.no_grad():
        for hw in ((70, 101), (96, 128), (150, 75)):
            x = torch.randn(1, 3, *hw)
            torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("key", VARIANTS)
def test_groups_for_decay(key):
    model = variant(key)
    layers = param_groups_layer_decay(model, weight_decay=0.05, layer_decay=0.7)
    assert sum(len(group["params"]) for group in layers) == len(list(model.parameters()))
    scales = [group["lr_scale"] for group in layers]
    assert min(scales) < max(scales) == 1.0
    named = {id(parameter): name for name, parameter in model.named_parameters()}
    undecayed, decayed = param_groups_weight_decay(model, 0.05, no_weight_decay_list=model.no_weight_decay())
    assert undecayed["weight_decay"] == 0.0
    assert not [n for p in decayed["params"] if "bias_table" in (n := named[id(p)]) or n.endswith((".bias", ".gamma"))]
    assert not [n for p in undecayed["params"] if (n := named[id(p)]).endswith(("q.weight", "fc1.weight"))]


def test_input_channels_are_adapted_from_pretrained_weights():
    grey = timm.create_model("dat_nano", pretrained=True, in_chans=1, num_classes=5).eval()
    colour = timm.create_model("dat_nano", pretrained=True).eval()
    torch.testing.assert_close(
        grey.stem.conv.weight, colour.stem.conv.weight.sum(1, keepdim=True), rtol=0, atol=1e-3
    )  # float16 file
    assert torch.equal(grey.stages[2].blocks[1].attn.q.weight, colour.stages[2].blocks[1].attn.q.weight)
    assert timm.create_model("dat_nano", pretrained=True, in_chans=1, num_classes=0).num_classes == 0
    features = timm.create_model("dat_nano", pretrained=True, features_only=True)
    assert torch.equal(features.model.stem.conv.weight, colour.stem.conv.weight)


@pytest.mark.parametrize("pool", ["avg", "max", "avgmax", "catavgmax", ""])
def test_pooling(pool):
    model = timm.create_model("dat_nano", num_classes=10 if pool else 0, global_pool=pool).eval()
    x = torch.randn(2, 3, 32, 48)
    assert model(x).shape == ((2, 10) if pool else (2, 256, 2, 3))
    with torch.inference_mode():
        features = model.forward_features(x)
        torch.testing.assert_close(model.forward_head(features), model(x))


@pytest.mark.parametrize("stride", [8, 16, 32])
@pytest.mark.parametrize("name", ["dat_tiny", "datpp_tiny"])
def test_output_stride(name, stride):
    model = timm.create_model(name, features_only=True, output_stride=stride, **SMALL).eval()
    strides = [min(s, stride) for s in (4, 8, 16, 32)]
    assert model.feature_info.reduction() == strides
    x = torch.randn(1, 3, 100, 72)
    assert [f.shape[2:] for f in model(x)] == [(math.ceil(100 / s), math.ceil(72 / s)) for s in strides]
    model.load_state_dict(timm.create_model(name, features_only=True, **SMALL).state_dict())  # the same weights


def test_wrong_output_strides_are_named():
    with pytest.raises(ValueError, match=r"output_stride must be one of \[8, 16, 32\], got 4"):
        timm.create_model("dat_tiny", output_stride=4)
    with pytest.raises(ValueError, match="needs downsample 'patch' or 'conv', got 'merging'"):
        timm.create_model("dat_tiny", output_stride=16, downsample="merging")


def test_weights_that_must_be_fetched_by_hand_say_so():
    with pytest.raises(deformvit.UserError, match=r"datpp_tiny\.in1k.*LeapLabTHU/DAT.*pretrained_cfg_overlay"):
        timm.create_model("datpp_tiny", pretrained=True)
    assert timm.get_pretrained_cfg("dat_small").license == "apache-2.0"
    assert timm.list_models("dat*", pretrained=True) == ["dat_nano.cifar10"]
