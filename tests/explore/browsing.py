"""What a person does on the page, and what is seen there."""

from __future__ import annotations

import contextlib
import math
import socket
import threading
import urllib.request

import uvicorn

from deformvit.explore.server import application


@contextlib.contextmanager
def serving(session, hosts=None):
    """The page of a session at an address; at the end its connections are closed."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(application(session, hosts), log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        where = f"http://127.0.0.1:{listening.getsockname()[1]}/"
        urllib.request.urlopen(where, timeout=30).close()
        yield where
        server.force_exit = server.should_exit = True
        thread.join(10)


def ready(page, where):
    page.goto(where)
    page.wait_for_selector(".found td")
    page.wait_for_function("state.panes.every((pane) => pane.answer)")


def click(page, down, right):
    """Click on the first canvas, at shares of it; the row and column, from 1, of the query there.

    The chosen layer has a map of 14 x 14 cells, each 16 pixels wide.
    """
    box = page.locator("canvas").first.bounding_box()
    page.mouse.click(box["x"] + right * box["width"], box["y"] + down * box["height"])
    frame = page.evaluate("FRAME")
    row, column = (math.floor(14 * (share * (1 + 2 * frame) - frame)) + 1 for share in (down, right))
    return row, column


def answers(page, row, column):
    page.wait_for_function(
        f"document.querySelector('.answer').textContent.startsWith('★ at row {row}, column {column} ')"
    )


def pixels(page, pane=0):
    return page.evaluate(f"document.querySelectorAll('canvas')[{pane}].toDataURL()")


POINTS = "(({ reference, deformed }) => [reference, deformed[0]])(layerOf(state.panes[0]))"
"""Reference points and deformed points of the first group, (y, x) in pixels of what the network saw."""


def drawn_colours(page, places):
    """Colours (R, G, B) on the first canvas at places (y, x), in pixels of what the network saw."""
    return page.evaluate(
        """(places) => {
            const [pane] = state.panes, margin = FRAME, context = pane.canvas.getContext("2d");
            const unit = pane.canvas.width / (pane.view.width * (1 + 2 * margin));
            return places.map(([y, x]) => Array.from(context.getImageData(
                Math.round((x + margin * pane.view.width) * unit),
                Math.round((y + margin * pane.view.height) * unit), 1, 1).data.slice(0, 3)));
        }""",
        places,
    )
