"""The interface: predictions, health, metrics, their description, and the page."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, Field
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp
from torch import Tensor

from sprat import __version__
from sprat.checkpoint import Model
from sprat.predict import Classifier
from sprat.serve.batching import Batcher
from sprat.serve.guard import CLIENT_LEFT, Guard
from sprat.serve.limits import Limits
from sprat.serve.metrics import Metrics
from sprat.serve.pages import Fixed, fixed_answers
from sprat.serve.refusals import Refused
from sprat.serve.uploads import FIELD, data_uri, decode, read_uploads

HEALTHY_WITHIN = 5.0  # seconds
REFUSALS = {
    400: "The body is no form that can be read, or its field holds no file.",
    408: "The body came too slowly.",
    413: "Too many bytes, files, or pixels of a picture.",
    415: "No multipart form, or no JPEG, PNG, WebP, GIF, BMP or TIFF picture.",
    422: "Empty or damaged files, no two alike unreadable, or an option that is wrong.",
    429: "Too many requests of this client are under way.",
    503: "Too many requests of all clients are under way.",
}


class Prediction(BaseModel):
    name: str = Field(serialization_alias="class")
    probability: float = Field(ge=0, le=1)


class Picture(BaseModel):
    """One file: what it shows, or why it could not be read."""

    name: str = Field(description="The file's, as it was sent.")
    predictions: list[Prediction] | None = Field(
        default=None, description="The most probable first."
    )
    seen: str | None = Field(
        default=None, description="What the network sees: a PNG as a data URI."
    )
    error: str | None = None


class Answer(BaseModel):
    model: str
    pictures: list[Picture] = Field(description="In the order of the files.")
    milliseconds: float = Field(description="Decoding and the network, without the upload.")


class Refusal(BaseModel):
    """Why there is no answer, and the remedy."""

    error: str
    pictures: list[Picture] | None = Field(
        default=None, description="Where each file has its reason."
    )


class Health(BaseModel):
    status: str
    model: str


def make_app(model: Model, place: Path, limits: Limits, device: str = "auto") -> ASGIApp:
    """The application around one model.

    Args:
        model: what `load_model` gives, read from `place`.

    Raises:
        SpratError: the machine has no such device.
    """
    metrics = Metrics()
    batcher = Batcher(Classifier(model, device), limits.max_batch, metrics.batches.observe)
    metrics.queue.set_function(batcher.waiting)
    decoders = ThreadPoolExecutor(limits.decoders, "decoder")

    async def ask(pixels: Tensor) -> Tensor:
        return await asyncio.wrap_future(batcher.submit(pixels))

    async def ask_about_nothing() -> None:
        await ask(torch.zeros(3, model.side, model.side, dtype=torch.uint8))

    async def look_at(upload: UploadFile, top: int, seen: bool) -> tuple[int, Picture]:
        """The status that the file alone would have, and what it shows."""
        loop = asyncio.get_running_loop()
        # some charsets decode to what JSON cannot hold
        name = (upload.filename or "").encode(errors="replace").decode()
        try:
            pixels = await loop.run_in_executor(
                decoders, decode, upload.file, model.side, limits.max_pixels
            )
        except Refused as refused:
            metrics.refused(refused.reason)
            return refused.status, Picture(name=name, error=refused.message)
        probabilities, labels = (await ask(pixels)).clamp(0, 1).topk(min(top, len(model.classes)))
        predictions = [
            Prediction(name=model.classes[label], probability=probability)
            for probability, label in zip(probabilities.tolist(), labels.tolist(), strict=True)
        ]
        uri = await loop.run_in_executor(decoders, data_uri, pixels) if seen else None
        return 200, Picture(name=name, predictions=predictions, seen=uri)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await ask_about_nothing()  # the first answer is slow
        yield
        batcher.close()
        decoders.shutdown()

    app = FastAPI(
        title="sprat",
        version=__version__,
        summary=f"{model.name} tells apart {', '.join(model.classes)}.",
        docs_url=None,  # both would load their scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
        exception_handlers=HANDLERS,
    )
    app.state.metrics = metrics

    @app.post(
        "/predict",
        response_model=Answer,
        response_model_exclude_none=True,
        response_description="What was read.",
        responses={
            status: {"model": Refusal, "description": REFUSALS[status]} for status in REFUSALS
        },
        openapi_extra={"requestBody": _form(limits)},
    )
    async def predict(
        request: Request,
        top: Annotated[int, Query(ge=1, description="Classes to give for each picture.")] = 3,
        seen: Annotated[bool, Query(description="Also give what the network sees.")] = False,
    ) -> Any:
        """What each picture shows.

        A file that cannot be read has an error in place of predictions; where none can be read,
        the status says so too.
        """
        async with read_uploads(request, limits) as uploads:
            began = time.perf_counter()
            looked = await asyncio.gather(*(look_at(upload, top, seen) for upload in uploads))
        milliseconds = round(1000 * (time.perf_counter() - began), 2)
        statuses, pictures = {status for status, _ in looked}, [picture for _, picture in looked]
        if 200 in statuses:
            return Answer(model=model.name, pictures=pictures, milliseconds=milliseconds)
        error = pictures[0].error if len(pictures) == 1 else "none of the files can be read"
        refusal = Refusal(error=error or "", pictures=pictures).model_dump(exclude_none=True)
        return JSONResponse(refusal, statuses.pop() if len(statuses) == 1 else 422)

    @app.get(
        "/healthz",
        response_description="It does.",
        responses={503: {"model": Refusal, "description": "It does not."}},
    )
    async def healthz() -> Health:
        """Whether the model answers."""
        try:
            async with asyncio.timeout(HEALTHY_WITHIN):
                await ask_about_nothing()
        except Exception as error:  # whatever it is, the answer is no
            raise Refused(503, "unhealthy", "the model does not answer") from error
        return Health(status="ok", model=model.name)

    @app.get(
        "/metrics",
        response_class=Response,
        responses={200: {"description": "Counters.", "content": {CONTENT_TYPE_LATEST: {}}}},
    )
    async def read_metrics() -> Response:
        """What was counted, in Prometheus's format."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    for path, fixed in fixed_answers(model, place, app.openapi()).items():
        app.add_api_route(path, _sender(fixed), methods=["GET", "HEAD"], include_in_schema=False)
    return Guard(app, limits, metrics)


