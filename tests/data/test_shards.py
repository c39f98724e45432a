"""Tar shards and large parquet files give what a folder of the same images gives."""

from __future__ import annotations

import functools
import http.server
import io
import itertools
import json
import multiprocessing
import os
import tarfile
import threading
import time
from typing import ClassVar

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image

from deformvit.data import DataError, open_split
from deformvit.data.classification import ParquetImages, open_parquet
from deformvit.data.shards import ParquetShards, TarShards, download
from deformvit.engine.loader import MicroBatches, Sharing
from deformvit.errors import UnreadableImage

COUNTS = (5, 3, 4)
"""Images of each shard."""


def pixels(number):
    return np.full((6, 9, 3), number, np.uint8)


def png(number):
    file = io.BytesIO()
    Image.fromarray(pixels(number)).save(file, "PNG")
    return file.getvalue()


def write_shard(path, numbers, labels=True, damaged=()):
    with tarfile.open(path, "w") as shard:
        for number in numbers:
            parts = [(f"{number:04d}.PNG", b"no image" if number in damaged else png(number))]
            parts.append((f"{number:04d}.json", b"{}"))
            if labels:
                parts.append((f"{number:04d}.cls", str(number % 3).encode()))
            for name, content in parts:
                member = tarfile.TarInfo(f"some/where.v2/{name}")
                member.size = len(content)
                shard.addfile(member, io.BytesIO(content))


@pytest.fixture
def shards(tmp_path):
    """Twelve training images in three shards and two for validation; image i has value i and label i % 3."""
    first = 0
    for shard, count in enumerate(COUNTS):
        write_shard(tmp_path / f"set-train-{shard:04d}.tar", range(first, first + count))
        first += count
    write_shard(tmp_path / "set-validation-0000.tar", range(100, 102))
    return tmp_path


