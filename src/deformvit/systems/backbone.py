"""Backbones for dense prediction: the maps of chosen stages, each with a norm of its own (section 3.3)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

from deformvit.errors import UserError
from deformvit.models import files
from deformvit.models.descriptions import is_ours
from deformvit.models.network import DAT
from deformvit.models.released import files as released_files
from deformvit.models.released import weights as released_weights
from deformvit.models.state import compare, shapes

STAGES = (1, 2, 3, 4)
HEADS = ("head.", "norm.", "output_norms.")
"""What a backbone takes from no classifier."""


class Backbone(nn.Module):
    """Normalised maps of chosen stages of any model that timm knows as a pyramid.

    Ours take images of any size. Others are given images padded to multiples of their largest stride at the bottom and
    right, and their maps are cut back to what belongs to the image.

    Args:
        name: registered with timm: ours, or any that ``features_only=True`` turns into a pyramid.
        args: further arguments of the model.
        stages: which of the last four levels, counted from 1.
        drop_path_rate: stochastic depth of the last block.
        checkpoint: classification weights to start from: a file, or a packaged name; the classifier is dropped.

    Raises:
        UserError: an unknown model or one that is no pyramid, arguments it does not take, weights that do not fit.
    """

    def __init__(
        self,
        name: str,
        args: dict[str, Any] | None = None,
        *,
        stages: Sequence[int] = STAGES,
        drop_path_rate: float = 0.0,
        checkpoint: str = "",
    ) -> None:
        super().__init__()
        if not timm.is_model(name):
            raise UserError(f"model.name: timm knows no model {name!r}")
        if not stages or list(stages) != sorted(set(stages)) or not set(stages) <= set(STAGES):
            raise UserError(f"head.stages must be some of {STAGES} in order, got {tuple(stages)}")
        self.name, self.args, self.stages = name, dict(args or {}), tuple(stages)
        extra: dict[str, Any] = {"drop_path_rate": drop_path_rate} if drop_path_rate else {}
        path = files.resolve(checkpoint) if checkpoint else None
        self.multiple = 1
        try:
            take = self._take_ours if is_ours(name) else self._take_timm
            take(name, extra, path)
        except UserError:
            raise
        except (ValueError, TypeError, RuntimeError, AttributeError, KeyError) as error:
            raise UserError(f"model.name {name!r} with {self.args} gives no backbone: {error}") from error

    def _take_ours(self, name: str, extra: dict[str, Any], path: Path | None) -> None:
        model = timm.create_model(name, num_classes=0, output_norms=True, **self.args, **extra)
        assert isinstance(model, DAT)
        if path is not None:
            _load(model, path)
        model.prune_intermediate_layers([stage - 1 for stage in self.stages])
        self.model: nn.Module = model
        self.norms: nn.ModuleList | None = None
        info = [model.feature_info[stage - 1] for stage in self.stages]
        self.channels = [level["num_chs"] for level in info]
        self.strides = [level["reduction"] for level in info]

    def _take_timm(self, name: str, extra: dict[str, Any], path: Path | None) -> None:
        if path is not None:
            extra = extra | {"pretrained": True, "pretrained_cfg_overlay": {"file": str(path)}}
        build = dict(features_only=True, out_indices=[stage - 5 for stage in self.stages], **self.args, **extra)
        try:
            self.model = timm.create_model(name, strict_img_size=False, **build)  # Swin and its kin: any size
        except TypeError:
            self.model = timm.create_model(name, **build)
        self.channels = list(self.model.feature_info.channels())  # type: ignore[union-attr, operator]
        self.strides = list(self.model.feature_info.reduction())  # type: ignore[union-attr, operator]
        self.norms = nn.ModuleList(LayerNorm2d(channels, eps=1e-5) for channels in self.channels)
        self.multiple = max(32, *self.strides)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) normalised images -> maps (B, C, ceil(H / stride), ceil(W / stride)), one for each stage."""
        height, width = images.shape[-2:]
        if isinstance(self.model, DAT):
            return self.model.forward_intermediates(
                images, indices=[stage - 1 for stage in self.stages], intermediates_only=True
            )  # type: ignore[return-value]
        images = F.pad(images, (0, -width % self.multiple, 0, -height % self.multiple))
        maps = []
        assert self.norms is not None
        for features, channels, stride, norm in zip(
            self.model(images), self.channels, self.strides, self.norms, strict=True
        ):
            if features.shape[1] != channels:  # timm's windowed models give (B, H, W, C)
                features = features.permute(0, 3, 1, 2)
            maps.append(norm(features[:, :, : -(-height // stride), : -(-width // stride)]))
        return maps

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters, besides norms and biases, that are not decayed."""
        inner: set[str] = getattr(self.model, "no_weight_decay", set)()
        tables = {n for n, _ in self.model.named_parameters() if "relative_position_bias_table" in n}
        return {f"model.{name}" for name in {*inner, *tables}}

    def group_matcher(self, prefix: str) -> dict[str, Any]:
        """timm's description of layer groups, for a system that has this backbone at ``prefix``; heads come last.

        Raises:
            UserError: a backbone that does not say what its layers are, as those of timm's feature pyramids.
        """
        inner = getattr(self.model, "group_matcher", None)
        if inner is None:
            raise UserError(f"optim.layer_decay: {self.name} as a pyramid does not say what its layers are")
        start = re.escape(f"{prefix}.model.")
        described = inner()
        blocks = [(f"^{start}{pattern.removeprefix('^')}", order) for pattern, order in described["blocks"]]
        stem = described["stem"].removeprefix("^")
        return {"stem": f"^{start}{stem}", "blocks": blocks}


def _load(model: DAT, path: Path) -> None:
    """Classification weights, ours or released, into a backbone: all but the classifier and the norms of outputs."""
    try:
        tensors = released_weights.adapt(released_files.read_checkpoint(path), model)
    except released_weights.ConversionError as error:
        raise UserError(f"{path}: not the weights of this backbone: {error}") from error
    expected = model.state_dict()
    difference = compare(shapes(expected, ignore=("output_norms.",)), shapes(tensors, ignore=HEADS))
    if difference:
        raise UserError(f"{path}: not the weights of this backbone: {difference}")
    model.load_state_dict({name: tensor for name, tensor in tensors.items() if name in expected}, strict=False)
