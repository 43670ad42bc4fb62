"""The interface: predictions, health, metrics, their description, and the page."""

import asyncio
import heapq
import json
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from torch import Tensor

from sprat import __version__
from sprat.checkpoint import Model
from sprat.classifier import Classifier
from sprat.errors import SpratError
from sprat.serve.batching import Batcher
from sprat.serve.decoding import Decoders
from sprat.serve.guard import CLIENT_LEFT, HEALTH_PATH, LIMITED_PATH
from sprat.serve.limits import Limits
from sprat.serve.metrics import Metrics
from sprat.serve.pages import PAGE, Fixed, fixed_answers
from sprat.serve.refusals import Refused
from sprat.serve.uploads import FIELD, data_uri, read_uploads

HEALTHY_WITHIN = 5.0  # seconds
TOP = 3  # classes, unless a request says otherwise
FLAGS = {"true": True, "false": False}
LOGGER = logging.getLogger(__name__)


def make_app(
    model: Model, place: Path, limits: Limits, metrics: Metrics, device: str = "auto"
) -> Starlette:
    """The application around one model, to be wrapped in a `Guard`.

    Args:
        model: what `load_model` gives, read from `place`.

    Raises:
        SpratError: the machine has no such device, or gives no process to decode pictures.
    """
    classifier = Classifier(model, device)
    with suppress(Exception):  # the network answers without its kernels too
        classifier.prepare()
    classifier(_nothing(model))  # the first answer is slow
    batcher = Batcher(classifier, limits.max_batch, metrics.batches.observe)
    metrics.queue.set_function(batcher.waiting)
    decoders = Decoders(model.side, limits)

    async def ask(pixels: Tensor) -> list[float]:
        """Class probabilities, K.

        Raises:
            Refused: the model does not answer, or not with numbers.
        """
        try:
            probabilities = await batcher.submit(pixels)
        except SpratError as error:
            raise Refused(422, "model", str(error)) from error
        except Exception as error:  # out of memory, say
            LOGGER.exception("the model failed")
            raise Refused(503, "model", "the model failed; the server's log says why") from error
        if not all(map(math.isfinite, probabilities)):
            words = "the model gives no probabilities for this picture; try another"
            raise Refused(422, "model", words)
        return probabilities

    async def look_at(upload: UploadFile, client: str, top: int, seen: bool) -> tuple[int, Any]:
        """The status that the file alone would have, and what it shows."""
        # some charsets decode to what JSON cannot hold
        name = (upload.filename or "").encode(errors="replace").decode()
        picture: dict[str, Any] = {"name": name}
        try:
            pixels = await decoders.decode(upload.file, upload.size or 0, client)
            probabilities = await ask(pixels)
        except Refused as refused:
            metrics.refused(refused.reason)
            return refused.status, picture | {"error": refused.message}
        picture["predictions"] = [
            {"class": model.classes[label], "probability": min(max(probabilities[label], 0), 1)}
            for label in heapq.nlargest(top, range(len(probabilities)), probabilities.__getitem__)
        ]
        if seen:
            picture["seen"] = await asyncio.to_thread(data_uri, pixels)
        return 200, picture

    async def predict(request: Request) -> Response:
        top, seen = _options(request)
        client = request.client.host if request.client else ""
        async with read_uploads(request, limits) as uploads:
            began = time.perf_counter()
            looked = await asyncio.gather(*(look_at(each, client, top, seen) for each in uploads))
        milliseconds = round(1000 * (time.perf_counter() - began), 2)
        statuses, pictures = {status for status, _ in looked}, [picture for _, picture in looked]
        if 200 in statuses:
            answer = {"model": model.name, "pictures": pictures, "milliseconds": milliseconds}
            return JSONResponse(answer)
        error = pictures[0]["error"] if len(pictures) == 1 else "none of the files can be read"
        refusal = {"error": error, "pictures": pictures}
        return JSONResponse(refusal, statuses.pop() if len(statuses) == 1 else 422)

    async def healthz(request: Request) -> Response:
        try:
            async with asyncio.timeout(HEALTHY_WITHIN):
                await ask(_nothing(model))
        except Exception as error:  # whatever it is, the answer is no
            raise Refused(503, "unhealthy", "the model does not answer") from error
        return JSONResponse({"status": "ok", "model": model.name})

    async def read_metrics(request: Request) -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, Refused)
        metrics.refused(error.reason)
        return error.response()

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        decoders.close()
        batcher.close()

    decoders.start()
    openapi = describe(model, limits)
    fixed = fixed_answers(model, place, openapi)
    fixed["/openapi.json"] = Fixed(json.dumps(openapi).encode(), "application/json")
    app = Starlette(
        routes=[
            Route(LIMITED_PATH, predict, methods=["POST"]),
            Route(HEALTH_PATH, healthz),
            Route("/metrics", read_metrics),
            *(Route(path, _sender(answer)) for path, answer in fixed.items()),
        ],
        exception_handlers={**HANDLERS, Refused: refused},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # to an address made of the request's own Host
    return app


def _nothing(model: Model) -> Tensor:
    """A picture to ask about, only to be answered."""
    return torch.zeros(3, model.side, model.side, dtype=torch.uint8)


def describe(model: Model, limits: Limits) -> dict[str, Any]:
    """The interface in OpenAPI's terms."""
    openapi: dict[str, Any] = json.loads((PAGE / "openapi.json").read_text(encoding="utf-8"))
    openapi["info"] |= {
        "version": __version__,
        "summary": f"{model.name} tells apart {', '.join(model.classes)}.",
    }
    body = openapi["paths"][LIMITED_PATH]["post"]["requestBody"]
    schema = body["content"]["multipart/form-data"]["schema"]
    schema["properties"][FIELD]["maxItems"] = limits.max_files
    return openapi


def _options(request: Request) -> tuple[int, bool]:
    """How many classes a request asks for, and whether for what the network sees."""
    top, seen = request.query_params.get("top", str(TOP)), request.query_params.get("seen", "false")
    if not (top.isascii() and top.isdigit() and top.strip("0")):
        raise Refused(422, "option", f"top is {top[:20]!r}, expected a whole number above 0")
    if seen not in FLAGS:
        raise Refused(422, "option", f"seen is {seen[:20]!r}, expected true or false")
    return int(top.lstrip("0")[:9]), FLAGS[seen]  # more classes than any model has


def _sender(fixed: Fixed) -> Callable[[Request], Awaitable[Response]]:
    async def send(request: Request) -> Response:
        return Response(fixed.content, 200, {"Cache-Control": "no-cache"}, fixed.media_type)

    return send


async def _no_such_thing(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    words = {404: "there is nothing here; see /docs", 405: "not by this method; see /docs"}
    message = words.get(error.status_code, error.detail)
    return JSONResponse({"error": message}, error.status_code, error.headers)


async def _left(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_LEFT)


async def _broken(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "sprat failed; its log says where"}, 500)


HANDLERS: dict[Any, Callable[[Request, Exception], Awaitable[Response]]] = {
    HTTPException: _no_such_thing,
    ClientDisconnect: _left,
    Exception: _broken,
}
