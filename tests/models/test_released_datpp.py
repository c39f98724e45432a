"""Released files and configurations of the second generation, DAT++, and of detectors and segmenters built on it."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image

from deformvit import DAT, DeformableAttention, load_model, load_released, model_from_released
from deformvit.figures.common import COLOURS
from deformvit.models.released import config as released_config
from deformvit.models.released.files import convert_file
from deformvit.models.released.weights import ConversionError
from deformvit.ops import grid
from deformvit_command import main


@pytest.fixture
def second(golden):
    return golden("datpp_micro")


def changed(case, seed=0, **change):
    """A configuration of the second generation with its model and fresh released-style weights for what is new."""
    torch.manual_seed(seed)
    return model_from_released(case.config | change).double().eval()


def dense(weights):
    """A classification checkpoint as DAT-Detection would store it: a norm a stage, no classifier, a prefix."""
    kept = {name: value for name, value in weights.items() if not name.startswith("cls_")}
    for stage, dim in enumerate((8, 16, 32, 64)):
        kept[f"norms.{stage}.norm.weight"] = torch.randn(dim, dtype=torch.float64)
        kept[f"norms.{stage}.norm.bias"] = torch.randn(dim, dtype=torch.float64)
    return {
        "state_dict": {f"backbone.{name}": value for name, value in kept.items()} | {"neck.fpn.weight": torch.ones(3)}
    }


def test_backbone_of_a_detector(second):
    weights = dense(second.state_dict())
    model = model_from_released(second.config, output_norms=True, num_classes=0).double().eval()
    load_released(model, weights)
    maps = model.forward_intermediates(second.image(), intermediates_only=True)
    for stage, features in enumerate(maps):
        norm = {kind: weights["state_dict"][f"backbone.norms.{stage}.norm.{kind}"] for kind in ("weight", "bias")}
        released = torch.from_numpy(second.outputs[f"stage{stage}"]).double()
        expected = F.layer_norm(released.permute(0, 2, 3, 1), norm["weight"].shape, norm["weight"], norm["bias"])
        torch.testing.assert_close(features.permute(0, 2, 3, 1), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ConversionError, match=r"output_norms=True, num_classes=0"):
        load_released(model_from_released(second.config), weights)


def test_backbone_of_a_detector_through_files(second, tmp_path, capsys):
    import yaml

    torch.save(dense({k: v.float() for k, v in second.state_dict().items()}), tmp_path / "mask_rcnn.pth")
    (tmp_path / "micro.yaml").write_text(yaml.safe_dump({"MODEL": {"DAT": second.config}}))
    convert_file(tmp_path / "mask_rcnn.pth", tmp_path / "out.safetensors", config=tmp_path / "micro.yaml")
    model, info = load_model(str(tmp_path / "out.safetensors"))
    assert model.output_norms is not None
    assert info.classes == []
    source = str(tmp_path / "out.safetensors")
    main(["figure", "points", "photo", "--model", source, "--output", str(tmp_path)])  # has deformed points too
    groups = max(module.points.groups for module in model.modules() if isinstance(module, DeformableAttention))
    with Image.open(tmp_path / "cat_points.png") as figure:
        assert min(figure.size) > 200
        colours = figure.convert("RGB").getcolors(figure.width * figure.height)
    assert len(colours) > 10_000  # the photo
    points = {tuple(bytes.fromhex(colour[1:])) for colour in COLOURS[:groups]}
    assert points <= {colour for _, colour in colours}
    for command in (["predict", "photo"], ["eval", "--data", "sample"]):
        with pytest.raises(SystemExit) as stop:
            main([*command, "--model", source])
        assert stop.value.code == 1
        assert "backbone without a classifier" in capsys.readouterr().err


def test_yaml_of_a_fine_tuned_model_says_how_it_is_evaluated(second, tmp_path):
    """The released DAT-B++ at 384 is configured with img_size 224, whose tables it keeps, and DATA.IMG_SIZE 384."""
    import yaml

    torch.save({"model": {k: v.float() for k, v in second.state_dict().items()}}, tmp_path / "micro.pth")
    config = {"MODEL": {"DAT": second.config}, "DATA": {"IMG_SIZE": 192}, "TEST": {"CROP": False}}
    (tmp_path / "micro.yaml").write_text(yaml.safe_dump(config))
    convert_file(tmp_path / "micro.pth", tmp_path / "out.safetensors", config=tmp_path / "micro.yaml")
    model, info = load_model(str(tmp_path / "out.safetensors"))
    assert (info.img_size, info.crop_pct, info.resize, model.img_size) == (192, 1.0, "square", (128, 128))
    (tmp_path / "micro.yaml").write_text(yaml.safe_dump(config | {"DATA": {"IMG_SIZE": "big"}}))
    with pytest.raises(ConversionError, match=r"DATA\.IMG_SIZE.*'big'"):
        convert_file(tmp_path / "micro.pth", tmp_path / "out.safetensors", config=tmp_path / "micro.yaml")


def test_timm_reads_a_detector_and_a_classifier_as_they_are(golden, tmp_path):
    weights = {name: value.float() for name, value in golden("datpp_tiny").state_dict().items()}
    torch.save({"model": weights}, tmp_path / "classifier.pth")
    overlay = {"file": str(tmp_path / "classifier.pth")}
    classifier = timm.create_model("datpp_tiny", pretrained=True, pretrained_cfg_overlay=overlay).eval()
    features = timm.create_model(
        "datpp_tiny", pretrained=True, pretrained_cfg_overlay=overlay, features_only=True, in_chans=1
    )
    assert torch.equal(
        features.model.stages[2].blocks[0].attn.qkv.weight, classifier.stages[2].blocks[0].attn.qkv.weight
    )
    backbone = {f"backbone.{name}": value for name, value in weights.items() if not name.startswith("cls_")}
    for stage, dim in enumerate((64, 128, 256, 512)):
        backbone |= {f"backbone.norms.{stage}.norm.{kind}": torch.full((dim,), 2.0) for kind in ("weight", "bias")}
    torch.save({"state_dict": backbone}, tmp_path / "detector.pth")
    maps = timm.create_model(
        "datpp_tiny", pretrained=True, pretrained_cfg_overlay={"file": str(tmp_path / "detector.pth")},
        features_only=True, output_norms=True,
    )  # fmt: skip
    assert maps.model.output_norms[1].weight.unique().tolist() == [2.0]
    assert torch.equal(maps.model.stages[2].blocks[0].attn.qkv.weight, classifier.stages[2].blocks[0].attn.qkv.weight)
    with pytest.raises(ConversionError, match="another architecture"):
        timm.create_model("dat_tiny", pretrained=True, pretrained_cfg_overlay=overlay, features_only=True)


@pytest.mark.parametrize("name", ["weight", "gamma"])
def test_layer_scales(second, name):
    """Scale 2 j + 0 belongs to the attention, 2 j + 1 to the MLP of block j; the dense repositories call it gamma."""
    weights = second.state_dict()
    for stage, dim in enumerate((8, 16, 32, 64)):
        weights |= {f"stages.{stage}.layer_scales.{i}.{name}": torch.full((dim,), 10.0 * stage + i) for i in range(4)}
    model = changed(second, layer_scale_values=[0.1] * 4)
    load_released(model, weights)
    for stage in range(4):
        for block in range(2):
            attn, mlp = model.stages[stage].blocks[block].scale1, model.stages[stage].blocks[block].scale2
            assert (attn.gamma[0].item(), mlp.gamma[0].item()) == (10 * stage + 2 * block, 10 * stage + 2 * block + 1)


def test_scales_of_one_change_nothing(second):
    weights = second.state_dict()
    for stage, dim in enumerate((8, 16, 32, 64)):
        weights |= {f"stages.{stage}.layer_scales.{i}.weight": torch.ones(dim) for i in range(4)}
    model = changed(second, layer_scale_values=[0.1] * 4)
    load_released(model, weights)
    torch.testing.assert_close(model(second.image()), torch.from_numpy(second.outputs["logits"]))


def test_log_spaced_position_bias(second):
    """Small network, shared by the groups: head h of every group is its output h (released ``log_cpb``)."""
    model = changed(second, log_cpb=[True] * 4)
    weights = {k: v for k, v in second.state_dict().items() if "rpe_table" not in k}
    heads = {0: 1, 1: 2, 2: 2, 3: 2}  # of a group: 1/1, 2/1, 4/2, 8/4
    for stage, block in ((0, 1), (1, 1), (2, 1), (3, 0), (3, 1)):
        path = f"stages.{stage}.attns.{block}.rpe_table"
        weights[f"{path}.0.weight"] = torch.randn(32, 2, dtype=torch.float64)
        weights[f"{path}.0.bias"] = torch.randn(32, dtype=torch.float64)
        weights[f"{path}.2.weight"] = torch.randn(heads[stage], 32, dtype=torch.float64)
    load_released(model, weights)
    layer = model.stages[2].blocks[1].attn
    x = torch.randn(1, 32, 5, 9, dtype=torch.float64)
    pos = layer.points(layer.q(x.movedim(1, -1)).movedim(-1, 1))[0].flatten(1, 2)  # (G, N, 2)
    y, x_ = torch.arange(5).double() / 4 * 2 - 1, torch.arange(9).double() / 8 * 2 - 1
    queries = torch.stack([y[:, None].expand(5, 9), x_.expand(5, 9)], -1).reshape(-1, 2)
    bias = torch.zeros(4, 45, pos.shape[1], dtype=torch.float64)
    path = "stages.2.attns.1.rpe_table"
    for head in range(4):
        moved = (queries[:, None] - pos[head // 2][None]) * 4
        moved = moved.sign() * (moved.abs() + 1).log2() / 3
        hidden = (moved @ weights[f"{path}.0.weight"].T + weights[f"{path}.0.bias"]).relu()
        bias[head] = (hidden @ weights[f"{path}.2.weight"].T)[..., head % 2]
    sampled = grid.sample(x.unflatten(1, (2, -1))[0], pos).flatten(0, 1).T[None]  # (1, N, C)
    q, k, v = (
        t.reshape(1, -1, 4, 8).transpose(1, 2) for t in (layer.q(x.movedim(1, -1)), layer.k(sampled), layer.v(sampled))
    )
    weights_ = (q @ k.transpose(-1, -2) * 8**-0.5 + bias).softmax(-1)
    expected = layer.proj((weights_ @ v).transpose(1, 2).flatten(2)).transpose(1, 2).reshape(x.shape)
    torch.testing.assert_close(layer(x), expected)


def test_without_offsets_keys_are_averaged(second):
    """Released DAT++ then drops the position bias as well; the network of the offsets is in the file, unused."""
    model = changed(second, no_offs=[True] * 4)
    weights = {name: value for name, value in second.state_dict().items() if "rpe_table" not in name}
    load_released(model, weights)
    layer = model.stages[1].blocks[1].attn
    x = torch.randn(1, 16, 8, 12, dtype=torch.float64)
    keys = F.avg_pool2d(x, 4).flatten(2).transpose(1, 2)
    q, k, v = (
        t.reshape(1, -1, 2, 8).transpose(1, 2)
        for t in (layer.q(x.flatten(2).transpose(1, 2)), layer.k(keys), layer.v(keys))
    )
    expected = layer.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(layer(x).flatten(2).transpose(1, 2), expected)


def test_convolutional_blocks(second):
    """Block X: a depthwise convolution in attention's place, one norm, one residual connection."""
    spec = [["X", "D"], *second.config["stage_spec"][1:]]
    model = changed(second, stage_spec=spec, window_sizes=[5, 4, 4, 4], layer_scale_values=[0.5, -1, -1, -1])
    weights = second.state_dict()
    for name in [
        n for n in weights if n.startswith(("stages.0.attns.0.", "stages.0.layer_norms.0.", "stages.0.layer_norms.1."))
    ]:
        del weights[name]
    weights |= {
        "stages.0.attns.0.weight": torch.randn(8, 1, 5, 5).double(), "stages.0.attns.0.bias": torch.randn(8).double(),
        "stages.0.ln_cnvnxt.0.norm.weight": torch.randn(8).double(),
        "stages.0.ln_cnvnxt.0.norm.bias": torch.randn(8).double(),
    } | {f"stages.0.layer_scales.{i}.weight": torch.randn(8).double() for i in range(4)}  # fmt: skip
    load_released(model, weights)
    block = model.stages[0].blocks[0]
    x = torch.randn(1, 8, 9, 7, dtype=torch.float64)
    perceived = x + F.conv2d(x, weights["stages.0.local_perception_units.0.weight"],
                        weights["stages.0.local_perception_units.0.bias"], padding=1, groups=8)  # fmt: skip
    y = F.conv2d(perceived, weights["stages.0.attns.0.weight"], weights["stages.0.attns.0.bias"], padding=2, groups=8)
    y = F.layer_norm(y.permute(0, 2, 3, 1), (8,), weights["stages.0.ln_cnvnxt.0.norm.weight"],
                     weights["stages.0.ln_cnvnxt.0.norm.bias"]).permute(0, 3, 1, 2)  # fmt: skip
    torch.testing.assert_close(block(x), perceived + block.mlp(y))


