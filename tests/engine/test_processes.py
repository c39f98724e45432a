"""How processes join each other, also after others have died."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from torch.distributed import TCPStore

from deformvit import distributed


@pytest.fixture
def server():
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def client(server):
    return TCPStore("127.0.0.1", server.port, is_master=False, wait_for_workers=False)


def start(server, late=-1, size=3):
    """The prefixes that processes get, one of which comes later than the others."""

    def process(rank):
        store = client(server)
        if rank == late:
            time.sleep(0.2)
        return distributed.agree_on_prefix(store, rank, size, timedelta(seconds=20))

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(process, range(size)))


def test_every_start_has_its_own_prefix(server):
    """Though the store holds the tokens of earlier starts, and of a process that came alone and died."""
    prefixes = []
    for late in (-1, 2, 0, 1):
        agreed = start(server, late)
        assert len(set(agreed)) == 1
        prefixes.append(agreed[0])
        client(server).set("token/2", f"dead{late}")
    assert len(set(prefixes)) == 4


def test_one_process_waits_for_nobody(server):
    assert len(set(start(server, size=1))) == 1


def test_a_process_that_does_not_come_is_reported(server):
    with pytest.raises(TimeoutError, match=r"1 of 2 processes came within 0:00:00\.2"):
        distributed.agree_on_prefix(client(server), 0, 2, timedelta(seconds=0.2))
    with pytest.raises(TimeoutError, match=r"rank 0 of 2 processes did not come within 0:00:00\.2"):
        distributed.agree_on_prefix(client(server), 1, 2, timedelta(seconds=0.2))


PROGRAM = """
import atexit, os, signal, sys, time
from deformvit import distributed
again = os.path.exists(sys.argv[1])
with distributed.process_group():
    if not again and distributed.rank() == 1:
        open(sys.argv[1], "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    if not again:
        time.sleep(600)  # in a long step: its node sees that the other waits, and does not count a restart
    print("counts", sorted(distributed.gather(os.environ["TORCHELASTIC_RESTART_COUNT"])))
atexit.register(os.abort)  # as Gloo's threads may do while Python is finalised
distributed.exit_process(0)
"""
"""A program whose second process dies the first time it is started."""


def test_two_nodes_restart_though_they_count_differently(tmp_path):
    """Two agents of torchrun on one machine, as two nodes would be."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [
        sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", "2",
        "--rdzv-id", "test", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", str(program),
        str(tmp_path / "died"),
    ]  # fmt: skip
    nodes = [
        subprocess.Popen(
            words,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for _ in range(2)
    ]
    try:
        output = [node.communicate(timeout=150)[0] for node in nodes]
    finally:
        for node in nodes:
            node.terminate()  # and with it its process
    assert [node.returncode for node in nodes] == [0, 0], output
    assert "counts ['0', '1']" in "".join(output)
