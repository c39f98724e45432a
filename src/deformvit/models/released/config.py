"""Configurations of released checkpoints: the ``MODEL.DAT`` mapping of a YAML file (DAT or DAT++) -> our arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from deformvit.models.network import DAT
from deformvit.models.released.weights import ConversionError

_BLOCKS = {"L": "window", "S": "shifted", "D": "deformable", "P": "reduction"}
_BLOCKS_DATPP = {**_BLOCKS, "N": "neighborhood", "X": "conv"}
_UNSUPPORTED_BLOCKS = {
    "Q": "QnA, not used in any published model", "E": "Slide attention, another paper's",
    "C": "undefined in the released code", "A": "local deformable attention, not used in any published model",
}  # fmt: skip
_OFFSET_KERNELS = (9, 7, 5, 3)  # of stages 1 to 4 in the released code of DAT; the default of DAT++
_REQUIRED_KEYS = ("depths", "dims", "stage_spec", "heads")
_KEYS = {
    "img_size", "patch_size", "num_classes", "expansion", "dim_stem", "dims", "depths", "stage_spec", "heads",
    "window_sizes", "groups", "use_pes", "dwc_pes", "strides", "sr_ratios", "offset_range_factor", "no_offs",
    "fixed_pes", "ns_per_pts", "use_dwc_mlps", "use_conv_patches", "drop_rate", "attn_drop_rate", "drop_path_rate",
}  # fmt: skip
_IGNORED_KEYS_DATPP = {  # without effect on supported blocks; some exist in DAT-Detection and DAT-Segmentation only
    "heads_q", "ksize_qnas", "nqs", "qna_activation", "lower_lr_kvs", "deform_groups", "local_orf", "local_kv_sizes",
    "offset_pes", "out_indices", "use_checkpoint", "use_checkpoints", "init_cfg", "type",
}  # fmt: skip
_KEYS_DATPP = _IGNORED_KEYS_DATPP | {
    "ksizes", "nat_ksizes", "use_lpus", "layer_scale_values", "log_cpb", "use_cmt_mlps",
}  # fmt: skip


class _Yaml:
    """Checked values of a ``MODEL.DAT`` mapping; keys in lower case."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        for section in ("MODEL", "DAT"):
            if isinstance(config.get(section), Mapping):
                config = config[section]
        self.values = {str(key).lower(): value for key, value in config.items()}
        specs = self.values.get("stage_spec") or ()
        letters = {letter for stage in specs if isinstance(stage, list | tuple) for letter in map(str, stage)}
        letters_datpp = _BLOCKS_DATPP.keys() - _BLOCKS.keys()
        self.is_datpp = bool(self.values.keys() & _KEYS_DATPP or letters & letters_datpp)

        unknown = sorted(self.values.keys() - _KEYS - (_KEYS_DATPP if self.is_datpp else set()))
        if unknown:
            raise ConversionError(f"unknown keys: {', '.join(unknown)}")
        missing = [key for key in _REQUIRED_KEYS if key not in self.values]
        if missing:
            raise ConversionError(f"missing keys: {', '.join(missing)}")
        depths = self.values["depths"]
        if not isinstance(depths, list | tuple) or not depths or not all(type(d) is int and d > 0 for d in depths):
            raise ConversionError(f"depths: expected a list of the stages' numbers of blocks, got {depths!r}")
        if len(depths) > len(_OFFSET_KERNELS):
            raise ConversionError(f"depths: at most {len(_OFFSET_KERNELS)} stages, got {len(depths)}")
        self.depths = tuple(depths)

    def per_stage(
        self, key: str, kind: type | tuple[type, ...], default: Sequence[Any] = (None,) * 4
    ) -> tuple[Any, ...]:
        """One value of type ``kind`` for each stage; ``default`` has one for each of four."""
        stages = len(self.depths)
        column = self.values.get(key, default[:stages])
        if not isinstance(column, list | tuple) or len(column) != stages:
            raise ConversionError(f"{key}: expected {stages} values, one for each stage in depths, got {column!r}")
        for value in column:
            if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
                raise ConversionError(f"{key}: {value!r} is not of type {getattr(kind, '__name__', 'number')}")
        return tuple(column)

    def flags(self, key: str) -> tuple[bool, ...]:
        """One bool for each stage, False by default."""
        return self.per_stage(key, bool, (False,) * 4)

    def number(self, key: str, default: float, kind: type | tuple[type, ...] = (int, float)) -> Any:
        """One number that is not negative."""
        number: Any = self.values.get(key, default)
        is_number = isinstance(number, kind) and not isinstance(number, bool)
        if not is_number or number < 0:
            raise ConversionError(f"{key}: expected a number of at least 0, got {number!r}")
        return number

    def blocks(self) -> tuple[tuple[str, ...], ...]:
        """Names of the blocks of each stage, from the letters in ``stage_spec``."""
        names = _BLOCKS_DATPP if self.is_datpp else _BLOCKS
        blocks = []
        for i, (letters, depth) in enumerate(
            zip(self.per_stage("stage_spec", (list, tuple)), self.depths, strict=True)
        ):
            if len(letters) != depth:
                raise ConversionError(
                    f"stage {i + 1}: stage_spec has {len(letters)} blocks {letters}, depths says {depth}"
                )
            for letter in letters:
                if not isinstance(letter, str) or letter not in names:
                    reason = _UNSUPPORTED_BLOCKS.get(str(letter), "unknown") if self.is_datpp else "unknown"
                    raise ConversionError(
                        f"stage {i + 1}: unknown block {letter!r} ({reason}); expected one of {', '.join(names)}"
                    )
            blocks.append(tuple(names[letter] for letter in letters))
        return tuple(blocks)


