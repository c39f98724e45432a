"""Canvases are filled, pictures are sharp, and what is drawn on them can be seen and is named."""

from __future__ import annotations

import itertools

import matplotlib.image
import numpy as np
import pytest
import timm
import torch
from PIL import Image

from deformvit import UserError, figures, load_model, record
from deformvit.figures import common
from deformvit.figures.sheet import Panel, arrange, sheet
from deformvit.results import ClassificationResult, DetectionResult


@pytest.fixture(scope="module")
def trace():
    model, _ = load_model("dat_nano.cifar10")
    torch.manual_seed(0)
    with torch.inference_mode(), record(model) as trace:
        model(torch.randn(1, 3, 32, 32))
    return trace


@pytest.fixture(scope="module")
def swin():
    blocks = ("window shifted", "window shifted", "window shifted", "shifted")
    model = timm.create_model("dat_nano", blocks=blocks, depths=(2, 2, 2, 1), shifting="swin").eval()
    with torch.inference_mode(), record(model) as trace:
        model(torch.randn(1, 3, 32, 32))
    return trace


@pytest.fixture(scope="module")
def photo():
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (600, 600, 3), dtype=np.uint8))


def boxes(figure):
    """Left, bottom, right, top of the panels in shares of the canvas, and their titles."""
    return [(axis.get_position().extents, axis.get_label().split(" | ")[0]) for axis in figure.axes if axis.get_label()]


def filled(figure):
    """Share of the canvas which panels cover; they do not overlap."""
    panels = [extents for extents, _ in boxes(figure)]
    for one, two in itertools.combinations(panels, 2):
        assert min(one[2], two[2]) <= max(one[0], two[0]) + 1e-6 or min(one[3], two[3]) <= max(one[1], two[1]) + 1e-6
    return sum((right - left) * (top - bottom) for left, bottom, right, top in panels)


@pytest.mark.parametrize("sizes", [[1], [2, 2, 2, 4], [3, 3, 3, 6], [1] * 7, [5, 1], [3] * 9 + [6], [2, 4, 4, 8]])
@pytest.mark.parametrize("aspect", [0.5, 1.0, 2.0])
def test_any_number_of_panels_fills_the_canvas(sizes, aspect):
    parts = [[Panel(lambda *_: None, f"part {i}", "note")] * size for i, size in enumerate(sizes)]
    figure = sheet(parts, aspect, title="title", notes=["A note."])
    assert len(boxes(figure)) == sum(sizes)
    assert filled(figure) > 0.7
    rows = {}
    for (left, bottom, right, _), _ in boxes(figure):
        rows.setdefault(round(bottom, 4), []).append((left, right))
    for row in rows.values():  # each row goes from side to side
        assert min(left for left, _ in row) < 0.03
        assert max(right for _, right in row) > 0.97
    width, height = figure.get_size_inches()
    assert 0.3 < height / width < 3.2
    assert [title for _, title in boxes(figure)] == [f"part {i}" for i, size in enumerate(sizes) for _ in range(size)]


def test_rows_begin_with_a_layer_where_that_is_no_waste():
    assert arrange([2, 2, 2, 4], 1.0) == [4, 6]
    assert arrange([3, 3, 3, 6], 1.0) == [3, 6, 6]
    assert arrange([4], 1.0) == [2, 2]


@pytest.mark.parametrize("kind", ["points", "offsets", "keys", "query"])
def test_figures_of_layers_with_different_groups_fill_the_canvas(trace, photo, kind):
    if kind == "query":
        rows = [[(layer.label, layer)] for layer in trace.deformable]
        figure = figures.query(photo, rows, (16, 16), hw=(32, 32))
    else:
        figure = getattr(figures, kind)(photo, trace.deformable, hw=(32, 32))
    assert filled(figure) > 0.7
    width, height = figure.get_size_inches()
    assert 0.5 < height / width < 2
    for axis in figure.axes:
        for image in axis.images[:1]:  # the photo's pixels, not the network's 32 x 32
            assert min(image.get_array().shape[:2]) >= 448 or not axis.get_label()
    narrow = {"query": lambda: figures.query(photo, rows, (16, 16), hw=(32, 32), width=4)}.get(
        kind, lambda: getattr(figures, kind)(photo, trace.deformable, hw=(32, 32), width=4)
    )()
    assert narrow.get_size_inches()[0] == 4
    assert filled(narrow) > 0.5


