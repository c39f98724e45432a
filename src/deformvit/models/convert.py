"""Weights of the authors' released checkpoints -> ours, exactly (LeapLabTHU/DAT, first generation).

Released names are translated by one table of patterns; whatever does not belong is an error that says so.
Configurations are read in :mod:`deformvit.models.official`, files in :mod:`deformvit.models.released`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from deformvit.errors import UserError
from deformvit.layers import DeformableAttention, DeformedPoints, WindowAttention
from deformvit.layers.deformable import resize_fixed_bias


class ConversionError(UserError):
    """A released checkpoint or configuration cannot be converted; the message says what was found and expected."""


# ---- names --------------------------------------------------------------------------------------------------------

_BLOCK = r"stages\.(\d+)\.attns\.(\d+)\."
_RULES: tuple[tuple[str, str], ...] = (
    (r"patch_proj\.0\.(weight|bias)", r"stem.conv.\1"),
    (r"patch_proj\.1\.norm\.(weight|bias)", r"stem.norm.\1"),
    (r"stages\.0\.proj\.(weight|bias)", r"stages.0.downsample.\1"),
    (r"stages\.(\d+)\.mlps\.(\d+)\.(?:chunk\.)?linear([12])\.(weight|bias)", r"stages.\1.blocks.\2.mlp.fc\3.\4"),
    (r"stages\.(\d+)\.mlps\.(\d+)\.dwc\.(weight|bias)", r"stages.\1.blocks.\2.mlp.conv.\3"),
    (_BLOCK + r"proj_qkv\.(weight|bias)", r"stages.\1.blocks.\2.attn.qkv.\3"),
    (_BLOCK + r"relative_position_bias_table", r"stages.\1.blocks.\2.attn.bias_table"),
    (_BLOCK + r"proj_out\.(weight|bias)", r"stages.\1.blocks.\2.attn.proj.\3"),
    (_BLOCK + r"proj_([qkv])\.(weight|bias)", r"stages.\1.blocks.\2.attn.\3.\4"),
    (_BLOCK + r"conv_offset\.([03])\.(weight|bias)", r"stages.\1.blocks.\2.attn.points.offset_net.\3.\4"),
    (_BLOCK + r"conv_offset\.1\.norm\.(weight|bias)", r"stages.\1.blocks.\2.attn.points.offset_net.1.\3"),
    (_BLOCK + r"rpe_table", r"stages.\1.blocks.\2.attn.bias_table"),
    (_BLOCK + r"rpe_table\.(weight|bias)", r"stages.\1.blocks.\2.attn.local_conv.\3"),
    (_BLOCK + r"(q|kv|proj)\.(weight|bias)", r"stages.\1.blocks.\2.attn.\3.\4"),
    (_BLOCK + r"proj_ds\.0\.(weight|bias)", r"stages.\1.blocks.\2.attn.reduce.0.\3"),
    (_BLOCK + r"proj_ds\.1\.norm\.(weight|bias)", r"stages.\1.blocks.\2.attn.reduce.1.\3"),
    (r"cls_norm\.norm\.(weight|bias)", r"norm.\1"),
    (r"cls_head\.(weight|bias)", r"head.fc.\1"),
)
_DERIVED = re.compile(_BLOCK + r"(relative_position_index|attn_mask)")  # buffers that the layers compute
_SECOND_GENERATION = re.compile(r"\.rpb$|local_perception_units|linear[12]\.0\.|layer_scales|\.qkv\.|patch_proj\.3")
_LINEAR = re.compile(r"\.(attn\.(q|k|v|kv|proj)|mlp\.fc[12])\.weight$")  # 1 x 1 convolutions there, linear layers here


def _rename(name: str) -> str | None:
    if found := re.fullmatch(r"stages\.(\d+)\.layer_norms\.(\d+)\.norm\.(weight|bias)", name):
        stage, index, kind = found.groups()
        return f"stages.{stage}.blocks.{int(index) // 2}.norm{int(index) % 2 + 1}.{kind}"
    if found := re.fullmatch(r"down_projs\.(\d+)\.(?:(0)|1\.norm)\.(weight|bias)", name):
        stage, conv, kind = found.groups()
        return f"stages.{int(stage) + 1}.downsample.{'conv' if conv else 'norm'}.{kind}"
    for pattern, replacement in _RULES:
        if re.fullmatch(pattern, name):
            return re.sub(pattern, replacement, name)
    return None


def unwrap(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """The weights inside ``{"model": ...}`` or ``{"state_dict": ...}``, or the mapping itself."""
    for key in ("model", "state_dict"):
        if isinstance(checkpoint.get(key), Mapping):
            return checkpoint[key]
    return checkpoint


def is_official(state_dict: Mapping[str, Any]) -> bool:
    """Whether the weights carry the released code's names."""
    return any(name.startswith(("patch_proj.", "down_projs.")) or ".attns." in name for name in unwrap(state_dict))