@pytest.fixture
def served(shards):
    """The URL of the shards."""
    names = sorted(path.name for path in shards.glob("*train*.tar"))
    splits = {"train": {"filenames": names, "shard_lengths": list(COUNTS)},
              "validation": {"filenames": ["set-validation-0000.tar"], "shard_lengths": [2]}}  # fmt: skip
    (shards / "_info.json").write_text(json.dumps({"splits": splits}))
    (shards / "classes.json").write_text(json.dumps(["a", "b", "c"]))
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            super().do_GET()

        def log_message(self, *_args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(shards)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()


def values(images):
    return [(int(np.asarray(image)[0, 0, 0]), label) for image, label in (images[i] for i in range(len(images)))]


EVERY = [(number, number % 3) for number in range(12)]


def test_local_shards(shards):
    images = open_split(str(shards), "train")
    assert isinstance(images, TarShards)
    assert images.classes == ["0", "1", "2"]
    assert values(images) == EVERY
    assert images[4][0].size == (9, 6)
    assert values(open_split(str(shards), "val")) == [(100, 1), (101, 2)]
    seen = open_split(str(shards), "train", transform=lambda image: image.size)
    assert seen[11] == ((9, 6), 2)
    with pytest.raises(IndexError):
        images[12]


def test_shards_by_url_are_downloaded_once_when_they_are_needed(served, tmp_path):
    url, asked = served
    cache = tmp_path / "cache"
    images = open_split(url, "train", cache=cache)
    assert images.classes == ["a", "b", "c"]
    assert len(images) == 12
    assert not any("tar" in path for path in asked)
    assert images[6][1] == 0
    assert [path for path in asked if "tar" in path] == ["/set-train-0001.tar"]
    assert values(images) == EVERY
    assert values(open_split(url, "train", cache=cache)) == EVERY
    assert sum("tar" in path for path in asked) == 3
    assert sorted(path.suffix for path in cache.iterdir()) == [".lock"] * 3 + [".tar"] * 3  # no parts of files


def test_loader_processes_share_downloads(served, tmp_path):
    url, asked = served
    images = open_split(url, "train", cache=tmp_path / "cache")
    assert images[0][1] == 0  # opened before the processes are forked
    loader = torch.utils.data.DataLoader(images, None, num_workers=2)
    assert sorted(int(np.asarray(image)[0, 0, 0]) for image, _ in loader) == list(range(12))
    assert sum("tar" in path for path in asked) == 3


def test_a_forked_process_opens_its_own_files(shards):
    """Shared ones would be read at positions that the other process chose."""
    images = open_split(str(shards), "train")
    assert images[0][1] == 0
    file = images._open_shards[0].file
    images._process = -1  # as in a child
    assert images[1][1] == 1
    assert images._open_shards[0].file is not file


def test_a_shard_of_which_a_part_arrived_is_not_taken(tmp_path):
    class Response(io.BytesIO):
        headers: ClassVar = {"Content-Length": "10"}

    with pytest.raises(DataError, match=r"http://a/b\.tar: 4 of 10 bytes arrived"):
        download("http://a/b.tar", tmp_path, lambda *_args, **_options: Response(b"half"))
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def hold(lock, held):
    """In another process: take a lock and keep it."""
    with FileLock(lock):
        held.set()
        time.sleep(600)


@pytest.fixture
def holder(served, tmp_path):
    """A process that has locked the first shard, as one does that downloads it."""
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    url = f"{served[0]}/set-train-0000.tar"
    cache = tmp_path / "cache"
    cache.mkdir()
    lock = cache / f"{url.removeprefix('http://').replace(':', '_').replace('/', '_')}.lock"
    process = context.Process(target=hold, args=(lock, held), daemon=True)
    process.start()
    assert held.wait(60)
    yield url, cache, lock, process
    process.kill()


def test_the_lock_of_a_killed_process_blocks_nobody(holder, tmp_path, capsys):
    url, cache, lock, process = holder
    process.kill()
    process.join()
    assert lock.exists()
    began = time.monotonic()
    assert download(url, cache).read_bytes() == (tmp_path / "set-train-0000.tar").read_bytes()
    assert time.monotonic() - began < 5
    assert capsys.readouterr().err == ""


def test_the_lock_of_a_live_process_is_waited_for(holder, tmp_path, capsys):
    url, cache, lock, process = holder
    os.utime(lock, (0, 0))  # however old it is
    fetched = []
    thread = threading.Thread(target=lambda: fetched.append(download(url, cache, notice=0.1)))
    thread.start()
    thread.join(1)
    assert thread.is_alive()
    assert not fetched
    process.kill()
    thread.join(60)
    assert fetched[0].read_bytes() == (tmp_path / "set-train-0000.tar").read_bytes()
    assert capsys.readouterr().err == f"deformvit: waiting for another process that downloads {url} to {cache}\n"


def test_errors_name_what_a_url_lacks(served, shards, tmp_path):
    url, _ = served
    (shards / "set-train-0002.tar").unlink()
    images = open_split(url, "train", cache=tmp_path / "cache")
    with pytest.raises(DataError, match=r"set-train-0002\.tar: cannot be downloaded .*404"):
        images[11]
    write_shard(shards / "set-train-0002.tar", range(8, 11))
    with pytest.raises(DataError, match=r"set-train-0002\.tar: 3 images, but _info.json says 4"):
        open_split(url, "train", cache=tmp_path / "cache")[11]
    (shards / "classes.json").unlink()
    with pytest.raises(DataError, match="need _info.json with shard_lengths, and classes.json"):
        open_split(url, "train")
    (shards / "_info.json").unlink()
    with pytest.raises(DataError, match="no _info.json there"):
        open_split(url, "train")
    with pytest.raises(DataError, match="cannot be read"):
        open_split("http://127.0.0.1:9", "train")


def test_errors_name_damaged_shards(shards):
    write_shard(shards / "set-train-0001.tar", range(5, 8), damaged=[6])
    images = open_split(str(shards), "train")
    with pytest.raises(UnreadableImage, match=r"set-train-0001\.tar: some/where\.v2/0006\.PNG: not a readable image"):
        images[6]
    assert images[7][1] == 1
    write_shard(shards / "set-train-0001.tar", range(5, 8), labels=False)
    with pytest.raises(DataError, match=r"0001\.tar: some/where\.v2/0005\.PNG has no \.cls file"):
        open_split(str(shards), "train")
    (shards / "set-train-0001.tar").write_bytes(b"rubbish" * 200)
    with pytest.raises(DataError, match=r"0001\.tar: not a tar file"):
        open_split(str(shards), "train")
    (shards / "classes.json").write_text('["only one"]')
    write_shard(shards / "set-train-0001.tar", range(5, 8))
    with pytest.raises(DataError, match=r"0001\.PNG: label 1, expected 0 to 0"):
        open_split(str(shards), "train")[1]


def test_images_are_shuffled_within_windows_of_shards(shards):
    def opened(window):
        return TarShards([str(path) for path in sorted(shards.glob("*train*"))], None, None, shards, window=window)

    images = opened(4)  # a shard at a time
    orders = [images.shuffled(torch.Generator().manual_seed(seed)).tolist() for seed in range(8)]
    for order in orders:
        assert sorted(order) == list(range(12))
        shard = [next(k for k in range(3) if index < sum(COUNTS[: k + 1])) for index in order]
        assert sum(a != b for a, b in itertools.pairwise(shard)) == 2
    assert len({tuple(order) for order in orders}) == 8
    mixed = opened(100).shuffled(torch.Generator().manual_seed(0)).tolist()
    assert {index < 5 for index in mixed[:5]} == {True, False}


@pytest.mark.parametrize("kind", ["struct", "bytes"])
def test_large_parquet_files_are_read_by_row_groups(tmp_path, kind):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for part, numbers in enumerate((range(7), range(7, 12))):
        contents = [png(number) for number in numbers]
        column = [{"bytes": content, "path": None} for content in contents] if kind == "struct" else contents
        table = pa.table({"image": column, "label": [number % 3 for number in numbers]})
        pq.write_table(table, tmp_path / f"train-{part:05d}-of-00002.parquet", row_group_size=3)
    small = open_split(str(tmp_path), "train")
    assert isinstance(small, ParquetImages)
    large = open_parquet(sorted(tmp_path.glob("*.parquet")), "train", None, in_memory=10)
    assert isinstance(large, ParquetShards)
    assert large.classes == small.classes
    assert values(large) == values(small) == EVERY
    loader = torch.utils.data.DataLoader(large, None, num_workers=2)
    assert sorted(int(np.asarray(image)[0, 0, 0]) for image, _ in loader) == list(range(12))


def test_a_run_on_shards_continues_inside_an_epoch(shards):
    images = TarShards([str(path) for path in sorted(shards.glob("*train*"))], None, None, shards, window=4)
    share = Sharing(0, 1, 1, 4)
    steps = list(MicroBatches(images, 4, seed=0, first=0, last=6, share=share))  # two epochs
    assert len({key for step in steps for key in step}) == 24
    for first in (1, 2, 4):
        assert list(MicroBatches(images, 4, seed=0, first=first, last=6, share=share)) == steps[first:]


def test_training_from_shards(shards, tmp_path):
    from deformvit import recipes
    from deformvit.engine import loop
    from deformvit.models.files import open_model_file
    from deformvit.runs import read_metrics
    from deformvit.tasks.classification import Classification

    config = recipes.demo()
    config.model.args = {"dims": "(8, 8, 16, 16)", "num_heads": "(1, 1, 2, 2)", "groups": "1", "depths": "(1, 2, 2, 1)"}
    config.data.root, config.data.batch_size, config.data.workers = str(shards), 4, 2
    config.run.epochs, config.run.progress = 2, False
    config.run.save_minutes = 1e-9  # after every step

    class Stopped(Exception):
        pass

    def fit(output, steps=None):
        """The weights after training, without interruption or stopped after some steps and resumed."""
        config.run.output, config.run.resume = output, None
        if steps is not None:
            task = Classification(config)
            losses, taken = task.losses, []

            def until_stopped(*batch):
                taken.append(1)
                if len(taken) > steps:
                    raise Stopped
                return losses(*batch)

            task.losses = until_stopped
            with pytest.raises(Stopped):
                loop.fit(task, config)
            config.run.resume = config.run.output
        loop.fit(Classification(config), config)
        return open_model_file(output / "best.safetensors").tensors(), read_metrics(output)

    (weights, metrics), (resumed, again) = fit(tmp_path / "whole"), fit(tmp_path / "resumed", 4)  # 3 steps an epoch
    assert [line["train_loss"] for line in again] == [line["train_loss"] for line in metrics]
    assert len(metrics) == 2
    assert all(torch.equal(resumed[name], value) for name, value in weights.items())
