"""What a run is: dataclasses whose every field is an option of the command line (docstrings are the help)."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from deformvit.errors import UserError


@dataclass
class ModelConfig:
    """The network."""

    name: str = "dat_tiny"
    """Any model registered with timm, e.g. dat_tiny, dat_nano or swin_tiny_patch4_window7_224."""
    checkpoint: str = ""
    """Weights to start from: a file, or a name with packaged weights such as dat_nano.cifar10."""
    drop_path_rate: float = 0.0
    """Stochastic depth of the last block."""
    args: dict[str, str] = field(default_factory=dict)
    """Further arguments of the model as Python literals, e.g. `position none offsets False`."""


@dataclass
class DataConfig:
    """Images and how they are loaded."""

    root: str = "sample"
    """A folder with train/ and val/ by class, a folder of train*.parquet and val*.parquet (or test*) files in the
    Hugging Face datasets' image format, or `sample` for the embedded Fashion-MNIST."""
    img_size: int = 224
    """Side of the square that the network sees."""
    batch_size: int = 128
    """Images per training step."""
    eval_batch_size: int = 256
    """Images per evaluation step."""
    workers: int = 1
    """Loader processes; 0 loads in the training process."""
    resize: Literal["shorter", "square"] = "shorter"
    """Evaluation resizes the shorter side, or both (the released code; it distorts) before the centre crop."""
    crop_pct: float = 0.875
    """Evaluation crops img_size from img_size / crop_pct."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean of the RGB channels, from 0 to 1."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Standard deviation of the RGB channels."""


@dataclass
class AugmentConfig:
    """Training augmentation, timm's parts; the defaults are the paper's."""

    crop: Literal["resized", "padded", "none"] = "resized"
    """RandomResizedCrop; a random crop of the image padded by an eighth of its side (small images); the whole image."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Area range of the resized crop."""
    hflip: float = 0.5
    """Probability of a horizontal flip."""
    color_jitter: float = 0.4
    """Strength of colour jitter; without effect when auto_augment is set, as in timm."""
    auto_augment: str = "rand-m9-mstd0.5-inc1"
    """timm's name of the automatic augmentation; empty for none."""
    random_erasing: float = 0.0
    """Probability of random erasing. The paper has none, the released code 0.25."""
    mixup: float = 0.8
    """Mixup alpha; 0 for none."""
    cutmix: float = 1.0
    """CutMix alpha; 0 for none."""
    smoothing: float = 0.1
    """Label smoothing."""


@dataclass
class OptimConfig:
    """AdamW with linear warm-up and cosine decay, stepped every iteration; the defaults are the paper's."""

    lr: float = 1e-3
    """Peak learning rate at a batch of lr_batch images."""
    lr_batch: int = 1024
    """The rate is scaled by batch_size / lr_batch; 0 leaves it as it is."""
    min_lr: float = 1e-7
    """Rate at the end."""
    warmup_lr: float = 1e-6
    """Rate at the start."""
    warmup_epochs: float = 20.0
    """Epochs of linear warm-up."""
    weight_decay: float = 0.05
    """Not applied to norms, biases and position tables."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's moments."""
    clip_grad: float = 5.0
    """Largest norm of the gradient; 0 for no clipping."""


@dataclass
class RunConfig:
    """Length, place and machine of the run."""

    epochs: int = 300
    """Passes over the training images."""
    output: Path = Path("runs/default")
    """Folder of checkpoints and logs."""
    resume: bool = False
    """Continue the run in `output` from its last checkpoint; starts anew where there is none."""
    seed: int = 0
    """Seed of weights, order and augmentation."""
    device: str = "auto"
    """A torch device; auto takes the GPU if there is one."""
    amp: Literal["none", "bf16", "fp16"] = "none"
    """Mixed precision."""
    eval_every: int = 1
    """Epochs between evaluations; the last epoch is always evaluated."""
    progress: bool = True
    """Draw a progress bar."""


@dataclass
class Config:
    """A training run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        positive = {
            "data.img_size": self.data.img_size, "data.batch_size": self.data.batch_size,
            "data.eval_batch_size": self.data.eval_batch_size, "run.epochs": self.run.epochs,
            "run.eval_every": self.run.eval_every, "data.crop_pct": self.data.crop_pct, "optim.lr": self.optim.lr,
        }  # fmt: skip
        for name, value in positive.items():
            if not value > 0:
                raise UserError(f"{name} must be positive, got {value}")
        if self.data.workers < 0:
            raise UserError(f"data.workers must not be negative, got {self.data.workers}")
        if self.data.crop_pct > 1:
            raise UserError(f"data.crop_pct must be at most 1, got {self.data.crop_pct}")


def as_dict(config: Config) -> dict[str, Any]:
    """Plain, JSON-able values."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))