def test_a_width_out_of_range_is_told(trace, photo):
    with pytest.raises(UserError, match="width must be from 1 to 100 inches, got 0"):
        figures.points(photo, trace.deformable, hw=(32, 32), width=0)


def test_small_images_are_enlarged_smoothly():
    steps = common.picture(torch.tensor([0.0, 1.0]).expand(3, 2, 2))
    assert steps.shape == (448, 448, 3)
    assert len(np.unique(steps[200, :, 0])) > 20


def test_the_shift_of_the_grid_is_told(trace):
    (note,) = figures.grid_notes(trace.deformable)
    assert "stage 2 by 1.5 pixels, stage 3 by 3.5 pixels, stage 4 by 7.5 pixels" in note
    layer = trace.deformable[0]
    middle = layer.index_pixels(torch.tensor([3.5, 3.5]), (32, 32))  # of a map of 8 x 8 cells
    assert (16 - middle).tolist() == [layer.shift] * 2
    patches = timm.create_model("dat_nano", embed="patch").eval()
    with torch.inference_mode(), record(patches) as other:
        patches(torch.zeros(1, 3, 32, 32))
    assert figures.grid_notes(other.deformable) == []
    texts = [text.get_text() for text in figures.points(torch.rand(3, 32, 32), trace.deformable).texts]
    assert any(text.startswith("Grids lie up and left") for text in texts)


def test_points_that_are_held_at_the_border_are_told():
    model = timm.create_model("datpp_tiny", num_classes=0, depths=(2, 2, 2, 2), dims=(16, 32, 64, 128)).eval()
    for name, weight in model.named_parameters():
        if "offset_net.3" in name:
            torch.nn.init.constant_(weight, 10.0)
    with torch.inference_mode(), record(model) as found:
        model(torch.randn(1, 3, 64, 64))
    layer = found.deformable[-1]
    held = int((layer.deformed[0, 0].abs() == 1).any(-1).sum())
    assert str(common.outside(layer, 0, 0)) == (
        f"{held} of {layer.deformed[0, 0, ..., 0].numel()} held at the map's border" if held else "all on the map"
    )
    assert any("Held at the border" in note for note in figures.outside_notes([layer]))


def test_marks_have_an_edge_that_is_seen():
    image = np.zeros((10, 10, 3), dtype=np.float32)
    image[:, 5:] = 1
    assert common.edges(image, np.array([[3.0, 2.0], [3.0, 7.0], [-1.0, 2.0]]), (10, 10)) == ["white", "black", "black"]
    for ground in (0.02, 0.3, 0.9):  # nothing stays hidden in the dark, nothing outshines the marks
        assert 0.1 < common.muted(np.full((4, 4, 3), ground, dtype=np.float32)).mean() < 0.7


def test_objects_have_outlines_over_the_points(trace, photo):
    masks = torch.zeros(2, 60, 60, dtype=torch.bool)
    masks[0, 10:30, 10:30], masks[1, 40:50, 20:55] = True, True
    boxes_ = torch.tensor([[10.0, 10, 30, 30], [20, 40, 55, 50]])
    for kept in (masks, None):
        result = DetectionResult(
            source=photo, hw=(60, 60), classes=["a", "b"], index=0, boxes=boxes_, labels=torch.tensor([0, 1]),
            scores=torch.ones(2), masks=kept,
        )  # fmt: skip
        figure = figures.objects(photo, trace.deformable, result=result, hw=(32, 32))
        axis = figure.axes[0]
        points = [found for found in axis.collections if len(found.get_offsets()) > 1]
        outlines = [found for found in axis.collections if found not in points] if kept is not None else axis.patches
        assert len(outlines) == 2
        assert all(line.get_path_effects() for line in outlines)
        assert min(line.get_zorder() for line in outlines) > max(found.get_zorder() for found in points)
        low = [line.get_paths()[0] if kept is not None else line.get_bbox() for line in outlines]
        extents = sorted((entry.get_extents() if kept is not None else entry).extents.tolist() for entry in low)
        wanted = sorted((box * 32 / 60).tolist() for box in boxes_)
        np.testing.assert_allclose(extents, wanted, atol=0.6)
        moved = trace.deformable[2].pixels(trace.deformable[2].deformed[0], (32, 32)).reshape(-1, 2) * 60 / 32
        on = sum(bool(masks[:, int(y), int(x)].any()) for y, x in moved.tolist() if 0 <= y < 60 and 0 <= x < 60)
        share = f"{100 * on / len(moved):.0f} % of points on objects, which cover {100 * 750 / 3600:.0f} %"
        assert axis.get_label() == f"stage 3, block 4 | {share}"
        names = [text.get_text() for text in figure.legends[0].get_texts()]
        assert names[-2:] == ["a", "b"]


