"""How processes find each other, also after others have died."""

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


def start(server, late=-1, count=3):
    """The names that processes find, one of which comes later than the others."""

    def process(number):
        store = client(server)
        if number == late:
            time.sleep(0.2)
        return distributed.meet(store, number, count, timedelta(seconds=20))

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(process, range(count)))


def test_every_start_has_a_name_of_its_own(server):
    """Though the words of those before lie in the store, and of one that came alone and died."""
    names = []
    for late in (-1, 2, 0, 1):
        found = start(server, late)
        assert len(set(found)) == 1
        names.append(found[0])
        client(server).set("here/2", f"dead{late}")
    assert len(set(names)) == 4


def test_one_process_meets_nobody(server):
    assert len(set(start(server, count=1))) == 1


def test_who_does_not_come_is_told(server):
    with pytest.raises(TimeoutError, match=r"1 of 2 processes came within 0:00:00\.2"):
        distributed.meet(client(server), 0, 2, timedelta(seconds=0.2))
    with pytest.raises(TimeoutError, match=r"the first of 2 processes did not come"):
        distributed.meet(client(server), 1, 2, timedelta(seconds=0.2))


PROGRAM = """
import atexit, os, signal, sys, time
from deformvit import distributed
again = os.path.exists(sys.argv[1])
with distributed.processes():
    if not again and distributed.rank() == 1:
        open(sys.argv[1], "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    if not again:
        time.sleep(600)  # in a long step: its node sees that the other waits, and counts no restart
    print("counts", sorted(distributed.gather(os.environ["TORCHELASTIC_RESTART_COUNT"])))
atexit.register(os.abort)  # as Gloo's threads may do while Python is finalised
distributed.leave(0)
"""


def test_two_nodes_start_again_though_they_count_differently(tmp_path):
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
        told = [node.communicate(timeout=150)[0] for node in nodes]
    finally:
        for node in nodes:
            node.terminate()  # and with it its process
    assert [node.returncode for node in nodes] == [0, 0], told
    assert "counts ['0', '1']" in "".join(told)
