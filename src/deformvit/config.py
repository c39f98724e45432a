"""What a run is: dataclasses whose every field is an option of the command line (docstrings are the help)."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from deformvit.errors import UserError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the RGB channels, from 0 to 1."""


@dataclass
class ModelConfig:
    """The network."""

    name: str = "dat_tiny"
    """Any model registered with timm, e.g. dat_tiny, dat_nano or swin_tiny_patch4_window7_224; empty for the model that
    the checkpoint says it is of."""
    checkpoint: str = ""
    """Weights to start from: a model file, the folder of a run, a released .pth, or packaged weights by name, such as
    dat_nano.cifar10; empty or `none` to train from scratch."""
    head: Literal["auto", "keep", "new"] = "auto"
    """The classifier of the checkpoint: `auto` keeps that of classes it knows by name, `keep` keeps it as it is, `new`
    starts with a new one. One of another number of classes is always new."""
    drop_path_rate: float = 0.0
    """Stochastic depth of the last block."""
    args: dict[str, str] = field(default_factory=dict)
    """Further arguments of the model as Python literals, e.g. `position none offsets False`."""


@dataclass
class LoaderConfig:
    """Images and how they are loaded: what every task has."""

    root: str = "sample"
    """A folder with train/ and val/ by class, a folder of class folders (see holdout), a folder of train*.parquet and
    val*.parquet (or test*) files in the Hugging Face datasets' image format, a folder or URL of WebDataset's tar
    shards, or `sample` for the embedded Fashion-MNIST."""
    batch_size: int = 128
    """Images of an optimiser step, shared by all processes and their accumulated batches."""
    workers: int = 1
    """Loader processes of each process; 0 loads in the training process."""
    max_unreadable: int = 50
    """Unreadable images of training, and of evaluation, that are skipped with a warning; one more stops the run."""
    mean: tuple[float, ...] = ()
    """Mean of the RGB channels, from 0 to 1; by default the checkpoint's, without one ImageNet's."""
    std: tuple[float, ...] = ()
    """Standard deviation of the RGB channels; by default as mean."""


@dataclass
class DataConfig(LoaderConfig):
    """Labelled images and how they are loaded."""

    cache: str = ""
    """Where tar shards from a URL are kept; by default ~/.cache/deformvit."""
    img_size: int = 0
    """Side of the square that the network sees; by default the checkpoint's, without one the model's usual side."""
    eval_batch_size: int = 256
    """Images per evaluation step."""
    resize: Literal["", "shorter", "square"] = ""
    """Evaluation resizes the shorter side, or both (the released code; it distorts) before the centre crop; by default
    as the checkpoint, without one the shorter side."""
    crop_pct: float = 0.0
    """Evaluation crops img_size from img_size / crop_pct; by default the checkpoint's, without one the model's."""
    holdout: float = 0.1
    """Share of each class that is held out for validation where an image folder has no validation split; 0 for none."""
    holdout_seed: int = 0
    """Which images are held out. Not run.seed, so that runs of other seeds are measured on the same images."""


@dataclass
class AugmentConfig:
    """Training augmentation, timm's parts; the defaults are the paper's."""

    crop: Literal["resized", "padded", "none"] = "resized"
    """RandomResizedCrop; a random crop of the image, resized as data.resize says and padded by an eighth of its side;
    the whole image, distorted into a square."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Area range of the resized crop."""
    hflip: float = 0.5
    """Probability of a horizontal flip."""
    color_jitter: float = 0.4
    """Brightness, contrast and saturation are each multiplied by a factor from 1 - this to 1 + this, in random order.
    Without effect with auto_augment, as in timm, except for a `3a` policy."""
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
    """AdamW with linear warm-up and decay, stepped every iteration; the defaults are the paper's on ImageNet."""

    lr: float = 1e-3
    """Peak learning rate at a batch of lr_batch images."""
    lr_batch: int = 1024
    """The rate is scaled by batch_size / lr_batch; 0 leaves it as it is."""
    schedule: Literal["cosine", "steps", "poly"] = "cosine"
    """After the warm-up: half a cosine; a tenth of the rate at each milestone; a polynomial down to min_lr."""
    milestones: tuple[int, ...] = ()
    """Epochs after which `steps` divides the rate by ten."""
    power: float = 1.0
    """Exponent of `poly`."""
    min_lr: float = 1e-7
    """Rate at the end of `cosine` and `poly`."""
    warmup_lr: float = 1e-6
    """Rate at the start."""
    warmup_epochs: float = 20.0
    """Epochs of linear warm-up."""
    warmup_steps: int = 0
    """Optimiser steps of linear warm-up, instead of warmup_epochs."""
    weight_decay: float = 0.05
    """Not applied to norms, biases and position tables."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's moments."""
    clip_grad: float = 5.0
    """Largest norm of the gradient; 0 for no clipping."""
    layer_decay: float = 0.0
    """Each layer's rate is that of the one behind it times this; 0 for one rate."""


