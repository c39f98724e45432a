"""Models as Hugging Face hub repositories: a folder that timm and transformers load, or its upload."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from timm.models._hub import save_config_for_hf
from torch import nn

from deformvit.errors import UserError
from deformvit.models.dat import RUNTIME
from deformvit.storage import write_atomically

CARD = """---
library_name: timm
license: {license}
tags:
- image-classification
- timm
- deformvit
---
# {name}

`{name}` of the Python package deformvit, Vision Transformer with Deformable Attention.

```python
import deformvit, timm  # deformvit registers the architecture

model = timm.create_model("hf-hub:{repository}", pretrained=True)
```
"""


def save_for_hub(
    model: nn.Module,
    folder: Path | str,
    *,
    classes: Sequence[str] = (),
    repository: str = "user/name",
    config: dict[str, Any] | None = None,
) -> Path:
    """Write a model as a hub repository: ``config.json``, ``model.safetensors``, ``README.md``.

    :func:`deformvit.load` builds it again, and after ``import deformvit`` so do transformers' TimmWrapper and
    ``timm.create_model("local-dir:FOLDER", pretrained=True)``. Preprocessing and classes are those of
    ``model.pretrained_cfg``, which a model has from the file that it was loaded from.

    Args:
        model: made by ``timm.create_model``, not wrapped by ``features_only``.
        folder: the repository's folder; created if it is not there.
        classes: names of the classes, in order; by default the model's own, if it knows them.
        repository: owner/name on the hub, for the card.
        config: what to add to or replace in the pretrained configuration, such as ``{"mean": ..., "input_size": ...}``.

    Returns:
        The folder.

    Raises:
        UserError: not a model of timm's factory, or another number of classes than the model has.
    """
    cfg = getattr(model, "pretrained_cfg", None)
    if not isinstance(cfg, dict) or not hasattr(model, "num_classes"):
        raise UserError(f"expected a model made by timm.create_model, got {type(model).__name__}")
    if classes and len(classes) != model.num_classes:
        raise UserError(f"{len(classes)} class names, but the model has {model.num_classes} classes")
    folder = Path(folder)
    arguments = {
        name: value
        for name, value in getattr(model, "model_args", {}).items()
        if name not in RUNTIME | {"num_classes"} and not name.endswith(("drop_rate", "drop_path_rate"))
    }
    model_config: dict[str, Any] = {"pretrained_cfg": dict(config or {})}
    if names := list(classes or cfg.get("label_names") or ()):
        model_config["label_names"] = names
    with tempfile.TemporaryDirectory() as scratch:
        written = Path(scratch) / "config.json"
        save_config_for_hf(model, written, model_config=model_config, model_args=arguments)
        content = json.loads(written.read_text())
    # transformers' TimmWrapper passes num_classes itself; timm reads it from the root of the file.
    content.get("model_args", {}).pop("num_classes", None)
    content["pretrained_cfg"].pop("label_names", None)  # they are at the root of the file
    text = json.dumps(content, indent=2) + "\n"
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    name = content["architecture"]
    card = CARD.format(name=name, repository=repository, license=cfg.get("license") or "unknown")
    write_atomically(folder / "model.safetensors", lambda path: save_file(tensors, path, metadata={"format": "pt"}))
    write_atomically(folder / "README.md", lambda path: path.write_text(card))
    write_atomically(folder / "config.json", lambda path: path.write_text(text))
    return folder


def push_to_hub(
    model: nn.Module, repository: str, *, classes: Sequence[str] = (), private: bool = False, **config: Any
) -> str:
    """Write a model as a hub repository and upload it; needs a login (``huggingface-cli login``).

    Args:
        repository: owner/name; created if it is not there.
        classes: names of the classes, in order.
        private: of a repository that is created.
        config: as in :func:`save_for_hub`.

    Returns:
        The address of the upload.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo(repository, private=private, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        save_for_hub(model, folder, classes=classes, repository=repository, config=config)
        return str(api.upload_folder(repo_id=repository, folder_path=folder))
