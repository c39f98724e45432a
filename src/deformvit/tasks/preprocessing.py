"""How a run prepares its images where its configuration leaves that open: as the weights that it starts from."""

from __future__ import annotations

import timm

from deformvit.config import IMAGENET_MEAN, IMAGENET_STD, BaseConfig, ClassificationConfig
from deformvit.models import files
from deformvit.models.descriptions import ClassifierDescription, Description


def fill_in(config: BaseConfig) -> None:
    """Set mean, std and, of a classifier, size and crop of a run where they are left open.

    They are those of ``model.checkpoint`` if it describes itself, else the model's usual size and crop with ImageNet's
    mean and std.
    """
    data, told = config.data, _description(config.model.checkpoint)
    data.mean = data.mean or (told.mean if told else IMAGENET_MEAN)
    data.std = data.std or (told.std if told else IMAGENET_STD)
    if not isinstance(config, ClassificationConfig):
        return
    told = told if isinstance(told, ClassifierDescription) else None
    usual = timm.get_pretrained_cfg(config.model.name) if timm.is_model(config.model.name) else None
    size = config.data.img_size or (told.img_size if told else usual.input_size[-1] if usual else 224)
    crop = told.crop_pct if told else usual.crop_pct if usual else 0.875
    config.data.img_size, config.data.crop_pct = size, config.data.crop_pct or crop
    config.data.resize = config.data.resize or (told.resize if told else "shorter")


def _description(checkpoint: str) -> Description | None:
    if not checkpoint or (path := files.resolve(checkpoint)).suffix != ".safetensors":
        return None
    return files.open_model_file(path).description
