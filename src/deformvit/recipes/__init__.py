"""Recipes: functions that return the configuration of a training run; ``deformvit train NAME`` runs one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from deformvit.config import (
    AugmentConfig,
    BaseConfig,
    ClassificationConfig,
    DataConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
)
from deformvit.recipes import systems

CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def imagenet(
    name: str, drop_path: float, warmup: float = 20.0, clip: float = 5.0, lr: float = 1e-3
) -> ClassificationConfig:
    """The paper's 300 epochs on ImageNet-1K (section 4.1); the learning rate scales with data.batch_size."""
    return ClassificationConfig(
        model=ModelConfig(name=name, drop_path_rate=drop_path),
        data=DataConfig(root="imagenet", batch_size=1024, workers=8, resize="square"),
        optim=OptimConfig(lr=lr, warmup_epochs=warmup, clip_grad=clip),
        run=RunConfig(amp="bf16", output=Path("runs") / name),
    )


def dat_tiny_imagenet() -> ClassificationConfig:
    """DAT-T, ImageNet-1K, 300 epochs (paper: 82.0 % top-1)."""
    return imagenet("dat_tiny", 0.2)


def dat_small_imagenet() -> ClassificationConfig:
    """DAT-S, ImageNet-1K, 300 epochs (paper: 83.7 % top-1)."""
    return imagenet("dat_small", 0.3)


def dat_base_imagenet() -> ClassificationConfig:
    """DAT-B, ImageNet-1K, 300 epochs (paper: 84.0 % top-1)."""
    return imagenet("dat_base", 0.5, warmup=50.0, clip=1.0, lr=8e-4)


def dat_base_384_finetune() -> ClassificationConfig:
    """DAT-B fine-tuned at 384, 30 epochs (paper: 84.8 % top-1); set model.checkpoint to a DAT-B trained at 224."""
    config = imagenet("dat_base_384", 0.5, warmup=0.0, clip=1.0, lr=4e-6)
    config.data.img_size = 384
    config.data.crop_pct = 1.0
    config.model.head = "keep"  # the same classes, whatever they are called
    config.optim.weight_decay = 1e-8
    config.run.epochs = 30
    return config


def datpp_tiny_imagenet() -> ClassificationConfig:
    """DAT-T++, ImageNet-1K, 300 epochs as DAT's (DAT++ paper: 83.9 % top-1)."""
    return imagenet("datpp_tiny", 0.2)


def datpp_small_imagenet() -> ClassificationConfig:
    """DAT-S++, ImageNet-1K, 300 epochs as DAT's (DAT++ paper: 84.6 % top-1)."""
    return imagenet("datpp_small", 0.4)


def datpp_base_imagenet() -> ClassificationConfig:
    """DAT-B++, ImageNet-1K, 300 epochs as DAT-B's (DAT++ paper: 84.9 % top-1)."""
    return imagenet("datpp_base", 0.7, warmup=50.0, clip=1.0, lr=8e-4)


def datpp_base_384_finetune() -> ClassificationConfig:
    """DAT-B++ fine-tuned at 384, 30 epochs as DAT-B's (DAT++ paper: 85.9 % top-1); set model.checkpoint to a DAT-B++
    trained at 224."""
    config = dat_base_384_finetune()
    config.model.name, config.model.drop_path_rate = "datpp_base_384", 0.6
    config.run.output = Path("runs/datpp_base_384")
    return config


def _nano(root: str, output: str, epochs: int) -> ClassificationConfig:
    return ClassificationConfig(
        model=ModelConfig(name="dat_nano"),
        data=DataConfig(root=root, img_size=32, workers=0, crop_pct=1.0, mean=CIFAR_MEAN, std=CIFAR_STD),
        augment=AugmentConfig(crop="padded", color_jitter=0.0, auto_augment="", mixup=0.0, cutmix=0.0),
        optim=OptimConfig(
            lr=2e-3, lr_batch=0, warmup_epochs=0.1 * epochs, weight_decay=0.05, clip_grad=1.0, min_lr=1e-5
        ),
        run=RunConfig(epochs=epochs, output=Path("runs") / output),
    )


def demo() -> ClassificationConfig:
    """dat_nano on the embedded Fashion-MNIST sample: about two minutes on two CPU cores."""
    config = _nano("sample", "demo", epochs=5)
    config.augment.crop = "none"  # garments are centred, and five epochs are too few to learn from shifted ones
    config.data.batch_size = 32
    config.optim.lr = 1e-3
    return config


def nano_cifar10(epochs: int = 20) -> ClassificationConfig:
    """Training of dat_nano, and of the models compared with it, on CIFAR-10; set data.root."""
    return _nano("cifar10", "dat_nano_cifar10", epochs)


def dat_nano_cifar10() -> ClassificationConfig:
    """dat_nano on CIFAR-10 on a CPU: the run that gave the packaged weights; set data.root."""
    return nano_cifar10()


def folder() -> ClassificationConfig:
    """Fine-tuning on your own folder of images; set data.root, and model.checkpoint to weights better than the packaged
    ones. Epochs follow the number of images."""
    return ClassificationConfig(
        model=ModelConfig(name="", checkpoint="dat_nano.cifar10"),
        data=DataConfig(root="images", batch_size=32, workers=2),
        augment=AugmentConfig(crop="padded", color_jitter=0.0, auto_augment="", mixup=0.0, cutmix=0.0),
        optim=OptimConfig(lr=1e-3, lr_batch=0, warmup_epochs=1.0, clip_grad=1.0, layer_decay=0.75, min_lr=1e-6),
        run=RunConfig(epochs=0, output=Path("runs/folder")),
    )


_RECIPES: tuple[Callable[[], BaseConfig], ...] = (
    demo, dat_nano_cifar10, folder, dat_tiny_imagenet, dat_small_imagenet, dat_base_imagenet, dat_base_384_finetune,
    datpp_tiny_imagenet, datpp_small_imagenet, datpp_base_imagenet, datpp_base_384_finetune,
)  # fmt: skip

ALL: dict[str, Callable[[], BaseConfig]] = {
    **{recipe.__name__.replace("_", "-"): recipe for recipe in _RECIPES},
    **systems.ALL,
}
"""Recipes by their names on the command line; a configuration is built when its recipe is called."""


def summaries() -> list[tuple[str, str]]:
    """Names and descriptions of all recipes; builds no configuration."""
    return [(name, " ".join((recipe.__doc__ or "").split())) for name, recipe in ALL.items()]
