"""The page, served: everything is computed when it is asked for, and once for each image, model and offset scale."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import sys
import threading
import webbrowser
from collections import OrderedDict
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from deformvit.errors import UserError
from deformvit.explore import page, view
from deformvit.explore.look import Look, look
from deformvit.explore.scales import Scales, scales
from deformvit.inference import Predictor, load, to_image

UPLOAD = 256 * 1024**2
"""Bytes of an image that the server takes; a photo of 50 megapixels has 20 to 150 MB."""
IMAGES = 12
"""Images that are kept, each at most SIDE x SIDE pixels; who asks for an older one is told to open it again."""
MEMORY = 1024**3
"""Bytes of recorded passes of images through models that are kept; the newest ones stay in any case."""
NEWEST = 4
SIDE = 2048
"""Longer side to which larger images are reduced first; networks see less."""
POLICY = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:"
)
"""What the page may load: nothing from another host."""


class Session:
    """Models, and the images that were opened; one computation at a time."""

    def __init__(self, models: list[str], device: str, threshold: float = 0.5) -> None:
        self.names = page.short_names(models)
        self.models: list[Predictor[Any]] = [load(source, device=device) for source in models]
        self.threshold = threshold
        self._images: OrderedDict[str, tuple[str, Image.Image]] = OrderedDict()
        self._looks: OrderedDict[tuple[str, int, float], Look] = OrderedDict()
        self._lock = threading.Lock()

    def open(self, source: bytes | Path | Image.Image, name: str) -> str:
        """Take an image; returns its id, which follows from its pixels: addresses of a page outlive the server.

        Raises:
            UnreadableImage: it is none.
        """
        image = to_image(source, name)
        image.thumbnail((SIDE, SIDE), reducing_gap=3.0)
        image_id = hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()[:16]
        with self._lock:
            self._images[image_id] = (name, image)
            self._images.move_to_end(image_id)
            while len(self._images) > IMAGES:
                old, _ = self._images.popitem(last=False)
                for key in [key for key in self._looks if key[0] == old]:
                    del self._looks[key]
        return image_id

    def images(self) -> list[dict[str, Any]]:
        """Ids and names of the images that are kept."""
        with self._lock:
            return [{"id": image_id, "name": name} for image_id, (name, _) in self._images.items()]

    def scales(self, image: str, model: int, shown: float) -> Scales:
        """An image through a model without offsets, with ``shown`` of them, and with all.

        Raises:
            UserError: as :meth:`look`.
        """
        return scales(lambda scale: self.look(image, model, scale), shown)

    def look(self, image: str, model: int, scale: float) -> Look:
        """An image through a model with offsets times ``scale``.

        Raises:
            UserError: there is no such image or model any more, or an impossible scale.
        """
        if not 0 <= model < len(self.models):
            raise UserError(f"there is no model {model}; there are {len(self.models)}")
        if not 0 <= scale <= 1:
            raise UserError(f"scale must be from 0 to 1, got {scale}")
        with self._lock:
            if image not in self._images:
                raise UserError(f"image {image[:40]} is not open any more; open it again")
            key = (image, model, scale)
            chosen = self.models[model]
            if key not in self._looks:
                self._looks[key] = look(
                    chosen, self._images[image][1], threshold=self.threshold, scale=scale, top=len(chosen.classes) or 1
                )
                while len(self._looks) > NEWEST and sum(map(_bytes, self._looks.values())) > MEMORY:
                    self._looks.popitem(last=False)
            self._looks.move_to_end(key)
            return self._looks[key]


def _bytes(seen: Look) -> int:
    tensors = [seen.view, *(layer.x for layer in seen.trace.layers)]
    pictures = {id(picture): picture for picture in (seen.picture, seen.overlay)}.values()
    return sum(t.numel() * t.element_size() for t in tensors) + sum(3 * p.width * p.height for p in pictures)


def application(session: Session, hosts: list[str] | None = None) -> Starlette:
    """The page and its questions.

    Args:
        session: models and images.
        hosts: names under which the page may be asked for, so that no other page's scripts can; None for any.
    """

    def index(_request: Request) -> Response:
        headers = {"Content-Security-Policy": POLICY, "Cache-Control": "no-store"}
        return HTMLResponse(page.document(None), headers=headers)

    def known(_request: Request) -> Response:
        return JSONResponse({"models": session.names, "images": session.images()})

    async def upload(request: Request) -> Response:
        if request.headers.get("x-deformvit") is None:  # what a form on another page cannot send
            raise UserError("images are opened by the page itself")
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > UPLOAD:
                return _refused(f"larger than {UPLOAD // 1024**2} MiB", 413)
        name = request.query_params.get("name", "image")[:200]
        return JSONResponse({"id": await run_in_threadpool(session.open, bytes(body), name), "name": name})

    def asked(request: Request) -> Look:
        return session.look(
            request.query_params.get("image", ""), _number(request, "model"), _number(request, "scale", 1.0)
        )

    def see(request: Request) -> Response:
        image, model = request.query_params.get("image", ""), _number(request, "model")
        return JSONResponse(view.view(session.scales(image, model, _number(request, "scale", 1.0))))

    def picture(request: Request) -> Response:
        seen = asked(request)
        return Response(view.picture(seen), media_type="image/jpeg", headers={"Cache-Control": "no-store"})

    def attention(request: Request) -> Response:
        seen = asked(request)
        layer, query = _number(request, "layer"), _number(request, "query")
        if not 0 <= layer < len(seen.trace.layers):
            raise UserError(f"there is no layer {layer}; there are {len(seen.trace.layers)}")
        chosen = seen.trace.layers[layer]
        count = chosen.feature_hw[0] * chosen.feature_hw[1]
        if not 0 <= query < count:
            raise UserError(f"there is no query {query}; there are {count}")
        return JSONResponse(view.answer(chosen, query, seen.hw))

    routes = [
        Route("/", index),
        Route("/api/known", known),
        Route("/api/image", upload, methods=["POST"]),
        Route("/api/view", see),
        Route("/api/picture", picture),
        Route("/api/attention", attention),
    ]
    allowed = [Middleware(TrustedHostMiddleware, allowed_hosts=hosts)] if hosts else []

    async def refused(_request: Request, error: Exception) -> Response:
        return _refused(str(error), 422)

    return Starlette(routes=routes, middleware=allowed, exception_handlers={UserError: refused})


def _refused(message: str, status: int) -> Response:
    return JSONResponse({"error": message}, status_code=status)


def _number(request: Request, name: str, default: Any = None) -> Any:
    """A number of the question, an integer unless the default is not."""
    text = request.query_params.get(name)
    if text is None and default is not None:
        return default
    try:
        return type(default)(text) if default is not None else int(text or "")
    except ValueError:
        raise UserError(f"{name} must be a number, got {text!r}") from None


def serve(
    inputs: list[tuple[str, Any]], models: list[str], device: str, *, host: str, port: int, browser: bool,
    threshold: float,
) -> None:  # fmt: skip
    """Serve until interrupted.

    Args:
        inputs: names and files or decoded images to begin with.
        models: files or names of models.
        device: to compute on.
        host: address to listen at.
        port: to listen at; 0 for a free one.
        browser: open the page.
        threshold: detectors: score from which objects count.

    Raises:
        UserError: a port that is taken, a model or image that cannot be read.
    """
    session = Session(models, device, threshold)
    for name, source in inputs[:IMAGES]:
        session.open(source, Path(name).name)
    try:
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise UserError(f"cannot listen at {host}, port {port}: {error.strerror or error}") from error
    local = host in ("127.0.0.1", "localhost", "::1")
    address = f"http://{'[' + host + ']' if ':' in host else host}:{listening.getsockname()[1]}/"

    @contextlib.asynccontextmanager
    async def ready(_app: Starlette) -> AsyncIterator[None]:
        print(f"deformvit: {address}   (Ctrl+C ends it)", file=sys.stderr, flush=True)
        if browser:
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
        yield

    app = application(session, ["127.0.0.1", "localhost", "::1", "[::1]"] if local else None)
    app.router.lifespan_context = ready
    with listening:
        uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run(sockets=[listening])