@dataclass
class RunConfig:
    """Length, output folder and machine of the run."""

    epochs: int = 300
    """Passes over the training images; 0 chooses from the number of images."""
    steps: int = 0
    """Optimiser steps of the whole run, instead of epochs; the last epoch ends early."""
    output: Path = Path("runs/default")
    """Folder of checkpoints and logs."""
    resume: Path | None = None
    """Folder of a run, which goes on from its last checkpoint with its own configuration; without a checkpoint, it
    begins. `deformvit train --run.resume RUN` needs no recipe."""
    seed: int = 0
    """Seed of weights, order and augmentation."""
    device: str = "auto"
    """A torch device; auto takes the GPU if there is one."""
    amp: Literal["none", "bf16", "fp16"] = "none"
    """Mixed precision."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Under torchrun: every process has the whole model, or a shard of it (fully_shard; not with fp16)."""
    accumulate: int = 1
    """Batches that each process computes one after another for an optimiser step."""
    grad_checkpointing: bool = False
    """Recompute blocks in backward instead of storing their activations."""
    compile: bool = False
    """Train through torch.compile."""
    channels_last: bool = False
    """Channels last in memory."""
    ema: float = 0.0
    """Decay of an average of the weights, which is then evaluated and saved instead of them; 0 for none."""
    nonfinite: Literal["stop", "skip"] = "stop"
    """A non-finite loss or gradient stops the run, or the step is left out, at most 10 in a row."""
    save_minutes: float = 15.0
    """Minutes between checkpoints, 0 for none inside an epoch; one is written at the end of every epoch too."""
    keep: int = 2
    """How many of the last checkpoints are kept."""
    eval_every: int = 1
    """Epochs between evaluations; the last epoch is always evaluated."""
    progress: bool = True
    """Draw a progress bar."""
    dry_run: bool = False
    """Train nothing: print configuration, parameter groups, steps, and estimates of memory and time. Also --dry-run."""


