"""Registered names of released configurations, so that a converted file names its model truthfully."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from typing import Any

import timm
import torch
from timm.layers import to_2tuple

from deformvit.models.blocks import StageSpec, stage_specs
from deformvit.models.network import DAT

FALLBACK = "dat"
"""Registered without a configuration: :class:`~deformvit.models.network.DAT` with the arguments given."""
_IDENTITY = ("depths", "dims", "num_heads", "blocks")
_OF_TRAINING = {"num_classes", "drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate"}
_DEFORMABLE = (
    "groups", "stride", "offset_kernel", "offset_padding", "offset_range", "bound", "offsets", "sampling", "position",
    "convention",
)  # fmt: skip
_USED_BY: dict[str, set[str]] = {
    "window_size": {"window", "shifted", "conv"}, "shifting": {"shifted"},
    "neighborhood_size": {"neighborhood"}, "small_map": {"neighborhood"},
    "reduction": {"reduction"}, "points": {"deformable_detr"}, **{name: {"deformable"} for name in _DEFORMABLE},
}  # fmt: skip
"""Blocks that use an argument; all blocks use the others."""
_DEFAULTS = {name: parameter.default for name, parameter in inspect.signature(DAT).parameters.items()}
_PER_STAGE = {field.name for field in fields(StageSpec)} & _DEFAULTS.keys()


def registered_name(arguments: Mapping[str, Any], img_size: int | None = None) -> tuple[str, dict[str, Any]]:
    """Registered name of a model, and the arguments in which it differs from what is registered under that name.

    It is the name with the same ``depths``, ``dims``, ``num_heads`` and ``blocks``; of several the one from which the
    fewest arguments differ; ``dat`` if there is none. The number of classes, dropout and stochastic depth do not count.

    Args:
        arguments: of :class:`~deformvit.models.network.DAT`, without defaults or with them.
        img_size: size at which the model is evaluated, which distinguishes names with equal arguments.
    """
    values = _DEFAULTS | dict(arguments)
    differences = {
        name: _difference(values, registered)
        for name, registered in _registered().items()
        if name != FALLBACK and _identity(registered) == _identity(values)
    }
    if differences:
        sizes = {name: timm.get_pretrained_cfg(name).input_size[-1] for name in differences}
        closest = min(differences, key=lambda name: (len(differences[name]), sizes[name] != img_size))
        return closest, differences[closest]
    stages = len(values["depths"])
    unfit = [name for name in _PER_STAGE if isinstance(_DEFAULTS[name], tuple) and len(_DEFAULTS[name]) != stages]
    given = {name: values[name] for name in (*_IDENTITY, *sorted(unfit))}
    return FALLBACK, given | _difference(values, _DEFAULTS | given)


@cache
def _registered() -> dict[str, dict[str, Any]]:
    """Arguments of all registered models, by name."""
    with torch.device("meta"):
        return {name: timm.create_model(name).arguments for name in timm.list_models(module="dat")}


def _identity(values: Mapping[str, Any]) -> tuple[Any, ...]:
    effective = _effective(values)
    return tuple(effective[name] for name in _IDENTITY)


def _difference(values: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """The ``values`` that have another effect than those of ``base``, whose blocks are the same."""
    ours, theirs = _effective(values), _effective(base)
    return {name: values[name] for name in values if name not in _OF_TRAINING and ours[name] != theirs[name]}


def _effective(values: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments in a form that can be compared: one value for each stage, None where no block uses it."""
    columns = {name: values[name] for name in _PER_STAGE - {"blocks"}}
    specs = stage_specs(values["depths"], values["blocks"], dim=values["dims"], **columns)
    effective = dict(values)
    for name in _PER_STAGE:
        used_by = _USED_BY.get(name)
        effective[name] = tuple(
            getattr(spec, name) if used_by is None or used_by & set(spec.blocks) else None for spec in specs
        )
    for name in _USED_BY.keys() - _PER_STAGE:
        effective[name] = values[name] if any(_USED_BY[name] & set(spec.blocks) for spec in specs) else None
    effective["depths"], effective["dims"] = tuple(values["depths"]), tuple(values["dims"])
    effective["img_size"] = to_2tuple(values["img_size"])
    effective["stem_dim"] = values["stem_dim"] or values["dims"][0]
    overlapping = values["stem_kernel"] or 2 * values["patch_size"] - 1
    effective["stem_kernel"] = overlapping if values["embed"] == "conv" else None
    return effective