def _form(limits: Limits) -> dict[str, Any]:
    """The body of a prediction's request, for its description."""
    file = {"type": "string", "format": "binary"}
    files = {"type": "array", "items": file, "minItems": 1, "maxItems": limits.max_files}
    schema = {"type": "object", "properties": {FIELD: files}, "required": [FIELD]}
    return {"required": True, "content": {"multipart/form-data": {"schema": schema}}}


def _sender(fixed: Fixed) -> Callable[[], Awaitable[Response]]:
    async def send() -> Response:
        return Response(fixed.content, 200, {"Cache-Control": "no-cache"}, fixed.media_type)

    return send


async def _refused(request: Request, error: Refused) -> Response:
    request.app.state.metrics.refused(error.reason)
    return error.response()


async def _wrong_option(request: Request, error: RequestValidationError) -> Response:
    words = "; ".join(f"{each['loc'][-1]}: {each['msg']}" for each in error.errors())
    return await _refused(request, Refused(422, "option", words))


async def _no_such_thing(request: Request, error: HTTPException) -> Response:
    words = {404: "there is nothing here; see /docs", 405: "not by this method; see /docs"}
    message = words.get(error.status_code, error.detail)
    return JSONResponse({"error": message}, error.status_code, error.headers)


async def _left(request: Request, error: ClientDisconnect) -> Response:
    return Response(status_code=CLIENT_LEFT)


async def _broken(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "sprat failed; its log says where"}, 500)


HANDLERS: dict[Any, Any] = {
    Refused: _refused,
    RequestValidationError: _wrong_option,
    HTTPException: _no_such_thing,
    ClientDisconnect: _left,
    Exception: _broken,
}
