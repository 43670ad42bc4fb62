"""The HTTP API: predictions, health, metrics, its description, and the page."""

import asyncio
import heapq
import json
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

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
from sprat.data.imageset import to_channels
from sprat.errors import SpratError
from sprat.figures.overlay import overlay
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
Answer = TypeVar("Answer")


def make_app(
    model: Model, place: Path, limits: Limits, metrics: Metrics, device: str = "auto"
) -> Starlette:
    """Return the application for one model, to be wrapped in a `Guard`.

    Args:
        model: model that `load_model` read from `place`.

    Raises:
        SpratError: the machine has no such device, or the processes that decode pictures cannot be
            started.
    """
    classifier = Classifier(model, device)
    with suppress(Exception):  # the network works without its kernels too
        classifier.prepare()
    classifier(_nothing(model))  # the first prediction is slow
    unexplained = _why_unexplained(classifier)
    batcher = Batcher(classifier, limits.max_batch, metrics.batches.observe)
    metrics.queue.set_function(batcher.waiting)
    decoders = Decoders(model.side, limits)

    async def answered(asked: Awaitable[Answer]) -> Answer:
        """Return the model's result.

        Raises:
            Refused: the model fails.
        """
        try:
            return await asked
        except SpratError as error:
            raise Refused(422, "model", str(error)) from error
        except Exception as error:  # out of memory, say
            LOGGER.exception("the model failed")
            raise Refused(503, "model", "The model failed. See the server's log.") from error

    async def ask(pixels: Tensor) -> list[float]:
        """Return class probabilities, K floats.

        Raises:
            Refused: the model fails or gives values that are not finite.
        """
        probabilities = await answered(batcher.submit(pixels))
        if not all(map(math.isfinite, probabilities)):
            words = "The model returns no probabilities for this picture. Try another one."
            raise Refused(422, "model", words)
        return probabilities

    async def look_at(upload: UploadFile, client: str, wanted: Options) -> tuple[int, Any]:
        """Return the status for the file alone, and its entry in the response."""
        # some charsets decode to characters that JSON does not support
        name = (upload.filename or "").encode(errors="replace").decode()
        picture: dict[str, Any] = {"name": name}
        try:
            decoded = await decoders.decode(upload.file, upload.size or 0, client)
            pixels = to_channels(decoded, model.channels)
            probabilities = await ask(pixels)
            labels = heapq.nlargest(
                wanted.top, range(len(probabilities)), probabilities.__getitem__
            )
            if wanted.where:
                found = await answered(batcher.explain(pixels, model.classes[labels[0]]))
        except Refused as refused:
            metrics.refused(refused.reason)
            return refused.status, picture | {"error": refused.message}
        picture["predictions"] = [
            {"class": model.classes[label], "probability": min(max(probabilities[label], 0), 1)}
            for label in labels
        ]
        if wanted.where:
            picture["where"] = found.where
            covered = overlay(pixels, found.map)
            picture["map"] = await asyncio.to_thread(data_uri, covered)
        if wanted.seen:
            picture["seen"] = await asyncio.to_thread(data_uri, pixels)
        return 200, picture

    async def predict(request: Request) -> Response:
        wanted = _options(request)
        if wanted.where and unexplained:
            raise Refused(422, "option", f"where is true, but {unexplained}")
        client = request.client.host if request.client else ""
        async with read_uploads(request, limits) as uploads:
            began = time.perf_counter()
            looked = await asyncio.gather(*(look_at(each, client, wanted) for each in uploads))
        milliseconds = round(1000 * (time.perf_counter() - began), 2)
        statuses, pictures = {status for status, _ in looked}, [picture for _, picture in looked]
        if 200 in statuses:
            answer = {"model": model.name, "pictures": pictures, "milliseconds": milliseconds}
            return JSONResponse(answer)
        error = pictures[0]["error"] if len(pictures) == 1 else "None of the files can be read."
        refusal = {"error": error, "pictures": pictures}
        return JSONResponse(refusal, statuses.pop() if len(statuses) == 1 else 422)

    async def healthz(request: Request) -> Response:
        try:
            async with asyncio.timeout(HEALTHY_WITHIN):
                await ask(_nothing(model))
        except Exception as error:  # any error: the model is not healthy
            words = "The model does not answer. See the server's log."
            raise Refused(503, "unhealthy", words) from error
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
    fixed = fixed_answers(model, place, openapi, explains=unexplained is None)
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
    app.router.redirect_slashes = False  # it would use the request's Host header
    return app


def _why_unexplained(classifier: Classifier) -> str | None:
    """Return why the model cannot be explained, or None if it can."""
    try:
        classifier.check_explains()
    except SpratError as error:
        return str(error)
    return None


def _nothing(model: Model) -> Tensor:
    """Return a blank picture for trying the model."""
    return torch.zeros(model.channels, model.side, model.side, dtype=torch.uint8)


def describe(model: Model, limits: Limits) -> dict[str, Any]:
    """Return the OpenAPI description of the API."""
    openapi: dict[str, Any] = json.loads((PAGE / "openapi.json").read_text(encoding="utf-8"))
    openapi["info"] |= {
        "version": __version__,
        "summary": f"{model.name} classifies {', '.join(model.classes)}.",
    }
    body = openapi["paths"][LIMITED_PATH]["post"]["requestBody"]
    schema = body["content"]["multipart/form-data"]["schema"]
    schema["properties"][FIELD]["maxItems"] = limits.max_files
    return openapi


class Options(NamedTuple):
    """Options of a request."""

    top: int  # number of classes
    seen: bool  # return what the network sees
    where: bool  # return where in it the evidence for the first class is


def _options(request: Request) -> Options:
    top = request.query_params.get("top", str(TOP))
    if not (top.isascii() and top.isdigit() and top.strip("0")):
        words = f"top is {top[:20]!r}, expected a whole number above 0. Give another number."
        raise Refused(422, "option", words)
    most = int(top.lstrip("0")[:9])  # more classes than any model has
    return Options(most, _flag(request, "seen"), _flag(request, "where"))


def _flag(request: Request, name: str) -> bool:
    value = request.query_params.get(name, "false")
    if value not in FLAGS:
        words = f"{name} is {value[:20]!r}, expected true or false. Give one of these."
        raise Refused(422, "option", words)
    return FLAGS[value]


def _sender(fixed: Fixed) -> Callable[[Request], Awaitable[Response]]:
    async def send(request: Request) -> Response:
        return Response(fixed.content, 200, {"Cache-Control": "no-cache"}, fixed.media_type)

    return send


async def _no_such_thing(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    words = {
        404: "There is nothing at this address. See /docs.",
        405: "This address does not support the method. See /docs.",
    }
    message = words.get(error.status_code, error.detail)
    return JSONResponse({"error": message}, error.status_code, error.headers)


async def _left(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_LEFT)


async def _broken(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "sprat failed. Its log says where."}, 500)


HANDLERS: dict[Any, Callable[[Request, Exception], Awaitable[Response]]] = {
    HTTPException: _no_such_thing,
    ClientDisconnect: _left,
    Exception: _broken,
}