@dataclass
class BaseConfig:
    """What the engine reads of any run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: LoaderConfig = field(default_factory=LoaderConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        for name, value in self._positive().items():
            if not value > 0:
                raise UserError(f"{name} must be positive, got {value}")
        not_negative = {
            "data.workers": self.data.workers, "data.max_unreadable": self.data.max_unreadable,
            "run.epochs": self.run.epochs, "run.steps": self.run.steps, "run.save_minutes": self.run.save_minutes,
        }  # fmt: skip
        for name, value in not_negative.items():
            if value < 0:
                raise UserError(f"{name} must not be negative, got {value}")
        for name, value in {"run.ema": self.run.ema, "optim.layer_decay": self.optim.layer_decay}.items():
            if not 0 <= value < 1:
                raise UserError(f"{name} must be at least 0 and below 1, got {value}")
        for name, channels in {"data.mean": self.data.mean, "data.std": self.data.std}.items():
            if len(channels) not in (0, 3) or not all(0 <= value < math.inf for value in channels):
                raise UserError(f"{name} must be three numbers that are not negative, got {channels}")
        if 0 in self.data.std:
            raise UserError(f"data.std must be positive, got {self.data.std}")
        milestones = self.optim.milestones
        increasing = all(before < after for before, after in pairwise((0, *milestones)))
        if self.optim.schedule == "steps" and not (milestones and increasing):
            raise UserError(f"optim.milestones must be increasing numbers of epochs from 1, got {milestones}")
        if self.run.parallel == "fsdp" and self.run.amp == "fp16":
            raise UserError("run.amp fp16 scales losses, which run.parallel fsdp does not support; use run.amp bf16")

    def _positive(self) -> dict[str, float]:
        return {
            "data.batch_size": self.data.batch_size,
            "run.eval_every": self.run.eval_every, "run.accumulate": self.run.accumulate, "run.keep": self.run.keep,
            "optim.lr": self.optim.lr,
        }  # fmt: skip


@dataclass
class ClassificationConfig(BaseConfig):
    """A classification run."""

    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.data.crop_pct <= 1:
            raise UserError(f"data.crop_pct must be from 0 to 1, got {self.data.crop_pct}")
        if self.data.img_size < 0:
            raise UserError(f"data.img_size must not be negative, got {self.data.img_size}")

    def _positive(self) -> dict[str, float]:
        return super()._positive() | {"data.eval_batch_size": self.data.eval_batch_size}


@dataclass
class DetectionDataConfig(LoaderConfig):
    """Images with boxes and masks in COCO's format, of any size."""

    root: str = "coco"
    """A folder with train.json, val.json, train/ and val/, or COCO's own layout: annotations/instances_train2017.json,
    train2017/ and so on."""
    batch_size: int = 16
    """Images of an optimiser step, shared by all processes and their accumulated batches."""
    min_size: tuple[int, ...] = ()
    """Training resizes the shorter side to one of these, drawn for each image; by default 0.8, 1 and 1.2 times
    eval_size."""
    max_size: int = 0
    """The longer side is never resized to more; by default twice the shorter side, at most 1333."""
    eval_size: int = 0
    """Shorter side in evaluation; by default as the training images are, enlarged up to twice where objects are small,
    at most 800."""
    crop: Literal["none", "branch", "square"] = "none"
    """`branch`: for half of the images (DETR's, the 3x schedules) resize, crop, resize again; `square`: crop crop_size
    from the resized image."""
    crop_size: int = 0
    """Side of the square crop."""
    hflip: float = 0.5
    """Probability of a horizontal flip."""
    vflip: float = 0.0
    """Probability of a vertical flip; for images without an up and down."""
    color: bool = False
    """torchvision's RandomPhotometricDistort: brightness times 0.875 to 1.125, contrast and saturation times 0.5 to
    1.5, hue turned by up to 18 degrees, channels in random order; each for half of the images."""


@dataclass
class SegmentationDataConfig(LoaderConfig):
    """Images with a class for every pixel, in ADE20K's layout."""

    root: str = "ade20k"
    """A folder with images/training, images/validation, annotations/training and annotations/validation (PNG), and
    names of the classes in classes.json, a list, or classes.txt, one on each line; without them they have numbers."""
    batch_size: int = 16
    """Images of an optimiser step, shared by all processes and their accumulated batches."""
    scale: tuple[int, int] = (0, 0)
    """Images are resized so that their shorter and longer sides fit into these; by default as the training images are,
    at least 128 and at most crop_size, or 512, for the shorter side."""
    ratio_range: tuple[float, float] = (0.5, 2.0)
    """Training draws a factor of the scale from this range."""
    crop_size: int = 0
    """Side of the random square crop in training; by default the shorter side of scale."""
    cat_max_ratio: float = 0.75
    """A crop with more than this part of one class is drawn again, up to ten times."""
    hflip: float = 0.5
    """Probability of a horizontal flip."""
    color: bool = True
    """mmsegmentation's PhotoMetricDistortion: up to 32 of 255 added to or taken from the brightness, contrast and
    saturation times 0.5 to 1.5, hue turned by up to 36 degrees; each for half of the images. Channels keep their
    order."""
    ignore_label: int = 255
    """Pixels that count neither in training nor in evaluation."""
    reduce_zero_label: bool = True
    """Label 0 means "other" and is ignored, the others count from 1 (ADE20K)."""
    eval_scales: tuple[float, ...] = (1.0,)
    """Evaluation averages predictions at these multiples of the scale; multi-scale is 0.5 0.75 1.0 1.25 1.5 1.75."""
    eval_flip: bool = False
    """Evaluation averages predictions of the mirrored image too."""
    window: int = 0
    """Evaluation slides a window of this side over the image; 0 takes the whole image at once."""
    window_stride: int = 0
    """Step of the window; by default two thirds of its side."""


