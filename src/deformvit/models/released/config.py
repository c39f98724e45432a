"""Configurations of the authors' released code: the ``MODEL.DAT`` mapping of a YAML (v1 or DAT++) -> our model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from deformvit.models.network import DAT
from deformvit.models.released.weights import ConversionError

_BLOCKS = {"L": "window", "S": "shifted", "D": "deformable", "P": "reduction"}
_BLOCKS_2 = {**_BLOCKS, "N": "neighborhood", "X": "conv"}
_OTHER_BLOCKS = {
    "Q": "QnA, not used in any published model", "E": "Slide attention, another paper's",
    "C": "undefined in the released code", "A": "local deformable attention, not used in any published model",
}  # fmt: skip
_KERNELS = (9, 7, 5, 3)  # of the offset networks; the first generation chooses them by the index of the stage
_REQUIRED = ("depths", "dims", "stage_spec", "heads")
_KNOWN = {
    "img_size", "patch_size", "num_classes", "expansion", "dim_stem", "dims", "depths", "stage_spec", "heads",
    "window_sizes", "groups", "use_pes", "dwc_pes", "strides", "sr_ratios", "offset_range_factor", "no_offs",
    "fixed_pes", "ns_per_pts", "use_dwc_mlps", "use_conv_patches", "drop_rate", "attn_drop_rate", "drop_path_rate",
}  # fmt: skip
_DECISIVE = {"ksizes", "nat_ksizes", "use_lpus", "layer_scale_values", "log_cpb"}
_WITHOUT_EFFECT = {  # on the blocks that are supported; some only exist in the dense-prediction repositories
    "heads_q", "ksize_qnas", "nqs", "qna_activation", "lower_lr_kvs", "deform_groups", "local_orf", "local_kv_sizes",
    "offset_pes", "out_indices", "use_checkpoint", "use_checkpoints", "init_cfg", "type",
}  # fmt: skip
SECOND_GENERATION_KEYS = _DECISIVE | _WITHOUT_EFFECT | {"use_cmt_mlps"}


def _position(index: int, use: bool, dwc: bool, fixed: bool, log_cpb: bool, second: bool) -> str:
    if not use:
        return "none"
    if dwc and fixed and not second:  # the second generation has an order of precedence
        raise ConversionError(f"stage {index + 1}: dwc_pes and fixed_pes are both set; choose one position embedding")
    return "dwconv" if dwc else "fixed" if fixed else "log_cpb" if log_cpb else "relative"


def is_second_generation(config: Mapping[str, Any]) -> bool:
    """Whether the mapping (keys in lower case) configures DAT++: it has keys or blocks that v1 has not."""
    letters = {
        letter for stage in config.get("stage_spec") or () if isinstance(stage, list | tuple) for letter in stage
    }
    return bool(config.keys() & SECOND_GENERATION_KEYS) or bool(letters & (_BLOCKS_2.keys() - _BLOCKS.keys()))


def released_args(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of :class:`~deformvit.models.network.DAT` from the ``MODEL.DAT`` mapping of a released YAML.

    A mapping with keys that only the second generation has is DAT++, any other v1.

    Keys are taken in any case, as the YAML writes them; a whole YAML mapping is accepted too.

    Raises:
        ConversionError: unknown, missing or contradictory keys, named.
    """
    if isinstance(config.get("MODEL"), Mapping):
        config = config["MODEL"]
    if isinstance(config.get("DAT"), Mapping):
        config = config["DAT"]
    values = {str(key).lower(): value for key, value in config.items()}
    second = is_second_generation(values)
    unknown = sorted(values.keys() - _KNOWN - (SECOND_GENERATION_KEYS if second else set()))
    if unknown:
        raise ConversionError(f"unknown keys: {', '.join(unknown)}")
    missing = [key for key in _REQUIRED if key not in values]
    if missing:
        raise ConversionError(f"missing keys: {', '.join(missing)}")
    depths = values["depths"]
    if not isinstance(depths, list | tuple) or not depths or not all(type(d) is int and d > 0 for d in depths):
        raise ConversionError(f"depths: expected a list of the stages' numbers of blocks, got {depths!r}")
    stages = len(depths)
    if stages > len(_KERNELS):
        raise ConversionError(f"depths: at most {len(_KERNELS)} stages, got {stages}")

    def column(name: str, kind: type | tuple[type, ...], default: Sequence[Any] = (None,) * 4) -> list[Any]:
        column = values.get(name, list(default[:stages]))
        if not isinstance(column, list | tuple) or len(column) != stages:
            raise ConversionError(f"{name}: expected {stages} values, one for each stage in depths, got {column!r}")
        wrong = [item for item in column if not isinstance(item, kind) or (kind is int and isinstance(item, bool))]
        if wrong:
            raise ConversionError(f"{name}: {wrong[0]!r} is no {getattr(kind, '__name__', 'number')}")
        return list(column)

    def number(name: str, default: float, kind: type | tuple[type, ...] = (int, float)) -> Any:
        number: Any = values.get(name, default)
        numeric = isinstance(number, kind) and not isinstance(number, bool)
        if not numeric or number < 0:
            raise ConversionError(f"{name}: expected a number, got {number!r}")
        return number

    known_blocks = _BLOCKS_2 if second else _BLOCKS
    blocks: list[list[str]] = []
    for i, (spec, depth) in enumerate(zip(column("stage_spec", (list, tuple)), depths, strict=True)):
        if len(spec) != depth:
            raise ConversionError(f"stage {i + 1}: stage_spec has {len(spec)} blocks {spec}, depths says {depth}")
        strange = [letter for letter in spec if letter not in known_blocks]
        if strange:
            what = _OTHER_BLOCKS.get(strange[0], "unknown") if second else "unknown"
            raise ConversionError(
                f"stage {i + 1}: unknown block {strange[0]!r} ({what}); expected one of {', '.join(known_blocks)}"
            )
        blocks.append([known_blocks[letter] for letter in spec])
    dims = column("dims", int)
    stem = number("dim_stem", 96, int)
    for i, (low, high) in enumerate(pairwise(dims)):
        if high != 2 * low:
            raise ConversionError(f"dims {dims}: stage {i + 2} must have twice the channels of stage {i + 1}")

    used = {name: [name in stage for stage in blocks] for name in _BLOCKS_2.values()}
    # Defaults are those of the released constructor; -1 marks a stage that does not use the value.
    needs: dict[str, tuple[str, tuple[int, ...]]] = {
        "groups": ("deformable", (-1, -1, 3, 6)), "strides": ("deformable", (-1,) * 4),
        "sr_ratios": ("reduction", (8, 4, 2, 1)),
    }  # fmt: skip
    numbers: dict[str, list[int]] = {}
    for name, (block, default) in needs.items():
        numbers[name] = []
        for i, value in enumerate(column(name, int, default)):
            if used[block][i] and value < 1:
                raise ConversionError(
                    f"{name}: stage {i + 1} has {block} blocks and needs a positive value, got {value}"
                )
            numbers[name].append(value if used[block][i] else 1)

    off, deformable = (False,) * 4, used["deformable"]
    ranges, bounds = [], []
    for i, factor in enumerate(column("offset_range_factor", (int, float), (1, 2, 3, 4))):
        if not deformable[i]:
            bound, limit = "range", 2.0
        elif second:  # tanh where the factor is not negative, else raw offsets and clamped positions
            bound, limit = ("range", float(factor)) if factor >= 0 else ("clamp", 2.0)
        else:  # v1 bounds offsets only where the factor is positive, and squashes positions where it is negative
            bound = "range" if factor > 0 else "tanh" if factor < 0 else "none"
            limit = float(factor) if factor > 0 else 2.0
        bounds.append(bound)
        ranges.append(limit)
    columns = (column(name, bool, off) for name in ("use_pes", "dwc_pes", "fixed_pes", "log_cpb"))
    flags: list[Any] = list(zip(*columns, strict=True))
    no_offsets = column("no_offs", bool, off)
    conv, patch_size = values.get("use_conv_patches", False), number("patch_size", 4, int)
    arguments = {
        "img_size": number("img_size", 224, int),
        "patch_size": patch_size,
        "num_classes": number("num_classes", 1000, int),
        "depths": tuple(depths),
        "dims": tuple(dims),
        "num_heads": tuple(column("heads", int)),
        "blocks": tuple(tuple(stage) for stage in blocks),
        "window_size": tuple(column("window_sizes", int, (7,) * 4)),
        "groups": tuple(numbers["groups"]),
        "stride": tuple(numbers["strides"]),
        "reduction": tuple(numbers["sr_ratios"]),
        "offset_kernel": _KERNELS[:stages],
        "offset_range": tuple(ranges),
        "bound": tuple(bounds),
        "offsets": tuple(not flag for flag in no_offsets),
        "position": tuple(_position(i, use, dwc, fixed, log, second) for i, (use, dwc, fixed, log) in enumerate(flags)),
        "embed": "conv" if conv else "patch",
        "stem_kernel": 7 if conv else None,  # at every patch size
        "conv_mlp": tuple("plain" if on else "none" for on in column("use_dwc_mlps", bool, off)),
        "expansion": float(number("expansion", 4)),
        "stem_dim": stem,
        "proj_drop_rate": float(number("drop_rate", 0.0)),
        "attn_drop_rate": float(number("attn_drop_rate", 0.0)),
        "drop_path_rate": float(number("drop_path_rate", 0.0)),
    }
    if not second:
        return arguments

    if any(column("use_cmt_mlps", bool, off)):
        raise ConversionError("use_cmt_mlps: MLPs with batch norms, which no published model has, are not supported")
    if conv and patch_size != 4:
        raise ConversionError(f"patch_size: the released convolutional stem has stride 4 only, got {patch_size}")
    kernels = [k if deformable[i] else 3 for i, k in enumerate(column("ksizes", int, _KERNELS))]
    side_by_side = [kernel == stride for kernel, stride in zip(kernels, arguments["stride"], strict=True)]
    # The released code drops the position bias with the offsets, and averages keys.
    positions = ["none" if off_ else p for off_, p in zip(no_offsets, arguments["position"], strict=True)]
    scales = column("layer_scale_values", (int, float), (-1,) * 4)
    return arguments | {
        "convention": "datpp",
        "neighborhood_size": tuple(
            k if used["neighborhood"][i] else 7 for i, k in enumerate(column("nat_ksizes", int, (3,) * 4))
        ),
        "small_map": "zeros",
        "offset_kernel": tuple(kernels),
        "offset_padding": tuple("none" if side else "same" for side in side_by_side),
        "sampling": tuple("pooled" if off_ else "bilinear" for off_ in no_offsets),
        "position": tuple(positions),
        "embed": "stacked" if conv else "patch",
        "stem_kernel": None,
        "conv_mlp": tuple("residual" if on else "none" for on in column("use_dwc_mlps", bool, off)),
        "local_perception": tuple(column("use_lpus", bool, off)),
        "layer_scale": tuple(float(scale) if scale > 0 else None for scale in scales),
    }


def model_from_released(config: Mapping[str, Any], **changes: Any) -> DAT:
    """The model that a released YAML's ``MODEL.DAT`` mapping describes.

    Args:
        config: the mapping, or a whole YAML; the ``backbone`` of a DAT-Detection or DAT-Segmentation configuration too.
        changes: arguments of :class:`~deformvit.models.network.DAT` to set otherwise, such as ``output_norms=True,
            num_classes=0`` for the backbone of a detector.

    Raises:
        ConversionError: unknown, missing or contradictory keys.
    """
    arguments = released_args(config) | changes
    try:
        return DAT(**arguments)
    except (ValueError, TypeError) as error:
        raise ConversionError(f"contradictory configuration: {error}") from error
