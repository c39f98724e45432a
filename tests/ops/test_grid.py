"""Coordinates, one by one: square maps hide swapped axes, so none here is square."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from deformvit.ops import grid


def test_v1_points_are_half_pixel():
    points = grid.reference_points((2, 4), "v1")
    assert points.shape == (2, 4, 2)
    assert points[:, 0, 0].tolist() == [-0.5, 0.5]  # y: ((i + 0.5) / 2) * 2 - 1
    assert points[0, :, 1].tolist() == [-0.75, -0.25, 0.25, 0.75]  # x
    assert torch.equal(points, grid.query_points((2, 4), "v1"))


def test_datpp_points_divide_by_n_minus_one():
    points = grid.reference_points((3, 5), "datpp")
    torch.testing.assert_close(points[:, 0, 0], torch.tensor([-0.5, 0.5, 1.5]))  # (i + 0.5) / 2 * 2 - 1
    torch.testing.assert_close(points[0, :, 1], torch.tensor([-0.75, -0.25, 0.25, 0.75, 1.25]))
    queries = grid.query_points((3, 5), "datpp")
    torch.testing.assert_close(queries[:, 0, 0], torch.tensor([-1.0, 0.0, 1.0]))
    torch.testing.assert_close(queries[0, :, 1], torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0]))


def test_unit_of_the_offset_range():
    assert grid.key_cell((4, 5), "v1").tolist() == pytest.approx([1 / 4, 1 / 5])
    assert grid.key_cell((4, 5), "datpp").tolist() == pytest.approx([1 / 3, 1 / 4])
    assert grid.key_cell((4, 5), "aligned").tolist() == pytest.approx([1 / 3, 1 / 4])


@pytest.mark.parametrize("convention", grid.CONVENTIONS)
def test_single_point_is_the_centre(convention):
    assert grid.reference_points((1, 1), convention).flatten().tolist() == [0.0, 0.0]
    assert grid.query_points((1, 1), convention).flatten().tolist() == [0.0, 0.0]
    assert grid.key_cell((1, 1), convention).tolist() == [1.0, 1.0]


def test_aligned_zero_offset_is_the_identity_and_v1_is_not():
    x = torch.randn(2, 3, 5, 7, dtype=torch.float64)

    def at_reference(convention):
        points = grid.reference_points((5, 7), convention, dtype=x.dtype).expand(2, -1, -1, -1)
        return grid.sample(x, points)

    torch.testing.assert_close(at_reference("aligned"), x)
    assert (at_reference("v1") - x).abs().max() > 0.1


def test_sample_reads_y_then_x():
    x = torch.arange(15.0).reshape(1, 1, 3, 5)
    corner = torch.tensor([[[[1.0, -1.0]]]])  # last row, first column
    assert grid.sample(x, corner).item() == 10.0


def test_sample_is_the_bilinear_formula_with_zeros_outside():
    x = torch.randn(1, 2, 3, 5, dtype=torch.float64)
    pos = torch.rand(1, 4, 6, 2, dtype=torch.float64) * 3 - 1.5
    pixel = (pos + 1) / 2 * torch.tensor([2.0, 4.0], dtype=torch.float64)
    rows = F.relu(1 - (pixel[..., 0, None] - torch.arange(3)).abs())  # g(a, b) = max(0, 1 - |a - b|)
    cols = F.relu(1 - (pixel[..., 1, None] - torch.arange(5)).abs())
    expected = torch.einsum("bcyx,bhwy,bhwx->bchw", x, rows, cols)
    torch.testing.assert_close(grid.sample(x, pos), expected)


def test_sample_keeps_positions_in_float32_for_low_precision_features():
    x = torch.randn(1, 1, 3, 200).bfloat16()
    pos = torch.zeros(1, 1, 1, 2)
    pos[..., 1] = 0.998  # bfloat16 would round to 1.0, a fifth of a pixel away
    assert grid.sample(x, pos).dtype == torch.bfloat16
    torch.testing.assert_close(grid.sample(x, pos), grid.sample(x.float(), pos).bfloat16())


def test_to_index_puts_ends_on_the_first_and_last_pixel():
    ends = torch.tensor([[-1.0, -1.0], [1.0, 1.0], [0.0, 0.0]])
    assert grid.to_index(ends, (3, 5)).tolist() == [[0.0, 0.0], [2.0, 4.0], [1.0, 2.0]]


def test_unknown_convention_is_named():
    with pytest.raises(ValueError, match="'v2'.*v1, datpp, aligned"):
        grid.reference_points((2, 2), "v2")


def test_from_index_is_the_inverse_of_to_index():
    index = torch.tensor([[0.0, 0.0], [2.0, 4.0], [0.5, 3.25]])
    torch.testing.assert_close(grid.to_index(grid.from_index(index, (3, 5)), (3, 5)), index)
    assert grid.from_index(torch.tensor([[0.0, 4.0], [7.0, 0.0]]), (1, 5)).tolist() == [[0.0, 1.0], [0.0, -1.0]]


@pytest.mark.parametrize("axes", [1, 3])
def test_sampling_on_one_and_three_axes_is_linear(axes):
    """A map linear in its coordinates is read exactly, whatever the shape of the output."""
    size = (4, 6, 5)[:axes]
    points = grid.reference_points(size, "aligned", dtype=torch.float64)
    weights = torch.tensor([2.0, -3.0, 5.0], dtype=torch.float64)[:axes]
    image = (points @ weights)[None, None]
    where = torch.rand(1, 3, 7, axes, dtype=torch.float64) * 2 - 1
    torch.testing.assert_close(grid.sample(image, where)[0, 0], (where @ weights)[0])
