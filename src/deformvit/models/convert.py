"""Released checkpoints and configurations of the authors' code -> ours, exactly (LeapLabTHU/DAT, first generation).

The released names, position tables and index buffers are translated by one table of patterns; whatever does not belong
is an error that says so. The YAML's ``MODEL.DAT`` mapping becomes the arguments of :class:`~deformvit.models.dat.DAT`.
"""

from __future__ import annotations

import math
import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from deformvit.errors import UserError
from deformvit.layers import DeformableAttention, WindowAttention
from deformvit.layers.deformable import resize_fixed_bias
from deformvit.models import files
from deformvit.models.dat import DAT


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
            return checkpoint[key]  # type: ignore[no-any-return]
    return checkpoint


def is_official(state_dict: Mapping[str, Any]) -> bool:
    """Whether the weights carry the released code's names."""
    return any(name.startswith(("patch_proj.", "down_projs.")) or ".attns." in name for name in unwrap(state_dict))


def convert_official(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """Weights of a released checkpoint, raw or wrapped, under the names of :class:`~deformvit.models.dat.DAT`.

    Values are unchanged; 1 x 1 convolutions become linear layers, buffers that layers compute are left out.

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
    return converted


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


# ---- configurations -----------------------------------------------------------------------------------------------

_BLOCKS = {"L": "window", "S": "shifted", "D": "deformable", "P": "reduction"}
_REQUIRED = ("depths", "dims", "stage_spec", "heads")
_KNOWN = {
    "img_size", "patch_size", "num_classes", "expansion", "dim_stem", "dims", "depths", "stage_spec", "heads",
    "window_sizes", "groups", "use_pes", "dwc_pes", "strides", "sr_ratios", "offset_range_factor", "no_offs",
    "fixed_pes", "use_dwc_mlps", "use_conv_patches", "drop_rate", "attn_drop_rate", "drop_path_rate",
}  # fmt: skip
SECOND_GENERATION_KEYS = {"ksizes", "nat_ksizes", "ksize_qnas", "nqs", "qna_activation", "deform_groups", "use_lpus", "use_cmt_mlps",
             "layer_scale_values", "log_cpb", "ns_per_pt", "lower_lr_kvs", "use_checkpoint", "use_checkpoints"}  # fmt: skip


def _stage_position(index: int, use: bool, dwc: bool, fixed: bool) -> str:
    if not use:
        return "none"
    if dwc and fixed:
        raise ConversionError(f"stage {index + 1}: dwc_pes and fixed_pes are both set; choose one position embedding")
    return "dwconv" if dwc else "fixed" if fixed else "relative"


def official_args(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of :class:`~deformvit.models.dat.DAT` from the ``MODEL.DAT`` mapping of a released v1 YAML.

    Keys are taken in any case, as the YAML writes them; a whole YAML mapping is accepted too.

    Raises:
        ConversionError: unknown, missing or contradictory keys, named.
    """
    if isinstance(config.get("MODEL"), Mapping):
        config = config["MODEL"]
    if isinstance(config.get("DAT"), Mapping):
        config = config["DAT"]
    values = {str(key).lower(): value for key, value in config.items()}
    newer = sorted(values.keys() & SECOND_GENERATION_KEYS)
    if newer:
        raise ConversionError(f"this is a DAT++ (second generation) configuration, not yet supported: {', '.join(newer)}")
    unknown = sorted(values.keys() - _KNOWN)
    if unknown:
        raise ConversionError(f"unknown keys: {', '.join(unknown)}")
    missing = [key for key in _REQUIRED if key not in values]
    if missing:
        raise ConversionError(f"missing keys: {', '.join(missing)}")
    stages = len(values["depths"])

    def column(name: str, default: Any) -> list[Any]:
        column = list(values.get(name, [default] * stages))
        if len(column) != stages:
            raise ConversionError(f"{name}: expected {stages} values, one for each stage in depths, got {column}")
        return column

    blocks: list[list[str]] = []
    for i, (spec, depth) in enumerate(zip(column("stage_spec", None), values["depths"], strict=True)):
        if len(spec) != depth:
            raise ConversionError(f"stage {i + 1}: stage_spec has {len(spec)} blocks {spec}, depths says {depth}")
        strange = [letter for letter in spec if letter not in _BLOCKS]
        if strange:
            raise ConversionError(f"stage {i + 1}: unknown block {strange[0]!r}; expected one of {', '.join(_BLOCKS)}")
        blocks.append([_BLOCKS[letter] for letter in spec])
    dims = column("dims", None)
    stem = values.get("dim_stem", dims[0])
    for i, (low, high) in enumerate(zip(dims, dims[1:], strict=False)):
        if high != 2 * low:
            raise ConversionError(f"dims {dims}: stage {i + 2} must have twice the channels of stage {i + 1}")

    used = {name: [name in stage for stage in blocks] for name in _BLOCKS.values()}
    needs = {"groups": "deformable", "strides": "deformable", "sr_ratios": "reduction"}
    default = {"groups": 1, "strides": 1, "sr_ratios": 1}
    numbers: dict[str, list[int]] = {}
    for name, block in needs.items():
        numbers[name] = []
        for i, value in enumerate(column(name, -1)):
            if used[block][i] and (not isinstance(value, int) or value < 1):
                raise ConversionError(f"{name}: stage {i + 1} has {block} blocks and needs a positive value, got {value}")
            numbers[name].append(value if used[block][i] else default[name])

    ranges, bounds = [], []
    for i, factor in enumerate(column("offset_range_factor", 2)):
        # v1 bounds offsets only where the factor is positive, and squashes positions where it is negative.
        bound = "range" if factor > 0 or not used["deformable"][i] else "tanh" if factor < 0 else "none"
        bounds.append(bound)
        ranges.append(float(factor) if bound == "range" and factor > 0 else 2.0)
    flags = zip(column("use_pes", False), column("dwc_pes", False), column("fixed_pes", False), strict=True)
    conv_mlps = column("use_dwc_mlps", False)
    if len(set(conv_mlps)) > 1:
        raise ConversionError(f"use_dwc_mlps: expected the same value for all stages, got {conv_mlps}")
    return {
        "img_size": values.get("img_size", 224),
        "patch_size": values.get("patch_size", 4),
        "num_classes": values.get("num_classes", 1000),
        "depths": tuple(values["depths"]),
        "dims": tuple(dims),
        "num_heads": tuple(column("heads", None)),
        "blocks": tuple(tuple(stage) for stage in blocks),
        "window_size": tuple(column("window_sizes", 7)),
        "groups": tuple(numbers["groups"]),
        "stride": tuple(numbers["strides"]),
        "reduction": tuple(numbers["sr_ratios"]),
        "offset_kernel": _offset_kernels(stages),
        "offset_range": tuple(ranges),
        "bound": tuple(bounds),
        "offsets": tuple(not off for off in column("no_offs", False)),
        "position": tuple(_stage_position(i, *flag) for i, flag in enumerate(flags)),
        "embed": "conv" if values.get("use_conv_patches", False) else "patch",
        "conv_mlp": "plain" if conv_mlps[0] else "none",
        "expansion": float(values.get("expansion", 4)),
        "stem_dim": stem,
        "proj_drop_rate": float(values.get("drop_rate", 0.0)),
        "attn_drop_rate": float(values.get("attn_drop_rate", 0.0)),
        "drop_path_rate": float(values.get("drop_path_rate", 0.0)),
    }


def _offset_kernels(stages: int) -> tuple[int, ...]:
    """The released code chooses the offset network's kernel by the index of the stage."""
    kernels: Sequence[int] = (9, 7, 5, 3)
    if stages > len(kernels):
        raise ConversionError(f"depths: at most {len(kernels)} stages, got {stages}")
    return tuple(kernels[:stages])


def model_from_official(config: Mapping[str, Any]) -> DAT:
    """The model that a released YAML's ``MODEL.DAT`` mapping describes.

    Raises:
        ConversionError: unknown, missing or contradictory keys.
    """
    arguments = official_args(config)
    try:
        return DAT(**arguments)
    except (ValueError, TypeError) as error:
        raise ConversionError(f"contradictory configuration: {error}") from error


# ---- files --------------------------------------------------------------------------------------------------------


class _Inert(dict[Any, Any]):
    """Stands in for the configuration objects that training scripts pickle beside weights; does nothing."""

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        super().__init__()


_INERT = ("yacs.config.CfgNode", "argparse.Namespace")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The mapping in a ``.pth`` or ``.safetensors`` file, without executing what a pickle holds.

    Raises:
        ConversionError: the file is missing, empty, truncated, or holds objects other than tensors and plain values.
    """
    if not path.is_file():
        raise ConversionError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise ConversionError(f"{path}: the file is empty")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        with torch.serialization.safe_globals([(_Inert, name) for name in _INERT]):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise ConversionError(f"{path}: damaged, truncated or not a safetensors file ({error})") from error
    except pickle.UnpicklingError as error:
        if found := re.search(r"GLOBAL (\S+)", str(error)):
            raise ConversionError(
                f"{path}: holds {found[1]} besides weights; loading it could execute code, so the file is refused"
            ) from error
        raise ConversionError(f"{path}: damaged, truncated or not a checkpoint ({_first_line(error)})") from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise ConversionError(f"{path}: damaged, truncated or not a checkpoint ({_first_line(error)})") from error
    if not isinstance(checkpoint, Mapping):
        raise ConversionError(f"{path}: expected a mapping of weights, found {type(checkpoint).__name__}")
    return dict(checkpoint)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def convert_file(
    source: Path,
    target: Path,
    model: str = "",
    config: Path | None = None,
    classes: Path | None = None,
    dtype: str = "keep",
    image_args: Mapping[str, str] | None = None,
) -> str:
    """Convert a checkpoint file into a model file of :mod:`deformvit.models.files`; the command ``deformvit convert``.

    Args:
        source: a released ``.pth`` (or its weights as safetensors), or a model file of ours.
        target: the ``.safetensors`` file to write, atomically.
        model: registered name that the weights belong to. Position tables are interpolated to its nominal size.
        config: a released YAML instead of ``model``.
        classes: text file of class names, one a line; class numbers otherwise.
        dtype: "keep", "float32", "float16" or "bfloat16".
        image_args: ``img_size``, ``crop_pct`` and ``resize`` of the evaluation; by default the model's own.

    Returns:
        A line that says what was written.

    Raises:
        ConversionError: whatever does not fit, named with the file.
    """
    if target.suffix != ".safetensors":
        raise ConversionError(f"{target}: expected a name ending in .safetensors")
    weights = read_checkpoint(source)
    known = files.read(source)[1] if source.suffix == ".safetensors" else None
    info = _describe(source, weights, known, model, config)
    if classes is not None:
        info.classes = _read_classes(classes, len(info.classes))
    for name, text in (image_args or {}).items():
        if name not in ("img_size", "crop_pct", "resize"):
            raise ConversionError(f"image_args: unknown {name!r}; expected img_size, crop_pct or resize")
        setattr(info, name, type(getattr(info, name))(text))
    try:
        network = info.build()
    except (RuntimeError, ValueError, TypeError) as error:
        raise ConversionError(f"model {info.name!r}: {error}") from error
    try:
        load_official(network, weights)
    except ConversionError as error:
        raise ConversionError(f"{source}: {error}") from error
    stored = None if dtype == "keep" else getattr(torch, dtype)
    files.save(target, network, info, stored)
    count = sum(parameter.numel() for parameter in network.parameters())
    return f"{info.name}, {count:,} parameters, {len(info.classes)} classes"


def _describe(
    source: Path, weights: Mapping[str, Any], known: files.ModelInfo | None, model: str, config: Path | None
) -> files.ModelInfo:
    if model and config:
        raise ConversionError("model and config are both given; choose one")
    if config is not None:
        try:
            mapping = yaml.safe_load(config.read_text())
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConversionError(f"{config}: not readable as YAML ({_first_line(error)})") from error
        if not isinstance(mapping, Mapping):
            raise ConversionError(f"{config}: expected a mapping, found {type(mapping).__name__}")
        arguments = official_args(mapping)
        count = arguments.pop("num_classes")
        return files.ModelInfo("dat_tiny", arguments, _numbers(count), img_size=arguments["img_size"], resize="square")
    if not model:
        if known is None:
            raise ConversionError(f"{source}: does not say which model it belongs to; give model or config")
        return known
    if not timm.is_model(model):
        raise ConversionError(f"model {model!r} is not registered; ours are {', '.join(timm.list_models('dat*'))}")
    cfg = timm.get_pretrained_cfg(model)
    head = next((unwrap(weights)[key] for key in ("cls_head.weight", "head.fc.weight") if key in unwrap(weights)), None)
    count = head.shape[0] if isinstance(head, Tensor) else cfg.num_classes
    if known is not None and len(known.classes) == count:
        names = known.classes
    else:
        names = _numbers(count)
    return files.ModelInfo(
        model, {}, names, img_size=cfg.input_size[-1], crop_pct=cfg.crop_pct, resize="square", mean=cfg.mean, std=cfg.std
    )


def _numbers(count: int) -> list[str]:
    return [str(i) for i in range(count)]


def _read_classes(path: Path, count: int) -> list[str]:
    try:
        names = path.read_text().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConversionError(f"{path}: not readable as text ({_first_line(error)})") from error
    names = [name.strip() for name in names if name.strip()]
    if len(names) != count:
        raise ConversionError(f"{path}: {len(names)} class names, but the model has {count} classes")
    return names
