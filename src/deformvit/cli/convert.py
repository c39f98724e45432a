"""``deformvit convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro


def run(
    source: tyro.conf.Positional[Path],
    target: tyro.conf.Positional[Path],
    /,
    model: Annotated[str, tyro.conf.arg(aliases=["-m"])] = "",
    config: Path | None = None,
    classes: Path | None = None,
    dtype: Literal["keep", "float32", "float16", "bfloat16"] = "keep",
    image_args: dict[str, str] = {},  # noqa: B006 - tyro reads it, nobody writes it
) -> None:
    """Turn a released checkpoint (or a model file of ours) into a safetensors model file; nothing in it is executed.

    Args:
        source: the released .pth, or a .safetensors file.
        target: the .safetensors file to write.
        model: the model that it belongs to, e.g. dat_tiny; not needed with `config` or for a model file of ours.
        config: the released YAML of the checkpoint, instead of `model`.
        classes: a text file with the name of a class on each line; numbers otherwise.
        dtype: what weights are stored as.
        image_args: what the model is fed: img_size, crop_pct, resize; by default as the model was published.
    """
    from deformvit.models.released.files import convert_file

    shape = convert_file(source, target, model, config, classes, dtype, image_args)
    print(f"{target}: {shape}")
