"""Subprocess workers: a job goes there as JSON, measurements come back as JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

Job = dict[str, Any]
Result = dict[str, Any]


class Worker:
    """A subprocess that measures one job on request.

    Peak memory in a worker is that of its job alone. Requests can go to several workers in turn, so that a disturbance
    of the machine affects all of them. Use it as a context manager, which ends the subprocess.

    Args:
        start: a function of a module, called in the subprocess with the job; returns what responds to requests by name.
    """

    def __init__(self, start: Callable[[Job], Callable[[str], Result]], job: Job) -> None:
        program = (
            f"from {__name__} import serve; from {start.__module__} import {start.__name__}; serve({start.__name__})"
        )
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by close(); an unread pipe would fill up
        self._process = subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
            text=True, env=environment,
        )  # fmt: skip
        self._job: str | None = json.dumps(job)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def request(self, name: str) -> Result:
        """The response to a request by name, or ``{"error": ...}`` if the subprocess has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            for line in filter(None, (self._job, name)):
                self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()
            self._job = None
            response = self._process.stdout.readline()
        except BrokenPipeError:
            response = ""
        if not response:
            return {"error": self._reason()}
        result: Result = json.loads(response)
        return result

    def _reason(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        if lines:
            return lines[-1]
        return f"killed by signal {-code}" if code < 0 else f"ended with exit status {code}"

    def close(self) -> None:
        """End the subprocess."""
        self._process.kill()
        self._process.communicate()
        self._errors.close()


def serve(start: Callable[[Job], Callable[[str], Result]]) -> None:
    """The subprocess's side of :class:`Worker`."""
    respond = start(json.loads(sys.stdin.readline()))
    for line in sys.stdin:
        print(json.dumps(respond(line.strip())), flush=True)
