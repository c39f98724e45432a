"""Released files and configurations: what converts, and what is said about what does not."""

from __future__ import annotations

import argparse
import os
import pickle
import sys
from types import ModuleType

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from deformvit import DAT, UserError, convert_released, load, load_model, load_released, model_from_released
from deformvit.layers.deformable import resize_fixed_bias
from deformvit.models.released import config as released_config
from deformvit.models.released import weights as released_weights
from deformvit.models.released.files import convert_file
from deformvit.models.released.weights import ConversionError


@pytest.fixture
def case(golden):
    return golden("dat_micro")


# ---- weights ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [dict, lambda w: {"model": w}, lambda w: {"state_dict": w, "epoch": 3}])
def test_raw_and_wrapped(case, wrap):
    model = model_from_released(case.config)
    model.load_state_dict(convert_released(wrap(case.state_dict())))


def test_prefix_of_data_parallel_is_dropped(case):
    weights = {f"module.{name}": value for name, value in case.state_dict().items()}
    assert convert_released(weights).keys() == convert_released(case.state_dict()).keys()


def test_unknown_names_are_listed(case):
    with pytest.raises(ConversionError, match=r"not the names of a released DAT checkpoint: layers\.0\.weight"):
        convert_released(case.state_dict() | {"layers.0.weight": torch.zeros(1)})


@pytest.mark.parametrize("weights", [{}, {"model": {}}])
def test_checkpoint_without_weights_is_refused(weights):
    with pytest.raises(ConversionError, match="no weights"):
        convert_released(weights)


def test_names_that_are_not_text_are_refused(case):
    with pytest.raises(ConversionError, match="expected names of weights, got 7"):
        load_released(model_from_released(case.config), {"model": {7: torch.zeros(1)}})


def test_value_that_is_not_a_tensor_is_named(case):
    with pytest.raises(ConversionError, match=r"cls_head\.bias: expected a tensor, got str"):
        convert_released(case.state_dict() | {"cls_head.bias": "zeros"})
    model = model_from_released(case.config)
    with pytest.raises(ConversionError, match=r"head\.fc\.bias: expected a tensor, got list"):  # under our names
        load_released(model, model.state_dict() | {"head.fc.bias": [0.0] * 10})


def test_another_architecture_and_other_shapes_are_refused(case):
    model = model_from_released(case.config)
    weights = case.state_dict()
    with pytest.raises(ConversionError, match=r"1 missing weight \(head\.fc\.bias\)"):
        load_released(model, {name: value for name, value in weights.items() if name != "cls_head.bias"})
    with pytest.raises(
        ConversionError, match=r"1 weight of another shape \(head\.fc\.weight: \(3, 64\), expected \(10, 64\)\)"
    ):
        load_released(model, weights | {"cls_head.weight": torch.zeros(3, 64)})
    with pytest.raises(ConversionError, match="another architecture"):
        load_released(timm.create_model("dat_tiny"), weights)


# ---- tables at another size ---------------------------------------------------------------------------------------


def test_tables_are_interpolated_for_a_larger_model(case):
    small = model_from_released(case.config)
    load_released(small, case.state_dict())
    config = case.config | {"img_size": 96, "window_sizes": [6, 6, 6, 3]}
    large = model_from_released(config)
    load_released(large, case.state_dict())
    table, resized = small.stages[2].blocks[1].attn.bias_table, large.stages[2].blocks[1].attn.bias_table
    torch.testing.assert_close(resized, F.interpolate(table[None], size=(11, 11), mode="bicubic")[0])
    torch.testing.assert_close(resized[:, 5, 5], table[:, 3, 3])  # displacement zero
    window, resized = small.stages[0].blocks[0].attn.bias_table, large.stages[0].blocks[0].attn.bias_table
    expected = F.interpolate(window.T.reshape(1, -1, 7, 7), size=(11, 11), mode="bicubic")[0]
    torch.testing.assert_close(resized, expected.flatten(1).T)
    assert large(torch.randn(1, 3, 96, 96)).shape == (1, 10)


