"""Weights of released checkpoints under the names of our models, with the same values.

Both generations of LeapLabTHU/DAT, and the backbones in checkpoints of DAT-Detection and DAT-Segmentation. One table of
patterns translates the names; a name that matches none is an error. Configurations are read in
``released/config.py``, files in :mod:`deformvit.models.released.files`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from deformvit.errors import UserError
from deformvit.layers import DeformableAttention, DeformedPoints, WindowAttention
from deformvit.layers.deformable import resize_table
from deformvit.layers.window import resize_window_table
from deformvit.models.blocks import ConvBlock
from deformvit.models.state import Shape, compare, shapes


class ConversionError(UserError):
    """A released checkpoint or configuration cannot be converted; the message says what is wrong with it."""


# ---- names --------------------------------------------------------------------------------------------------------

_BLOCK = r"stages\.(\d+)\.attns\.(\d+)\."
_NAMES: tuple[tuple[str, str], ...] = (  # released -> ours
    (r"patch_proj\.0\.(weight|bias)", r"stem.conv.\1"),
    (r"patch_proj\.1\.norm\.(weight|bias)", r"stem.norm.\1"),
    (r"patch_proj\.3\.(weight|bias)", r"stem.conv2.\1"),
    (r"patch_proj\.4\.norm\.(weight|bias)", r"stem.norm2.\1"),
    (r"stages\.0\.proj\.(weight|bias)", r"stages.0.downsample.\1"),
    (
        r"stages\.(\d+)\.mlps\.(\d+)\.(?:chunk\.)?linear([12])(?:\.0)?\.(weight|bias)",
        r"stages.\1.blocks.\2.mlp.fc\3.\4",
    ),
    (r"stages\.(\d+)\.mlps\.(\d+)\.dwc\.(weight|bias)", r"stages.\1.blocks.\2.mlp.conv.\3"),
    (_BLOCK + r"proj_qkv\.(weight|bias)", r"stages.\1.blocks.\2.attn.qkv.\3"),
    (_BLOCK + r"relative_position_bias_table", r"stages.\1.blocks.\2.attn.bias_table"),
    (_BLOCK + r"proj_out\.(weight|bias)", r"stages.\1.blocks.\2.attn.proj.\3"),
    (_BLOCK + r"proj_([qkv])\.(weight|bias)", r"stages.\1.blocks.\2.attn.\3.\4"),
    (_BLOCK + r"conv_offset\.([03])\.(weight|bias)", r"stages.\1.blocks.\2.attn.points.offset_net.\3.\4"),
    (_BLOCK + r"conv_offset\.1\.norm\.(weight|bias)", r"stages.\1.blocks.\2.attn.points.offset_net.1.\3"),
    (_BLOCK + r"rpe_table", r"stages.\1.blocks.\2.attn.bias_table"),
    (_BLOCK + r"rpe_table\.(weight|bias)", r"stages.\1.blocks.\2.attn.local_conv.\3"),
    (_BLOCK + r"rpe_table\.([02])\.(weight|bias)", r"stages.\1.blocks.\2.attn.bias_mlp.\3.\4"),
    (_BLOCK + r"rpb", r"stages.\1.blocks.\2.attn.bias_table"),
    (_BLOCK + r"(q|kv|qkv|proj)\.(weight|bias)", r"stages.\1.blocks.\2.attn.\3.\4"),
    (_BLOCK + r"proj_ds\.0\.(weight|bias)", r"stages.\1.blocks.\2.attn.reduce.0.\3"),
    (_BLOCK + r"proj_ds\.1\.norm\.(weight|bias)", r"stages.\1.blocks.\2.attn.reduce.1.\3"),
    (_BLOCK + r"(weight|bias)", r"stages.\1.blocks.\2.conv.\3"),
    (r"stages\.(\d+)\.ln_cnvnxt\.(\d+)\.norm\.(weight|bias)", r"stages.\1.blocks.\2.norm.\3"),
    (r"stages\.(\d+)\.local_perception_units\.(\d+)\.(weight|bias)", r"stages.\1.blocks.\2.local_perception.\3"),
    (r"norms\.(\d+)\.norm\.(weight|bias)", r"output_norms.\1.\2"),
    (r"cls_norm\.norm\.(weight|bias)", r"norm.\1"),
    (r"cls_head\.(weight|bias)", r"head.fc.\1"),
)
_BUFFERS = re.compile(_BLOCK + r"(relative_position_index|attn_mask|q_grid|reference)")  # computed by our layers
_LINEAR = re.compile(r"\.(attn\.(q|k|v|kv|proj)|mlp\.fc[12])\.weight$")  # 1 x 1 convolutions in the released code


def _rename(name: str) -> str | None:
    """Our name for a released one; None if there is none."""
    if match := re.fullmatch(r"stages\.(\d+)\.layer_norms\.(\d+)\.norm\.(weight|bias)", name):
        stage, index, kind = match.groups()
        return f"stages.{stage}.blocks.{int(index) // 2}.norm{int(index) % 2 + 1}.{kind}"
    if match := re.fullmatch(r"stages\.(\d+)\.layer_scales\.(\d+)\.(?:weight|gamma)", name):
        stage, index = match.groups()
        return f"stages.{stage}.blocks.{int(index) // 2}.scale{int(index) % 2 + 1}.gamma"
    if match := re.fullmatch(r"down_projs\.(\d+)\.(?:(0)|1\.norm)\.(weight|bias)", name):
        stage, conv, kind = match.groups()
        return f"stages.{int(stage) + 1}.downsample.{'conv' if conv else 'norm'}.{kind}"
    for pattern, replacement in _NAMES:
        if re.fullmatch(pattern, name):
            return re.sub(pattern, replacement, name)
    return None


def unwrap(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """The weights in ``{"model": ...}`` or ``{"state_dict": ...}``, or the mapping itself.

    Of a detector or segmenter, whose names of the backbone begin with ``backbone.``, the backbone only.

    Raises:
        ConversionError: a name that is not text.
    """
    weights = checkpoint
    for key in ("model", "state_dict"):
        if isinstance(checkpoint.get(key), Mapping):
            weights = checkpoint[key]
            break
    for name in weights:
        if not isinstance(name, str):
            raise ConversionError(f"expected names of weights, got {name!r}")
    prefix = "module." if any(name.startswith("module.backbone.") for name in weights) else ""
    backbone = f"{prefix}backbone."
    if any(name.startswith(backbone) for name in weights):
        return {name.removeprefix(backbone): value for name, value in weights.items() if name.startswith(backbone)}
    return weights


def is_released(state_dict: Mapping[str, Any]) -> bool:
    """Whether weights have the names of the released code."""
    return any(
        name.removeprefix("module.").startswith(("patch_proj.", "down_projs.")) or ".attns." in name
        for name in unwrap(state_dict)
    )


def has_output_norms(state_dict: Mapping[str, Any]) -> bool:
    """Whether weights, under either names, are the backbone of a detector or segmenter, with a norm for every stage."""
    return any(re.match(r"(module\.)?(norms|output_norms)\.", name) for name in unwrap(state_dict))


def convert_released(state_dict: Mapping[str, Any], model: nn.Module | None = None) -> dict[str, Tensor]:
    """Weights of a released checkpoint under the names of :class:`~deformvit.models.network.DAT`.

    Values are unchanged. Weights of 1 x 1 convolutions become those of linear layers; buffers are left out.

    Args:
        state_dict: the weights, or a checkpoint that holds them under "model" or "state_dict".
        model: if given, position tables are interpolated to its sizes, for example from 224 to 384.

    Raises:
        ConversionError: names that the released code does not have, or values that are not tensors.
    """
    weights = unwrap(state_dict)
    converted: dict[str, Tensor] = {}
    unknown = []
    for name, value in weights.items():
        name = name.removeprefix("module.")
        if _BUFFERS.fullmatch(name):
            continue
        ours = _rename(name)
        if ours is None:
            unknown.append(name)
            continue
        tensor = _tensor(name, value)
        converted[ours] = tensor[..., 0, 0] if _LINEAR.search(ours) and tensor.ndim == 4 else tensor
    if unknown:
        listed = ", ".join(unknown[:5]) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
        raise ConversionError(f"not the names of a released DAT checkpoint: {listed}")
    if not converted:
        raise ConversionError("the checkpoint holds no weights")
    return converted if model is None else resize_tables(converted, model)


def _tensor(name: str, value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise ConversionError(f"{name}: expected a tensor, got {type(value).__name__}")
    return value


# ---- position tables at another size ------------------------------------------------------------------------------


def resize_tables(state_dict: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Weights with position tables interpolated bicubically to the sizes of ``model``, as for fine-tuning at 384.

    Tables with another number of heads are left as they are; a comparison of shapes then names them.
    """
    resized = dict(state_dict)
    for path, module in model.named_modules():
        name = f"{path}.bias_table"
        table = resized.get(name)
        if table is None or not isinstance(module, (DeformableAttention, WindowAttention)) or module.bias_table is None:
            continue
        target = module.bias_table.shape
        if table.shape == target or table.ndim != len(target):
            continue
        if isinstance(module, WindowAttention):
            if table.shape[1] == target[1] and math.isqrt(table.shape[0]) ** 2 == table.shape[0]:
                resized[name] = resize_window_table(table, math.isqrt(target[0]))
        elif table.shape[0] != target[0]:
            continue
        elif module.position == "relative":
            old = [(side + 1) // 2 for side in table.shape[1:]]
            resized[name] = resize_table(table, module, old, module.table_size)
        else:  # "fixed": the sides of the old map are not stored; released models have square maps
            side = math.isqrt(table.shape[1])
            if side * side == table.shape[1]:
                resized[name] = resize_table(table, module, (side, side), module.table_size)
    return resized


def adapt(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Weights under released names or ours, with the names of ``model`` and tables of its sizes.

    Only the weights of the stages have to be those of the model: timm adapts stems and classifiers to other numbers of
    channels and classes, and the backbone of a detector has no classifier.

    Raises:
        ConversionError: weights of the stages are missing, unexpected or of other shapes.
    """
    weights = _for_model(state_dict, model)
    expected, given = (
        {name: shape for name, shape in shapes(tensors).items() if name.startswith("stages.")}
        for tensors in (model.state_dict(), weights)
    )
    _check_fit(expected, given)
    return weights


def load_released(model: nn.Module, state_dict: Mapping[str, Any]) -> None:
    """Load a released checkpoint into a model, strictly; position tables are interpolated to the model's sizes.

    Args:
        model: of the checkpoint's architecture.
        state_dict: the weights, or a checkpoint that holds them under "model" or "state_dict".

    Raises:
        ConversionError: missing or unexpected weights, or other shapes, with the first of each.
    """
    weights = _for_model(state_dict, model)
    _check_fit(shapes(model.state_dict()), shapes(weights))
    model.load_state_dict(weights)


def _for_model(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Weights under our names, position tables at the model's sizes, without weights that the model does not use."""
    if is_released(state_dict):
        weights = convert_released(state_dict)
    else:
        weights = {name: _tensor(name, value) for name, value in unwrap(state_dict).items()}
    unused = []  # released checkpoints store these
    for path, module in model.named_modules():
        if isinstance(module, DeformedPoints) and module.offset_net is None:  # offsets are off
            unused.append(f"{path}.offset_net.")
        elif isinstance(module, ConvBlock):  # has no layer scale
            unused += [f"{path}.scale1.", f"{path}.scale2."]
    return resize_tables({n: value for n, value in weights.items() if not n.startswith(tuple(unused))}, model)


def _check_fit(expected: Mapping[str, Shape], given: Mapping[str, Shape]) -> None:
    difference = compare(expected, given)
    if not difference:
        return
    hint = ""
    if any(name.startswith("output_norms.") for name in difference.unexpected):
        hint = ". It is the backbone of a detector or segmenter: build the model with output_norms=True, num_classes=0"
    raise ConversionError(f"the checkpoint is of another architecture: {difference}{hint}")
