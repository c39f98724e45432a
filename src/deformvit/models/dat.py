"""DAT and DAT++ as registered with timm: default configurations and entry points of a few lines.

The model they configure is :class:`deformvit.models.network.DAT`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._builder import resolve_pretrained_cfg
from torch import Tensor, nn

from deformvit.errors import UserError
from deformvit.models.files import PACKAGED, open_model_file
from deformvit.models.network import DAT
from deformvit.models.released import weights as released_weights
from deformvit.models.released.files import read_checkpoint

RUNTIME = {"pretrained_cfg", "pretrained_cfg_overlay", "pretrained_model_args", "cache_dir", "features_only",
           "out_indices", "feature_cls", "feature_cfg"}  # fmt: skip


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """What timm applies to a file before loading it: released names become ours, position tables the model's size."""
    return released_weights.adapt(state_dict, model)


def _create(variant: str, pretrained: bool, model_args: dict[str, Any], kwargs: dict[str, Any]) -> Any:
    out_indices = kwargs.pop("out_indices", (0, 1, 2, 3))
    if pretrained:
        kwargs["pretrained_cfg"] = _with_weights(variant, kwargs)
        kwargs["pretrained_cfg_overlay"] = None
    build: Callable[..., Any] = build_model_with_cfg
    model = build(
        DAT, variant, pretrained,
        pretrained_filter_fn=checkpoint_filter_fn, pretrained_strict=True,
        feature_cfg={"out_indices": out_indices, "feature_cls": "getter"},
        **{**model_args, **kwargs},
    )  # fmt: skip
    model.pretrained_cfg.pop("state_dict", None)  # read already; not to be kept, nor written into a hub's config
    if "img_size" in kwargs and isinstance(model, DAT):
        model.pretrained_cfg["input_size"] = (model.in_chans, *model.img_size)
        model.pretrained_cfg["pool_size"] = None
    model.model_args = {name: value for name, value in kwargs.items() if name not in RUNTIME}
    return model


def _with_weights(variant: str, kwargs: Mapping[str, Any]) -> Any:
    """The configuration with the weights of its local file read, safely; or an error that says where to get them.

    Released files hold configuration objects beside the weights, at which timm's own reader stops.
    """
    cfg = resolve_pretrained_cfg(
        variant,
        pretrained_cfg=kwargs.get("pretrained_cfg"),
        pretrained_cfg_overlay=kwargs.get("pretrained_cfg_overlay"),
    )
    if cfg.state_dict or cfg.source in ("hf-hub", "local-dir"):
        return cfg
    if cfg.file:
        path = Path(cfg.file)
        cfg.state_dict = open_model_file(path).tensors() if path.suffix == ".safetensors" else read_checkpoint(path)
    elif not cfg.has_weights:
        where = cfg.origin_url or "https://github.com/LeapLabTHU/DAT"
        if variant == "dat":
            raise UserError("dat is DAT with the arguments given, which has no weights; use pretrained=False")
        name = f"{variant}.{cfg.tag}" if cfg.tag else variant
        raise UserError(
            f"the weights of {name} are not at an address that programs can fetch: get the file from {where} by hand, "
            "then pass pretrained_cfg_overlay=dict(file='the-file.pth'), or turn it into a model file with `deformvit "
            f"convert the-file.pth out.safetensors --model {variant}`. Use pretrained=False for random weights"
        )
    return cfg


def _cfg(**values: Any) -> dict[str, Any]:
    return {
        "input_size": (3, 224, 224), "pool_size": (7, 7), "num_classes": 1000, "fixed_input_size": False,
        "interpolation": "bicubic", "crop_pct": 0.875, "mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stem.conv", "classifier": "head.fc", "license": "apache-2.0", "paper_ids": "arXiv:2201.00520",
        "paper_name": "Vision Transformer with Deformable Attention",
        "origin_url": "https://github.com/LeapLabTHU/DAT", **values,
    }  # fmt: skip


def _plus_plus(**values: Any) -> dict[str, Any]:
    return _cfg(
        paper_ids="arXiv:2309.01430",
        paper_name="DAT++: Spatially Dynamic Vision Transformer with Deformable Attention",
        **values,
    )


# The authors' ImageNet weights (tag in1k) are shared from pages that programs cannot fetch; see docs/checkpoints.md.
default_cfgs = generate_default_cfgs(
    {
        "dat": _cfg(),
        "dat_tiny.in1k": _cfg(),
        "dat_small.in1k": _cfg(),
        "dat_base.in1k": _cfg(),
        "dat_base_384.in1k": _cfg(input_size=(3, 384, 384), pool_size=(12, 12), crop_pct=384 / 438),
        "datpp_tiny.in1k": _plus_plus(),
        "datpp_small.in1k": _plus_plus(),
        "datpp_base.in1k": _plus_plus(),
        "datpp_base_384.in1k": _plus_plus(input_size=(3, 384, 384), pool_size=(12, 12), crop_pct=1.0),
        "dat_nano.cifar10": _cfg(
            input_size=(3, 32, 32),
            pool_size=(2, 2),
            num_classes=10,
            crop_pct=1.0,
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.2470, 0.2435, 0.2616),
            file=str(PACKAGED / "dat_nano.cifar10.safetensors"),
            origin_url="",
        ),
    }
)