def result_of(photo):
    scores, labels = torch.tensor([0.9, 0.1]), torch.tensor([1, 0])
    return ClassificationResult(
        source=photo, hw=(600, 600), classes=["dog", "cat"], index=0, labels=labels, scores=scores
    )


def test_summary_without_a_swin_shows_its_reach(trace, photo, tmp_path):
    figure = figures.summary(photo, trace, point=(12.0, 16.0), result=result_of(photo), hw=(32, 32), title="name")
    titles = [title for _, title in boxes(figure)]
    assert titles[:4] == ["name", "stage 2, block 2", "stage 3, block 4", "stage 4, block 1"]
    assert titles[4:] == ["stage 2, block 2: deformable", "Swin, window of 4 x 4", "Swin, shifted window of 4 x 4"]
    texts = [text.get_text() for text in figure.texts]
    assert {"cat", "90.0 %", "dog", "10.0 %"} <= set(texts)
    assert any("No Swin was run" in text for text in texts)
    window = next(axis for axis in figure.axes if axis.get_label().startswith("Swin, window"))
    rings = np.asarray(max(window.collections, key=lambda found: len(found.get_offsets())).get_offsets())
    layer = trace.deformable[0]
    row, column = divmod(layer.query_at((12.0, 16.0), (32, 32)), 8)
    cells = [(y, x) for y in range(row // 4 * 4, row // 4 * 4 + 4) for x in range(column // 4 * 4, column // 4 * 4 + 4)]
    expected = layer.index_pixels(torch.tensor(cells, dtype=torch.float32), (32, 32)).flip(-1)
    np.testing.assert_allclose(np.sort(rings, 0), np.sort(expected.numpy(), 0), atol=1e-4)
    figure.savefig(tmp_path / "summary.png", dpi=100)
    height, width = matplotlib.image.imread(tmp_path / "summary.png").shape[:2]
    assert width == 1200
    assert 2 < width / height < 4
    assert filled(figure) > 0.6


def test_summary_beside_a_swin_shows_its_attention(trace, swin, photo):
    figure = figures.summary(photo, trace, point=(12.0, 16.0), hw=(32, 32), other=swin, other_name="swin", width=8)
    assert figure.get_size_inches()[0] == 8
    titles = [title for _, title in boxes(figure)]
    assert titles[5:] == ["swin, stage 2, block 1: window", "swin, stage 2, block 2: shifted"]
    assert not any("No Swin was run" in text.get_text() for text in figure.texts)
    layer = swin.find("stage 2, block 2")
    found = layer.attend([layer.query_at((12.0, 16.0), (32, 32))])
    circles = figure.axes[-1].collections[0]
    assert len(circles.get_offsets()) == int((found.weights[:, 0].sum(0) > 0).sum())
    sizes, weights = circles.get_sizes(), found.weights[:, 0].sum(0).sort().values.numpy()
    np.testing.assert_allclose(sizes / sizes.max(), weights[-len(sizes) :] / weights.max(), rtol=1e-4)


def test_summary_of_a_model_without_points_is_told(swin, photo):
    with pytest.raises(UserError, match="no deformable layers"):
        figures.summary(photo, swin, point=(1, 1), hw=(32, 32))
