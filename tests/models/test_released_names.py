"""Names and arguments of models that are converted with a released YAML file."""

from __future__ import annotations

import json

import pytest
import timm
import torch
import yaml

from deformvit import load_model, model_from_released
from deformvit.models.released.config import released_args
from deformvit.models.released.files import convert_file, load_checkpoint
from deformvit.models.released.names import registered_name
from deformvit.models.released.weights import ConversionError

DEEP = {"depths": [2, 2, 18, 2], "stage_spec": [["L", "S"], ["L", "S"], ["L", "D"] * 9, ["L", "D"]]}
BASE = DEEP | {"dim_stem": 128, "dims": [128, 256, 512, 1024], "heads": [4, 8, 16, 32], "groups": [-1, -1, 4, 8]}
BASE_DATPP = {"dim_stem": 128, "dims": [128, 256, 512, 1024], "heads": [4, 8, 16, 32], "groups": [2, 4, 8, 16]}
RELEASED = {  # golden configuration, changes, size of the evaluation -> the name
    "dat_tiny": ("dat_tiny", {}, 224),
    "dat_small": ("dat_tiny", DEEP, 224),
    "dat_base": ("dat_tiny", BASE, 224),
    "dat_base_384": ("dat_tiny", BASE | {"img_size": 384, "window_sizes": [12] * 4}, 384),
    "datpp_tiny": ("datpp_tiny", {}, 224),
    "datpp_base": ("datpp_tiny", BASE_DATPP, 224),
    "datpp_base_384": ("datpp_tiny", BASE_DATPP, 384),
}


@pytest.mark.parametrize("name", RELEASED)
def test_published_configurations_have_their_registered_names(golden, name):
    case, change, size = RELEASED[name]
    training = {"drop_path_rate": 0.3, "drop_rate": 0.1, "attn_drop_rate": 0.1, "num_classes": 7}
    args = released_args(golden(case).config | change | training)
    # The registered models of DAT++ have another rule for maps smaller than a neighbourhood.
    assert registered_name(args, size) == (name, {"small_map": "zeros"} if "datpp" in name else {})


@pytest.mark.parametrize(
    ("case", "change", "name", "args"),
    [
        ("dat_tiny", {"use_pes": [False] * 4}, "dat_tiny", {"position": ("none",) * 4}),
        ("dat_tiny", {"img_size": 256}, "dat_tiny", {"img_size": 256}),
        ("dat_tiny", {"groups": [7, 7, 3, 6], "strides": [5, 5, 1, 1]}, "dat_tiny", {}),  # stages without such blocks
        ("dat_tiny", BASE | {"img_size": 384}, "dat_base", {"img_size": 384}),
        ("dat_tiny", {"dim_stem": 64}, "dat_tiny", {"stem_dim": 64}),
        ("datpp_tiny", {"use_conv_patches": False}, "datpp_tiny", {"small_map": "zeros", "embed": "patch"}),
        (
            "datpp_tiny", {"nat_ksizes": [7, 5, 7, 3]},  # stage 4 has no neighbourhoods
            "datpp_tiny", {"small_map": "zeros", "neighborhood_size": (7, 5, 7, 7)},
        ),
    ],
)  # fmt: skip
def test_variants_of_a_registered_model_list_what_differs(golden, case, change, name, args):
    assert registered_name(released_args(golden(case).config | change)) == (name, args)


def test_other_architectures_are_called_dat(golden):
    config = golden("dat_tiny").config
    blocks = [["L", "S"]] * 2 + [["D"] * 6, ["L", "D"]]
    name, args = registered_name(released_args(config | {"stage_spec": blocks}))
    assert name == "dat"
    assert args.keys() == {"depths", "dims", "num_heads", "blocks"}
    assert args["blocks"][2] == ("deformable",) * 6
    name, args = registered_name(
        released_args(config | {"dims": [48, 96, 192, 384], "dim_stem": 48, "window_sizes": [8] * 4})
    )
    assert (name, args["dims"], args["window_size"]) == ("dat", (48, 96, 192, 384), (8,) * 4)


def test_models_of_fewer_stages(golden):
    config = golden("dat_micro").config
    three = {key: value[:3] if isinstance(value, list) else value for key, value in config.items()}
    name, args = registered_name(released_args(three))
    assert name == "dat"
    model = timm.create_model(name, num_classes=10, **args)
    expected = model_from_released(three)
    model.load_state_dict(expected.state_dict())
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(model.eval()(x), expected.eval()(x))


