"""Make the data sets of the gallery's own models from images in COCO's format whose licences let them be shown.

    python benchmarks/make_gallery_data.py labels nuclei nuclei_labels
    python benchmarks/make_gallery_data.py crops bccd cells

`labels` writes a class for every pixel in ADE20K's layout, background or the kind of the object there; `crops` writes a
square around every object, a fifth wider than its box, into a folder for each class.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.transforms.v2.functional import to_pil_image

from deformvit.data.detection import open_coco


def labels(root: str, target: Path) -> None:
    for split, name in (("train", "training"), ("val", "validation")):
        images = open_coco(root, split)
        for kind in ("images", "annotations"):
            (target / kind / name).mkdir(parents=True, exist_ok=True)
        for i in range(len(images)):
            image, objects = images[i]
            classes = np.zeros(image.shape[1:], np.uint8)
            for label, mask in zip(objects["labels"].tolist(), objects["masks"], strict=True):
                classes[mask.numpy().astype(bool)] = label + 1
            stem = images.image_path(i).stem
            to_pil_image(image).save(target / "images" / name / f"{stem}.png")
            Image.fromarray(classes).save(target / "annotations" / name / f"{stem}.png")
    (target / "classes.txt").write_text("\n".join(["background", *images.classes]) + "\n")


def crops(root: str, target: Path) -> None:
    for split in ("train", "val"):
        images = open_coco(root, split, masks=False)
        for i in range(len(images)):
            image, objects = images[i]
            picture, stem = to_pil_image(image), images.image_path(i).stem
            for n, (label, box) in enumerate(zip(objects["labels"].tolist(), objects["boxes"].tolist(), strict=True)):
                side = min(round(1.2 * max(box[2] - box[0], box[3] - box[1])), *picture.size)
                left = min(max(round((box[0] + box[2] - side) / 2), 0), picture.width - side)
                top = min(max(round((box[1] + box[3] - side) / 2), 0), picture.height - side)
                folder = target / split / images.classes[label]
                folder.mkdir(parents=True, exist_ok=True)
                picture.crop((left, top, left + side, top + side)).save(folder / f"{stem}_{n}.png")


if __name__ == "__main__":
    {"labels": labels, "crops": crops}[sys.argv[1]](sys.argv[2], Path(sys.argv[3]))
