"""Names of the files that commands write for images."""

from __future__ import annotations

import pytest

from deformvit import UserError
from deformvit.cli.inputs import names_for, refuse_to_overwrite


def test_no_two_outputs_have_one_name():
    assert names_for(["a/0.png", "b/0.jpg", "c/1.png"]) == ["0", "0_", "1"]
    # The label map of the first would be the picture of the second.
    assert names_for(["0.png", "0_labels.png"], ("", "_labels")) == ["0", "0_labels_"]
    assert names_for(["0_labels.png", "0.png"], ("", "_labels")) == ["0_labels", "0_"]


def test_an_input_is_not_overwritten(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "0.png").write_bytes(b"a photo")
    refuse_to_overwrite(["photos/0.png"], [tmp_path / "drawn" / "0.png"])
    with pytest.raises(UserError, match="is one of the images; write to another folder"):
        refuse_to_overwrite(["photos/0.png"], [tmp_path / "photos" / "0.png"])