@pytest.mark.parametrize(
    "case",
    ["dat_micro", "dat_micro_stride2_tanh", "dat_micro_nobias", "dat_micro_dwc_conv", "datpp_micro",
     "datpp_micro_sra_window"],
)  # fmt: skip
def test_the_named_model_is_the_configured_one(golden, tmp_path, case):
    """Through a file: its name and arguments build the network that the YAML file describes."""
    case = golden(case)
    torch.save({"model": {k: v.float() for k, v in case.state_dict().items()}}, tmp_path / "micro.pth")
    (tmp_path / "micro.yaml").write_text(yaml.safe_dump({"MODEL": {"DAT": case.config}}))
    convert_file(tmp_path / "micro.pth", tmp_path / "micro.safetensors", config=tmp_path / "micro.yaml")
    model, description = load_model(tmp_path / "micro.safetensors")
    assert description.name == "dat"
    assert model.pretrained_cfg["architecture"] == "dat"
    model = timm.create_model("dat", num_classes=10, **json.loads(json.dumps(description.args))).double().eval()
    model.load_state_dict(load_model(tmp_path / "micro.safetensors")[0].state_dict())
    torch.testing.assert_close(model(case.image()), torch.from_numpy(case.outputs["logits"]), rtol=1e-4, atol=1e-5)


def test_a_published_file_converted_with_its_yaml_is_the_registered_model(golden, tmp_path):
    case = golden("datpp_tiny")
    torch.save({"model": {k: v.float() for k, v in case.state_dict().items()}}, tmp_path / "tiny.pth")
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({"MODEL": {"DAT": case.config}}))
    model, description = load_checkpoint(tmp_path / "tiny.pth", config=tmp_path / "tiny.yaml")
    assert (description.name, description.args) == ("datpp_tiny", {"small_map": "zeros"})
    assert (description.img_size, description.crop_pct, len(description.classes)) == (224, 0.875, 1000)
    registered = timm.create_model("datpp_tiny").eval()
    registered.load_state_dict(model.state_dict())
    x = torch.randn(1, 3, 224, 224)
    assert torch.equal(model.eval()(x), registered(x))


def test_backbones_are_named_with_their_norms(golden, tmp_path):
    case = golden("datpp_tiny")
    weights = {f"backbone.{k}": v.float() for k, v in case.state_dict().items() if not k.startswith("cls_")}
    for stage, dim in enumerate((64, 128, 256, 512)):
        weights |= {f"backbone.norms.{stage}.norm.{kind}": torch.ones(dim) for kind in ("weight", "bias")}
    torch.save({"state_dict": weights}, tmp_path / "detector.pth")
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({"MODEL": {"DAT": case.config}}))
    _, by_yaml = load_checkpoint(tmp_path / "detector.pth", config=tmp_path / "tiny.yaml")
    _, by_name = load_checkpoint(tmp_path / "detector.pth", model="datpp_tiny")
    assert by_yaml.args == {"small_map": "zeros", "output_norms": True}
    assert by_name.args == {"output_norms": True}
    assert by_yaml.classes == by_name.classes == []
    assert by_yaml.name == by_name.name == "datpp_tiny"


def test_classes_are_counted_in_the_weights(golden, tmp_path):
    weights = {k: v.float() for k, v in golden("dat_tiny").state_dict().items()}
    weights |= {"cls_head.weight": torch.ones(3, 768), "cls_head.bias": torch.ones(3)}
    torch.save(weights, tmp_path / "three.pth")
    _, description = load_checkpoint(tmp_path / "three.pth", model="dat_tiny")
    assert (description.name, description.args, description.classes) == ("dat_tiny", {}, ["0", "1", "2"])


def test_class_names_of_a_model_file_are_kept(golden, tmp_path):
    weights = {k: v.float() for k, v in golden("dat_tiny").state_dict().items()}
    weights |= {"cls_head.weight": torch.ones(2, 768), "cls_head.bias": torch.ones(2)}
    torch.save(weights, tmp_path / "two.pth")
    (tmp_path / "names.txt").write_text("cat\n\ndog \n")
    named = tmp_path / "named.safetensors"
    convert_file(tmp_path / "two.pth", named, model="dat_tiny", classes=tmp_path / "names.txt")
    for model in ("", "dat_tiny"):
        convert_file(named, tmp_path / "again.safetensors", model=model)
        assert load_model(tmp_path / "again.safetensors")[1].classes == ["cat", "dog"]


def test_two_sources_of_a_name_are_refused(golden, tmp_path):
    torch.save(golden("dat_micro").state_dict(), tmp_path / "micro.pth")
    with pytest.raises(ConversionError, match="--model and --config are both given"):
        load_checkpoint(tmp_path / "micro.pth", model="dat_tiny", config=tmp_path / "micro.yaml")
