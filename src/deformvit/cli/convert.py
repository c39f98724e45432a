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
    """Convert a released checkpoint to a model file; nothing in the checkpoint is executed.

    Args:
        source: the released .pth file, its weights as .safetensors, or a model file.
        target: the model file to write, ending in .safetensors.
        model: registered name of the model, such as dat_tiny; a model file knows its own.
        config: the released YAML file of the checkpoint, instead of `model`.
        classes: a text file with the name of a class on each line; by default classes are numbered.
        dtype: data type of the stored weights.
        image_args: preprocessing of the evaluation: img_size, crop_pct, resize; by default as published.
    """
    from deformvit.models.released.files import convert_file

    print(f"{target}: {convert_file(source, target, model, config, classes, dtype, image_args)}")