@register_model
def dat(pretrained: bool = False, **kwargs: Any) -> DAT:
    """DAT with the arguments given; the paper's DAT-T by default."""
    return _create("dat", pretrained, {}, kwargs)


@register_model
def dat_tiny(pretrained: bool = False, **kwargs: Any) -> DAT:
    """DAT-T: 28.3 M parameters, 4.6 G multiply-adds, 82.0 % top-1 (Table 2)."""
    return _create("dat_tiny", pretrained, {}, kwargs)


@register_model
def dat_small(pretrained: bool = False, **kwargs: Any) -> DAT:
    """DAT-S: 49.7 M parameters, 9.0 G multiply-adds, 83.7 % top-1 (Table 2)."""
    return _create("dat_small", pretrained, {"depths": (2, 2, 18, 2)}, kwargs)


_BASE: dict[str, Any] = {
    "depths": (2, 2, 18, 2), "dims": (128, 256, 512, 1024), "num_heads": (4, 8, 16, 32), "groups": (1, 2, 4, 8),
}  # fmt: skip


@register_model
def dat_base(pretrained: bool = False, **kwargs: Any) -> DAT:
    """DAT-B: 87.9 M parameters, 15.8 G multiply-adds, 84.0 % top-1 (Table 2)."""
    return _create("dat_base", pretrained, _BASE, kwargs)


@register_model
def dat_base_384(pretrained: bool = False, **kwargs: Any) -> DAT:
    """DAT-B fine-tuned at 384 x 384, windows of 12: 88.2 M parameters, 49.8 G multiply-adds, 84.8 % top-1 (Table 2)."""
    return _create("dat_base_384", pretrained, {**_BASE, "img_size": 384, "window_size": 12}, kwargs)


_PLUS_PLUS: dict[str, Any] = {
    "depths": (2, 4, 18, 2),
    "blocks": ("neighborhood deformable",) * 3 + ("deformable",),
    "stride": (8, 4, 2, 1),
    "bound": "clamp",
    "convention": "datpp",
    "embed": "stacked",
    "conv_mlp": "residual",
    "local_perception": True,
}


@register_model
def datpp_tiny(pretrained: bool = False, **kwargs: Any) -> DAT:
    """DAT-T++: 24.0 M parameters, 4.3 G multiply-adds, 83.9 % top-1 (arXiv 2309.01430)."""
    args = {"dims": (64, 128, 256, 512), "num_heads": (2, 4, 8, 16), "groups": (1, 2, 4, 8)}
    return _create("datpp_tiny", pretrained, {**_PLUS_PLUS, **args}, kwargs)


@register_model
def datpp_small(pretrained: bool = False, **kwargs: Any) -> DAT:
    """DAT-S++: 53.1 M parameters, 9.4 G multiply-adds, 84.6 % top-1 (arXiv 2309.01430)."""
    return _create("datpp_small", pretrained, _PLUS_PLUS, kwargs)


_PLUS_PLUS_BASE = {
    **_PLUS_PLUS, "dims": (128, 256, 512, 1024), "num_heads": (4, 8, 16, 32), "groups": (2, 4, 8, 16),
}  # fmt: skip


@register_model
def datpp_base(pretrained: bool = False, **kwargs: Any) -> DAT:
    """DAT-B++: 93.7 M parameters, 16.6 G multiply-adds, 84.9 % top-1 (arXiv 2309.01430)."""
    return _create("datpp_base", pretrained, _PLUS_PLUS_BASE, kwargs)


@register_model
def datpp_base_384(pretrained: bool = False, **kwargs: Any) -> DAT:
    """DAT-B++ fine-tuned at 384 x 384: 93.7 M parameters, 49.7 G multiply-adds, 85.9 % top-1 (arXiv 2309.01430).

    As released, its position tables stay those of 224 and are sampled at normalised displacements.
    """
    return _create("datpp_base_384", pretrained, _PLUS_PLUS_BASE, kwargs)


@register_model
def dat_nano(pretrained: bool = False, **kwargs: Any) -> DAT:
    """Ours, not the paper's: 2.1 M parameters, for images of 28 to 64 pixels and for CPUs.

    Patches of 2 pixels, deformable attention from stage 2 on (Table 7), the overlapping embeddings of Table 9, and
    DAT++'s local perception units and convolutional MLPs, which small data sets need.
    """
    model_args: dict[str, Any] = {
        "img_size": 32, "patch_size": 2, "depths": (1, 2, 4, 1), "dims": (32, 64, 128, 256), "num_heads": (2, 4, 4, 8),
        "blocks": ("window", "window deformable", "window deformable", "deformable"), "window_size": (8, 4, 4, 2),
        "groups": (1, 2, 2, 4), "offset_kernel": (5, 5, 3, 3), "embed": "conv", "conv_mlp": "residual",
        "local_perception": True,
    }  # fmt: skip
    return _create("dat_nano", pretrained, model_args, kwargs)