def test_fixed_bias_is_resized_over_queries_and_keys():
    height, width, stride = 4, 6, 2
    q_y = torch.linspace(0, 1, height)[:, None].expand(-1, width).flatten()
    k_x = torch.linspace(0, 1, width // stride)[None].expand(height // stride, -1).flatten()
    table = (q_y[:, None] + 10 * k_x)[None]  # rises with the query's row and the key's column alone
    grown = resize_fixed_bias(table, (height, width), (8, 12), stride)
    assert grown.shape == (1, 96, 24)
    as_maps = grown.reshape(8, 12, 4, 6)
    assert (as_maps.diff(dim=0) > -1e-4).all()
    assert as_maps.diff(dim=1).abs().max() < 1e-5
    assert as_maps.diff(dim=2).abs().max() < 1e-5
    same = DAT(
        img_size=64, position="fixed", dims=(8, 16, 32, 64), num_heads=(2, 2, 4, 4), groups=1, depths=(2, 2, 2, 2)
    )
    other = DAT(
        img_size=96, position="fixed", dims=(8, 16, 32, 64), num_heads=(2, 2, 4, 4), groups=1, depths=(2, 2, 2, 2)
    )
    other.load_state_dict(released_weights.adapt(same.state_dict(), other))
    tables = [model.stages[3].blocks[1].attn.bias_table for model in (same, other)]
    torch.testing.assert_close(tables[1], resize_fixed_bias(tables[0], (2, 2), (3, 3), 1))


# ---- configurations -----------------------------------------------------------------------------------------------


def test_whole_yaml_in_capitals(case):
    config = {"MODEL": {"TYPE": "DAT", "DAT": {key.upper(): value for key, value in case.config.items()}}}
    model = model_from_released(config)
    load_released(model, case.state_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"windowsizes": [7] * 4}, "unknown keys: windowsizes"),
        ({"depths": [2, 2, 3, 2]}, "stage 3: stage_spec has 2 blocks.*depths says 3"),
        ({"stage_spec": [["L", "Z"]] + [["L", "S"]] * 3}, "stage 1: unknown block 'Z'"),
        ({"heads": [1, 2, 4]}, "heads: expected 4 values"),
        ({"groups": [-1, -1, -1, 4]}, "groups: stage 3 has deformable blocks.*got -1"),
        ({"groups": [-1, -1, 3, 4]}, "num_heads=4, groups=3"),
        ({"strides": [-1, -1, 0, 1]}, "strides: stage 3.*got 0"),
        ({"dims": [8, 16, 32, 48]}, "stage 4 must have twice"),
        (
            {"use_pes": [True] * 4, "dwc_pes": [True] * 4, "fixed_pes": [True] * 4},
            "stage 1: dwc_pes and fixed_pes are both set",
        ),
        ({"depths": 2}, "depths: expected a list.*got 2"),
        ({"heads": None}, "heads: expected 4 values.*got None"),
        ({"window_sizes": 7}, "window_sizes: expected 4 values.*got 7"),
        ({"offset_range_factor": ["two"] * 4}, "offset_range_factor: 'two' is not of type number"),
        ({"use_conv_patches": "no"}, "use_conv_patches: expected true or false, got 'no'"),
        ({"use_pes": [1, 1, 1, 1]}, "use_pes: 1 is not of type bool"),
        ({"expansion": "four"}, "expansion: expected a number of at least 0, got 'four'"),
        ({"heads": [3, 2, 4, 8]}, "dim=8, num_heads=3"),
        ({"window_sizes": [0, 4, 4, 2]}, "window 0"),
    ],
)
def test_bad_configurations_are_named(case, change, message):
    with pytest.raises(ConversionError, match=message):
        model_from_released(case.config | change)


@pytest.mark.parametrize("key", ["depths", "dims", "stage_spec", "heads"])
def test_missing_keys_are_named(case, key):
    config = case.config
    del config[key]
    with pytest.raises(ConversionError, match=f"missing keys: {key}"):
        model_from_released(config)


def test_offset_factors_of_v1(case):
    """Positive: scaled tanh; negative: tanh of the position; zero: offsets as they come."""
    arguments = released_config.released_args(case.config | {"offset_range_factor": [-1, -1, 0, -1]})
    assert arguments["bound"] == ("range", "range", "none", "tanh")


# ---- files --------------------------------------------------------------------------------------------------------


@pytest.fixture
def released(case, tmp_path):
    """A released checkpoint with its YAML, as its training script would have written them."""
    import yaml

    torch.save({"model": {k: v.float() for k, v in case.state_dict().items()}, "epoch": 299}, tmp_path / "micro.pth")
    (tmp_path / "micro.yaml").write_text(yaml.safe_dump({"MODEL": {"DAT": case.config}}))
    return tmp_path


def test_file_converts_and_predicts_the_same(case, released):
    summary = convert_file(released / "micro.pth", released / "out.safetensors", config=released / "micro.yaml")
    assert "dat, 147,376 parameters, 10 classes" in summary
    model, info = load_model(str(released / "out.safetensors"))
    assert (info.img_size, len(info.classes)) == (64, 10)
    torch.testing.assert_close(
        model.double()(case.image()), torch.from_numpy(case.outputs["logits"]), rtol=1e-4, atol=1e-5
    )