def convert_official(state_dict: Mapping[str, Any], model: nn.Module | None = None) -> dict[str, Tensor]:
    """Weights of a released checkpoint, raw or wrapped, under the names of :class:`~deformvit.models.dat.DAT`.

    Values are unchanged; 1 x 1 convolutions become linear layers, buffers that layers compute are left out.

    Args:
        model: if given, position tables are interpolated to its sizes, e.g. to 384 from 224.

    Raises:
        ConversionError: names that the released first-generation code does not have, or entries that are no tensors.
    """
    weights = unwrap(state_dict)
    converted: dict[str, Tensor] = {}
    unknown = []
    for name, value in weights.items():
        name = name.removeprefix("module.")
        if _DERIVED.fullmatch(name):
            continue
        new = _rename(name)
        if new is None:
            unknown.append(name)
            continue
        if not isinstance(value, Tensor):
            raise ConversionError(f"{name}: expected a tensor, found {type(value).__name__}")
        converted[new] = value[..., 0, 0] if _LINEAR.search(new) and value.ndim == 4 else value
    if unknown:
        listed = ", ".join(unknown[:5]) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
        if any(_SECOND_GENERATION.search(name) for name in unknown):
            raise ConversionError(f"this is a DAT++ (second generation) checkpoint, not yet supported: {listed}")
        raise ConversionError(f"not the names of a released DAT checkpoint: {listed}")
    if not converted:
        raise ConversionError("the checkpoint holds no weights")
    return converted if model is None else resize_tables(converted, model)


# ---- tables at another size ---------------------------------------------------------------------------------------


def _resize_window_table(table: Tensor, side: int) -> Tensor:
    old = math.isqrt(table.shape[0])
    image = table.float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    image = F.interpolate(image, size=(side, side), mode="bicubic", align_corners=False)
    return image.flatten(2)[0].transpose(0, 1).to(table.dtype)


def resize_tables(state_dict: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Position tables interpolated bicubically to the sizes of ``model``, as the authors fine-tune at 384 from 224.

    Tables of another number of heads stay as they are, for the strict loading to complain about.
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
                resized[name] = _resize_window_table(table, math.isqrt(target[0]))
        elif table.shape[0] != target[0]:
            continue
        elif module.position == "relative":
            image = F.interpolate(table[None].float(), size=target[1:], mode="bicubic", align_corners=False)
            resized[name] = image[0].to(table.dtype)
        else:  # "fixed": the old map's sides are not stored; released models are square
            side = math.isqrt(table.shape[1])
            if side * side == table.shape[1]:
                resized[name] = resize_fixed_bias(table, (side, side), module.table_size, module.stride)
    return resized


def adapt(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Weights under the released names or ours, made to load strictly into ``model`` (tables at its size)."""
    ours = convert_official(state_dict) if is_official(state_dict) else dict(unwrap(state_dict))
    for path, module in model.named_modules():
        if (
            isinstance(module, DeformedPoints) and module.offset_net is None
        ):  # the released code keeps an unused network
            ours = {name: value for name, value in ours.items() if not name.startswith(f"{path}.offset_net.")}
    return resize_tables(ours, model)


def load_official(model: nn.Module, state_dict: Mapping[str, Any]) -> None:
    """Load a released checkpoint strictly.

    Raises:
        ConversionError: another architecture or other shapes, with the first differences.
    """
    ours = adapt(state_dict, model)
    expected = model.state_dict()
    missing, extra = sorted(expected.keys() - ours.keys()), sorted(ours.keys() - expected.keys())
    wrong = [name for name in sorted(expected.keys() & ours.keys()) if expected[name].shape != ours[name].shape]
    problems = []
    if missing:
        problems.append(f"{len(missing)} weights of the model are missing ({missing[0]}, ...)")
    if extra:
        problems.append(f"{len(extra)} weights are not the model's ({extra[0]}, ...)")
    if wrong:
        name = wrong[0]
        problems.append(
            f"{len(wrong)} have other shapes ({name}: {tuple(ours[name].shape)} in the checkpoint, "
            f"{tuple(expected[name].shape)} in the model)"
        )
    if problems:
        raise ConversionError("the checkpoint is of another architecture: " + "; ".join(problems))
    model.load_state_dict(ours)
