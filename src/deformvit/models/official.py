"""Configurations of the authors' released code: the ``MODEL.DAT`` mapping of a YAML -> a model of ours (v1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from deformvit.models.convert import ConversionError
from deformvit.models.dat import DAT

_BLOCKS = {"L": "window", "S": "shifted", "D": "deformable", "P": "reduction"}
_KERNELS = (9, 7, 5, 3)  # of the offset networks: the released code chooses them by the index of the stage
_REQUIRED = ("depths", "dims", "stage_spec", "heads")
_KNOWN = {
    "img_size", "patch_size", "num_classes", "expansion", "dim_stem", "dims", "depths", "stage_spec", "heads",
    "window_sizes", "groups", "use_pes", "dwc_pes", "strides", "sr_ratios", "offset_range_factor", "no_offs",
    "fixed_pes", "ns_per_pts", "use_dwc_mlps", "use_conv_patches", "drop_rate", "attn_drop_rate", "drop_path_rate",
}  # fmt: skip
SECOND_GENERATION_KEYS = {
    "ksizes", "nat_ksizes", "ksize_qnas", "nqs", "qna_activation", "deform_groups", "use_lpus", "use_cmt_mlps",
    "layer_scale_values", "log_cpb", "ns_per_pt", "lower_lr_kvs", "use_checkpoint", "use_checkpoints",
}  # fmt: skip


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
        raise ConversionError(
            f"this is a DAT++ (second generation) configuration, not yet supported: {', '.join(newer)}"
        )
    unknown = sorted(values.keys() - _KNOWN)
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

    blocks: list[list[str]] = []
    for i, (spec, depth) in enumerate(zip(column("stage_spec", (list, tuple)), depths, strict=True)):
        if len(spec) != depth:
            raise ConversionError(f"stage {i + 1}: stage_spec has {len(spec)} blocks {spec}, depths says {depth}")
        strange = [letter for letter in spec if letter not in _BLOCKS]
        if strange:
            raise ConversionError(f"stage {i + 1}: unknown block {strange[0]!r}; expected one of {', '.join(_BLOCKS)}")
        blocks.append([_BLOCKS[letter] for letter in spec])
    dims = column("dims", int)
    stem = number("dim_stem", 96, int)
    for i, (low, high) in enumerate(pairwise(dims)):
        if high != 2 * low:
            raise ConversionError(f"dims {dims}: stage {i + 2} must have twice the channels of stage {i + 1}")

    used = {name: [name in stage for stage in blocks] for name in _BLOCKS.values()}
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

    ranges, bounds = [], []
    for i, factor in enumerate(column("offset_range_factor", (int, float), (1, 2, 3, 4))):
        # v1 bounds offsets only where the factor is positive, and squashes positions where it is negative.
        bound = "range" if factor > 0 or not used["deformable"][i] else "tanh" if factor < 0 else "none"
        bounds.append(bound)
        ranges.append(float(factor) if bound == "range" and factor > 0 else 2.0)
    off = (False,) * 4
    flags = zip(*(column(name, bool, off) for name in ("use_pes", "dwc_pes", "fixed_pes")), strict=True)
    conv = values.get("use_conv_patches", False)
    return {
        "img_size": number("img_size", 224, int),
        "patch_size": number("patch_size", 4, int),
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
        "offsets": tuple(not flag for flag in column("no_offs", bool, off)),
        "position": tuple(_stage_position(i, *flag) for i, flag in enumerate(flags)),
        "embed": "conv" if conv else "patch",
        "stem_kernel": 7 if conv else None,  # at every patch size
        "conv_mlp": tuple("plain" if on else "none" for on in column("use_dwc_mlps", bool, off)),
        "expansion": float(number("expansion", 4)),
        "stem_dim": stem,
        "proj_drop_rate": float(number("drop_rate", 0.0)),
        "attn_drop_rate": float(number("attn_drop_rate", 0.0)),
        "drop_path_rate": float(number("drop_path_rate", 0.0)),
    }


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