def test_a_released_file_with_its_yaml_beside_it_is_loaded_as_it_is(case, released, tmp_path):
    predictor = load(released / "micro.pth", device="cpu")
    assert (predictor.task, len(predictor.classes)) == ("classification", 10)
    torch.testing.assert_close(
        predictor.model.double()(case.image()), torch.from_numpy(case.outputs["logits"]), rtol=1e-4, atol=1e-5
    )
    (released / "micro.yaml").rename(released / "other.yaml")
    with pytest.raises(UserError, match=r"micro\.pth: a PyTorch checkpoint .* beside it as micro\.yaml"):
        load(released / "micro.pth")


@pytest.mark.parametrize("name", ["dat_tiny", "datpp_tiny"])
def test_file_of_a_registered_model(tmp_path, golden, name):
    weights = {key: value.float() for key, value in golden(name).state_dict().items()}
    torch.save(weights, tmp_path / "tiny.pth")
    convert_file(tmp_path / "tiny.pth", tmp_path / "tiny.safetensors", model=name, dtype="float16")
    model, info = load_model(str(tmp_path / "tiny.safetensors"))
    assert (info.name, info.img_size, info.resize, len(info.classes)) == (name, 224, "square", 1000)
    assert next(model.parameters()).dtype == torch.float32
    assert torch.equal(model.head.fc.weight, weights["cls_head.weight"].half().float())
    with pytest.raises(ConversionError, match="another architecture"):
        convert_file(tmp_path / "tiny.pth", tmp_path / "small.safetensors", model="dat_small")
    assert not (tmp_path / "small.safetensors").exists()


def test_configuration_objects_beside_the_weights_are_ignored(case, released, monkeypatch):
    """The released training script stores its nested configuration, of a package that may not be installed."""

    class CfgNode(dict):
        pass

    CfgNode.__module__, CfgNode.__qualname__ = "yacs.config", "CfgNode"
    package = ModuleType("yacs.config")
    package.CfgNode = CfgNode
    monkeypatch.setitem(sys.modules, "yacs", ModuleType("yacs"))
    monkeypatch.setitem(sys.modules, "yacs.config", package)
    config = CfgNode(MODEL=CfgNode(TYPE="DAT", DAT=CfgNode(depths=[2, 2])), LR=0.1)
    config.frozen = True
    state = torch.load(released / "micro.pth", weights_only=True)
    torch.save(state | {"config": config, "args": argparse.Namespace(lr=0.1)}, released / "full.pth")
    convert_file(released / "full.pth", released / "out.safetensors", config=released / "micro.yaml")
    assert load_model(str(released / "out.safetensors"))[1].img_size == 64
    overlay = {"file": str(released / "full.pth"), "num_classes": 10}
    arguments = released_config.released_args(case.config)
    model = timm.create_model("dat_tiny", pretrained=True, pretrained_cfg_overlay=overlay, **arguments).eval()
    logits = model.double()(case.image())
    torch.testing.assert_close(logits, torch.from_numpy(case.outputs["logits"]), rtol=1e-4, atol=1e-5)
    assert "state_dict" not in model.pretrained_cfg


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_nothing_is_executed(released):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(released / "executed"),)

    torch.save({"model": {}, "payload": Evil()}, released / "evil.pth")
    with pytest.raises(ConversionError, match="could execute code"):
        convert_file(released / "evil.pth", released / "out.safetensors", model="dat_tiny")
    (released / "old.pth").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ConversionError, match=r"old\.pth: (damaged, truncated or not a checkpoint|holds)"):
        convert_file(released / "old.pth", released / "out.safetensors", model="dat_tiny")
    assert not (released / "executed").exists()
    assert not (released / "out.safetensors").exists()


@pytest.mark.parametrize("keep", [0, 10, 2000, -1000])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_truncated_files_are_refused(case, tmp_path, keep, suffix):
    source = tmp_path / f"complete{suffix}"
    weights = {name: value.float() for name, value in case.state_dict(buffers=False).items()}
    if suffix == ".pth":
        torch.save(weights, source)
    else:
        save_file(weights, source)
    cut = tmp_path / f"cut{suffix}"
    cut.write_bytes(source.read_bytes()[:keep])
    with pytest.raises(ConversionError, match=r"cut\.(pth|safetensors): (the file is empty|damaged, truncated)"):
        convert_file(cut, tmp_path / "out.safetensors", model="dat_tiny")


def test_files_of_the_old_format_truncated_anywhere_are_refused(tmp_path):
    complete = tmp_path / "complete.pth"
    torch.save({"cls_head.weight": torch.ones(2, 3)}, complete, _use_new_zipfile_serialization=False)
    data, cut = complete.read_bytes(), tmp_path / "cut.pth"
    for keep in range(1, len(data), 7):
        cut.write_bytes(data[:keep])
        with pytest.raises(ConversionError, match=r"cut\.pth: (damaged, truncated|holds)"):
            convert_file(cut, tmp_path / "out.safetensors", model="dat_tiny")