def _bound(factor: float, is_datpp: bool) -> tuple[str, float]:
    """``bound`` and ``offset_range`` for a value of ``offset_range_factor``, whose sign chooses between bounds."""
    if is_datpp:
        return ("range", float(factor)) if factor >= 0 else ("clamp", 2.0)
    return ("range", float(factor)) if factor > 0 else ("tanh", 2.0) if factor < 0 else ("none", 2.0)


def _position(stage: int, use: bool, dwc: bool, fixed: bool, log_cpb: bool, is_datpp: bool) -> str:
    if not use:
        return "none"
    if dwc and fixed and not is_datpp:  # the released code of DAT++ lets dwc_pes win
        raise ConversionError(f"stage {stage}: dwc_pes and fixed_pes are both set; choose one position embedding")
    return "dwconv" if dwc else "fixed" if fixed else "log_cpb" if log_cpb else "relative"


def released_args(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of :class:`~deformvit.models.network.DAT` from the ``MODEL.DAT`` mapping of a released YAML file.

    A mapping with keys or blocks that only DAT++ has configures DAT++, any other one DAT. Defaults are those of the
    released constructors.

    Args:
        config: the mapping, with keys in any case, or the content of a complete YAML file.

    Raises:
        ConversionError: unknown, missing or contradictory keys, or values of another type, named.
    """
    yaml = _Yaml(config)
    blocks = yaml.blocks()
    dims = yaml.per_stage("dims", int)
    for i, (narrow, wide) in enumerate(pairwise(dims)):
        if wide != 2 * narrow:
            raise ConversionError(f"dims {list(dims)}: stage {i + 2} must have twice the channels of stage {i + 1}")

    def where_used(key: str, block: str, default: tuple[int, ...]) -> tuple[int, ...]:
        """Positive values in stages that have the block; 1 in others, for which the YAML files say -1."""
        values = []
        for i, (value, names) in enumerate(zip(yaml.per_stage(key, int, default), blocks, strict=True)):
            if block in names and value < 1:
                raise ConversionError(
                    f"{key}: stage {i + 1} has {block} blocks and needs a positive value, got {value}"
                )
            values.append(value if block in names else 1)
        return tuple(values)

    deformable = ["deformable" in names for names in blocks]
    factors = yaml.per_stage("offset_range_factor", (int, float), (1, 2, 3, 4))
    bounds = [_bound(f, yaml.is_datpp) if used else ("range", 2.0) for f, used in zip(factors, deformable, strict=True)]
    use, dwc, fixed, log_cpb = (yaml.flags(key) for key in ("use_pes", "dwc_pes", "fixed_pes", "log_cpb"))
    positions = [_position(i + 1, use[i], dwc[i], fixed[i], log_cpb[i], yaml.is_datpp) for i in range(len(yaml.depths))]
    no_offsets = yaml.flags("no_offs")
    patch_size = yaml.number("patch_size", 4, int)
    overlapping = yaml.values.get("use_conv_patches", False)
    if not isinstance(overlapping, bool):
        raise ConversionError(f"use_conv_patches: expected true or false, got {overlapping!r}")
    arguments = {
        "img_size": yaml.number("img_size", 224, int),
        "patch_size": patch_size,
        "num_classes": yaml.number("num_classes", 1000, int),
        "depths": yaml.depths,
        "dims": dims,
        "num_heads": yaml.per_stage("heads", int),
        "blocks": blocks,
        "window_size": yaml.per_stage("window_sizes", int, (7,) * 4),
        "groups": where_used("groups", "deformable", (-1, -1, 3, 6)),
        "stride": where_used("strides", "deformable", (-1,) * 4),
        "reduction": where_used("sr_ratios", "reduction", (8, 4, 2, 1)),
        "offset_kernel": _OFFSET_KERNELS[: len(blocks)],
        "offset_range": tuple(limit for _, limit in bounds),
        "bound": tuple(bound for bound, _ in bounds),
        "offsets": tuple(not off for off in no_offsets),
        "position": tuple(positions),
        "embed": "conv" if overlapping else "patch",
        "stem_kernel": 7 if overlapping else None,  # at every patch size
        "conv_mlp": tuple("plain" if on else "none" for on in yaml.flags("use_dwc_mlps")),
        "expansion": float(yaml.number("expansion", 4)),
        "stem_dim": yaml.number("dim_stem", 96, int),
        "proj_drop_rate": float(yaml.number("drop_rate", 0.0)),
        "attn_drop_rate": float(yaml.number("attn_drop_rate", 0.0)),
        "drop_path_rate": float(yaml.number("drop_path_rate", 0.0)),
    }
    if not yaml.is_datpp:
        return arguments

    if any(yaml.flags("use_cmt_mlps")):
        raise ConversionError("use_cmt_mlps: MLPs with batch norms, which no published model has, are not supported")
    if overlapping and patch_size != 4:
        raise ConversionError(f"patch_size: the released convolutional stem has stride 4 only, got {patch_size}")
    kernels = [
        k if used else 3 for k, used in zip(yaml.per_stage("ksizes", int, _OFFSET_KERNELS), deformable, strict=True)
    ]
    neighborhoods = zip(yaml.per_stage("nat_ksizes", int, (3,) * 4), blocks, strict=True)
    layer_scales = yaml.per_stage("layer_scale_values", (int, float), (-1,) * 4)
    return arguments | {
        "convention": "datpp",
        "neighborhood_size": tuple(k if "neighborhood" in names else 7 for k, names in neighborhoods),
        "small_map": "zeros",
        "offset_kernel": tuple(kernels),
        "offset_padding": tuple(
            "none" if kernel == stride else "same" for kernel, stride in zip(kernels, arguments["stride"], strict=True)
        ),
        # Without offsets, the released code averages keys and drops the position bias.
        "sampling": tuple("pooled" if off else "bilinear" for off in no_offsets),
        "position": tuple("none" if off else p for off, p in zip(no_offsets, positions, strict=True)),
        "embed": "stacked" if overlapping else "patch",
        "stem_kernel": None,
        "conv_mlp": tuple("residual" if on else "none" for on in yaml.flags("use_dwc_mlps")),
        "local_perception": yaml.flags("use_lpus"),
        "layer_scale": tuple(float(scale) if scale > 0 else None for scale in layer_scales),
    }


def model_from_released(config: Mapping[str, Any], **changes: Any) -> DAT:
    """The model that the ``MODEL.DAT`` mapping of a released YAML file describes, with fresh weights.

    Args:
        config: the mapping, or the content of a complete YAML file; also the ``backbone`` of a configuration of
            DAT-Detection or DAT-Segmentation.
        changes: arguments of :class:`~deformvit.models.network.DAT` that replace the configuration's, such as
            ``output_norms=True, num_classes=0`` for the backbone of a detector.

    Raises:
        ConversionError: unknown, missing or contradictory keys.
    """
    arguments = released_args(config) | changes
    try:
        return DAT(**arguments)
    except (ValueError, TypeError) as error:
        raise ConversionError(f"contradictory configuration: {error}") from error
