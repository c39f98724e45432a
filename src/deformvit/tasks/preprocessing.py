"""How a run prepares its images where its configuration leaves that open: as the weights that it starts from."""

from __future__ import annotations

import timm

from deformvit.config import IMAGENET_MEAN, IMAGENET_STD, BaseConfig, ClassificationConfig
from deformvit.models.descriptions import ClassifierDescription, Description
from deformvit.tasks import fine_tuning


def fill_in(config: BaseConfig) -> Description | None:
    """Set mean, std and, of a classifier, model, size and crop of a run where they are left open.

    They are those of ``model.checkpoint`` if it describes itself, else the model's usual size and crop with ImageNet's
    mean and std.

    Returns:
        What the checkpoint says of itself.
    """
    if config.model.checkpoint == "none":  # nor are there layers to be spared
        config.model.checkpoint, config.optim.layer_decay = "", 0.0
    data, described = config.data, fine_tuning.described(config.model.checkpoint)
    data.mean = data.mean or (described.mean if described else IMAGENET_MEAN)
    data.std = data.std or (described.std if described else IMAGENET_STD)
    if not isinstance(config, ClassificationConfig):
        return described
    fine_tuning.fill_in_model(config, described)
    classifier = described if isinstance(described, ClassifierDescription) else None
    usual = timm.get_pretrained_cfg(config.model.name) if timm.is_model(config.model.name) else None
    size = config.data.img_size or (classifier.img_size if classifier else usual.input_size[-1] if usual else 224)
    crop = classifier.crop_pct if classifier else usual.crop_pct if usual else 0.875
    config.data.img_size, config.data.crop_pct = size, config.data.crop_pct or crop
    config.data.resize = config.data.resize or (classifier.resize if classifier else "shorter")
    return described