def test_image_args_are_checked(released):
    source, target, config = released / "micro.pth", released / "out.safetensors", released / "micro.yaml"
    convert_file(source, target, config=config, image_args={"crop_pct": "0.9", "resize": "shorter"})
    assert (load_model(str(target))[1].crop_pct, load_model(str(target))[1].resize) == (0.9, "shorter")
    wrong = {
        ("img_size", "abc"): "img_size: expected a number, got 'abc'",
        ("resize", "round"): "resize: expected one of shorter, square, got 'round'",
        ("crop_pct", "0"): "crop_pct: expected a number above 0 and at most 1, got 0",
        ("colour", "1"): "colour: unknown; expected img_size, crop_pct or resize",
    }
    for (name, value), message in wrong.items():
        with pytest.raises(ConversionError, match=f"--image-args {message}"):
            convert_file(source, target, config=config, image_args={name: value})


def test_unused_offset_network_is_dropped(case):
    model = model_from_released(case.config | {"no_offs": [True] * 4})
    load_released(model, case.state_dict())
    assert model.stages[2].blocks[1].attn.points.offset_net is None


def test_convolutional_stem_is_7_by_7_at_every_patch_size(case):
    model = model_from_released(case.config | {"use_conv_patches": True, "patch_size": 2, "ns_per_pts": [4] * 4})
    assert tuple(model.stem.conv.weight.shape) == (8, 3, 7, 7)
    assert model.stem(torch.randn(1, 3, 33, 50)).shape == (1, 8, 17, 25)


def test_stem_of_another_width_has_a_projection(case):
    model = model_from_released(case.config | {"dim_stem": 12})
    weights = case.state_dict() | {
        "patch_proj.0.weight": torch.randn(12, 3, 4, 4), "patch_proj.0.bias": torch.randn(12),
        "patch_proj.1.norm.weight": torch.randn(12), "patch_proj.1.norm.bias": torch.randn(12),
        "stages.0.proj.weight": torch.randn(8, 12, 1, 1), "stages.0.proj.bias": torch.randn(8),
    }  # fmt: skip
    load_released(model, weights)
    assert torch.equal(model.stages[0].downsample.weight, weights["stages.0.proj.weight"].float())


def test_convolutional_mlps_by_stage(golden):
    case = golden("dat_micro_dwc_conv")
    model = model_from_released(case.config | {"use_dwc_mlps": [True, False, False, True]})
    assert [stage.blocks[0].mlp.conv is not None for stage in model.stages] == [True, False, False, True]


def test_wrong_arguments_are_refused(released):
    source, target = released / "micro.pth", released / "out.safetensors"
    with pytest.raises(ConversionError, match="give --model, .* or --config"):
        convert_file(source, target)
    with pytest.raises(ConversionError, match=r"--model dat_huge: there is no such model; ours are dat, dat_base"):
        convert_file(source, target, model="dat_huge")
    with pytest.raises(ConversionError, match="no such file"):
        convert_file(released / "none.pth", target, model="dat_tiny")
    with pytest.raises(ConversionError, match=r"must end in \.safetensors"):
        convert_file(source, released / "out.pth", config=released / "micro.yaml")
    (released / "names.txt").write_text("cat\ndog\n")
    with pytest.raises(ConversionError, match="2 class names, but the model has 10"):
        convert_file(source, target, config=released / "micro.yaml", classes=released / "names.txt")
    for text, message in (
        ("[", "not readable as YAML"),
        ("text", "expected a mapping, got str"),
        ("MODEL: {DAT: {depth: [2]}}", "unknown keys: depth"),
        ("DATA: {IMG_SIZE: 10000}", "img_size: expected 1 to 8192, got 10000"),
    ):
        model = (released / "micro.yaml").read_text() if text.startswith("DATA") else ""
        (released / "wrong.yaml").write_text(model + text)
        with pytest.raises(ConversionError, match=rf"wrong\.yaml: .*{message}"):
            convert_file(source, target, config=released / "wrong.yaml")
    assert not target.exists()


def test_timm_loads_a_released_file_as_it_is(tmp_path, golden):
    weights = {name: value.float() for name, value in golden("dat_tiny").state_dict().items()}
    torch.save({"model": weights}, tmp_path / "tiny.pth")
    overlay = {"file": str(tmp_path / "tiny.pth")}
    model = timm.create_model("dat_tiny", pretrained=True, pretrained_cfg_overlay=overlay)
    assert torch.equal(model.head.fc.weight, weights["cls_head.weight"])
