"""The site: pages build without a warning, and describe every public name and every field."""

from __future__ import annotations

import dataclasses
import importlib
import shutil
from pathlib import Path

import pytest
from sphinx.application import Sphinx

import deformvit
from deformvit.config import BaseConfig
from deformvit.results import ClassificationResult, DetectionResult, SegmentationResult

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")  # Sphinx's
PUBLIC = [
    "deformvit",
    *(f"deformvit.{path.parent.name}" for path in Path(deformvit.__file__).parent.glob("*/__init__.py")),
]


@pytest.fixture(scope="module")
def documented(tmp_path_factory) -> set[str]:
    """The names that the pages describe; the gallery's pictures, which take minutes, are left out."""
    source, out = tmp_path_factory.mktemp("docs"), tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "docs", source, dirs_exist_ok=True)
    (source / "gallery.md").write_text("# Gallery\n")
    extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
    app = Sphinx(
        source, source, out, out, "dummy", {"extensions": extensions}, status=None, warningiserror=True, verbosity=-1
    )
    app.build()
    assert app.statuscode == 0
    return {name for name, *_ in app.env.get_domain("py").get_objects()}


def meaning(name: str) -> object:
    """What a documented name is; None of members of classes."""
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute, None)
    except ImportError:
        return None


def test_every_public_name_is_on_a_page(documented):
    described = {id(meaning(name)) for name in documented}
    seen = 0
    for module in map(importlib.import_module, PUBLIC):
        for name in getattr(module, "__all__", []):
            value = getattr(module, name)
            if not name.startswith("__") and not hasattr(value, "__path__") and not isinstance(value, type(importlib)):
                assert id(value) in described, f"{module.__name__}.{name} is on no page of docs/api"
                seen += 1
    assert seen > 50


@pytest.mark.parametrize(
    "described",
    [
        ClassificationResult, DetectionResult, SegmentationResult, deformvit.ClassifierDescription,
        deformvit.DetectorDescription, deformvit.SegmenterDescription, BaseConfig,
    ],
)  # fmt: skip
def test_data_classes_have_all_their_fields(documented, described):
    names = [f"deformvit.{described.__name__}", f"{described.__module__}.{described.__name__}"]
    fields = {field.name for field in dataclasses.fields(described)}
    assert fields <= {name.rpartition(".")[2] for name in documented if name.rpartition(".")[0] in names}


def test_a_predictor_has_all_its_attributes(documented):
    predictor = deformvit.load("dat_nano.cifar10", device="cpu")
    public = {name for name in dir(predictor) if not name.startswith("_")} | {"__call__"}
    assert {f"deformvit.Predictor.{name}" for name in public} <= documented