@pytest.mark.parametrize(
    ("change", "key", "expected"),
    [
        ({"offset_range_factor": [2, -1, 0, -1]}, "bound", ("range", "clamp", "range", "clamp")),
        ({"offset_range_factor": [2, -1, 0, -1]}, "offset_range", (2.0, 2.0, 0.0, 2.0)),
        ({"ksizes": [8, 7, 5, 3]}, "offset_padding", ("none", "same", "same", "same")),
        ({"dwc_pes": [True] * 4, "fixed_pes": [True] * 4}, "position", ("dwconv",) * 4),
        ({"use_lpus": [True, False, True, False]}, "local_perception", (True, False, True, False)),
        ({"use_conv_patches": False}, "embed", "patch"),
        ({}, "small_map", "zeros"),
        ({}, "neighborhood_size", (7, 7, 7, 7)),
        ({"layer_scale_values": [1e-5, -1, 0, 1]}, "layer_scale", (1e-5, None, None, 1.0)),
        ({"use_checkpoint": True, "out_indices": [0, 1, 2, 3], "type": "DAT"}, "convention", "datpp"),
    ],
)
def test_keys_of_the_second_generation(second, change, key, expected):
    arguments = released_config.released_args(second.config | change)
    assert arguments[key] == expected
    DAT(**arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stage_spec": [["Q", "D"]] + [["N", "D"]] * 3}, "stage 1: unknown block 'Q' .QnA"),
        ({"stage_spec": [["C", "D"]] + [["N", "D"]] * 3}, "'C' .undefined in the released code"),
        ({"nat_ksizes": [6, 7, 7, 7]}, "kernel_size must be odd and positive, got 6"),
        ({"ksizes": [6, 7, 5, 3]}, "kernel size must be odd and positive, got 6"),
        ({"use_cmt_mlps": [True] * 4}, "use_cmt_mlps"),
        ({"patch_size": 8}, "stride 4 only, got 8"),
        ({"layer_scale_values": [1e-5]}, "layer_scale_values: expected 4 values"),
        ({"windowsizes": [7] * 4}, "unknown keys: windowsizes"),
    ],
)
def test_bad_second_generation_configurations_are_named(second, change, message):
    with pytest.raises(ConversionError, match=message):
        model_from_released(second.config | change)