@dataclass
class DetectorConfig:
    """What stands on the backbone of a detector; the defaults are the papers'."""

    system: Literal["retinanet", "mask_rcnn", "cascade_mask_rcnn"] = "mask_rcnn"
    """RetinaNet, Mask R-CNN or Cascade Mask R-CNN."""
    stages: tuple[int, ...] = ()
    """Backbone stages that feed the pyramid, counted from 1; by default 2-4 for RetinaNet and all for the others."""
    channels: int = 256
    """Channels of the feature pyramid."""
    anchor_scale: float = 0.0
    """Side of an anchor in cells of its level; by default 4 for RetinaNet, 8 for the others."""
    box_head: Literal["2fc", "4conv1fc"] = "2fc"
    """Two linear layers; or four convolutions and a linear layer (Cascade's in the paper)."""
    class_agnostic: bool = True
    """Cascade: one box for all classes instead of one for each; the paper's parameter counts are of the latter."""
    box_channels: int = 1024
    """Channels of the box head's linear layers."""
    rois: int = 512
    """Regions per image that the heads of Mask R-CNN train on, a quarter of them objects."""
    rpn_rois: int = 256
    """Anchors per image that the proposal network trains on."""
    proposals: int = 1000
    """Proposals per image after suppression."""
    detections: int = 100
    """Most objects per image."""
    score_threshold: float = 0.05
    """Weaker detections are dropped."""
    nms_threshold: float = 0.5
    """Of two boxes of a class that overlap more, the weaker is dropped."""


@dataclass
class DetectionConfig(BaseConfig):
    """A detection run."""

    data: DetectionDataConfig = field(default_factory=DetectionDataConfig)
    head: DetectorConfig = field(default_factory=DetectorConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in {"data.max_size": self.data.max_size, "data.eval_size": self.data.eval_size}.items():
            if value < 0:
                raise UserError(f"{name} must not be negative, got {value}")

    def _positive(self) -> dict[str, float]:
        data, head = self.data, self.head
        return super()._positive() | {
            "data.min_size": min(data.min_size, default=1), "head.channels": head.channels, "head.rois": head.rois,
            "head.detections": head.detections, "head.proposals": head.proposals, "head.rpn_rois": head.rpn_rois,
            **({"data.crop_size": data.crop_size} if data.crop == "square" else {}),
        }  # fmt: skip


@dataclass
class SegmenterConfig:
    """What stands on the backbone of a segmentation network; the defaults are the papers'."""

    system: Literal["semantic_fpn", "upernet"] = "upernet"
    """Semantic FPN or UperNet."""
    channels: int = 0
    """Channels of the decoder: by default 512 for UperNet, 256 (and half of it in the head) for Semantic FPN."""
    auxiliary: float = 0.4
    """Weight of UperNet's auxiliary head on stage 3; 0 for none."""
    dropout: float = 0.1
    """Dropout of whole channels before the classifier."""


@dataclass
class SegmentationConfig(BaseConfig):
    """A segmentation run."""

    data: SegmentationDataConfig = field(default_factory=SegmentationDataConfig)
    head: SegmenterConfig = field(default_factory=SegmenterConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.data.eval_scales or min(self.data.eval_scales) <= 0:
            raise UserError(f"data.eval_scales must be positive, got {self.data.eval_scales}")
        if not 0 < self.data.cat_max_ratio <= 1:
            raise UserError(f"data.cat_max_ratio must be above 0 and at most 1, got {self.data.cat_max_ratio}")
        if min(self.data.scale) < 0 or (0 in self.data.scale and any(self.data.scale)):
            raise UserError(f"data.scale must be two positive lengths, or 0 0 to choose, got {self.data.scale}")
        if self.data.crop_size < 0:
            raise UserError(f"data.crop_size must not be negative, got {self.data.crop_size}")


def options(config: BaseConfig) -> dict[str, Any]:
    """Every value by the name of its option, such as ``data.batch_size``."""
    sections = ((section.name, getattr(config, section.name)) for section in dataclasses.fields(config))
    return {
        f"{name}.{entry.name}": getattr(section, entry.name)
        for name, section in sections
        for entry in dataclasses.fields(section)
    }


def set_option(config: BaseConfig, name: str, value: Any) -> None:
    """Set a value by the name of its option."""
    section, _, entry = name.partition(".")
    setattr(getattr(config, section), entry, value)


def as_dict(config: BaseConfig) -> dict[str, Any]:
    """Plain, JSON-able values."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))
