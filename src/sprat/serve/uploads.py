"""Uploaded files of a request, and pictures in responses."""

import base64
import errno
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from PIL import Image
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from torch import Tensor

from sprat.data.imageset import to_channels
from sprat.serve.limits import Limits
from sprat.serve.refusals import Refused

FIELD = "images"
MAX_TEXT_FIELDS = 100  # none is used, but a form may contain some


@asynccontextmanager
async def read_uploads(request: Request, limits: Limits) -> AsyncIterator[list[UploadFile]]:
    """Yield the files of the field `images`, in memory or, from 1 MiB, on disk; delete them at the
    end.

    Raises:
        Refused: the body is not a multipart form, contains no file in the field or too many, or
            cannot be stored.
    """
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        words = (
            "The body is not a form. Send the pictures as multipart/form-data, in the field "
            f"{FIELD!r}."
        )
        raise Refused(415, "form", words)
    try:
        form = await request.form(max_files=limits.max_files, max_fields=MAX_TEXT_FIELDS)
    except UnicodeError as error:
        raise Refused(400, "form", "The form's charset cannot be read. Use UTF-8.") from error
    except HTTPException as error:
        if error.detail.startswith("Too many files"):
            words = (
                f"A request may contain at most {limits.max_files} pictures. Send the others in "
                "another request."
            )
            raise Refused(413, "files", words) from error
        raise Refused(400, "form", f"The form cannot be read: {error.detail}") from error
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            words = "The server has too many open files. Try again in a minute."
            raise Refused(503, "busy", words) from error
        words = (
            "The server cannot store the upload, because its folder for temporary files is full "
            "or missing."
        )
        raise Refused(507, "storage", f"{words} Send smaller pictures.") from error
    try:
        uploads = [part for part in form.getlist(FIELD) if isinstance(part, UploadFile)]
        if not uploads:
            raise Refused(400, "form", f"There is no file in the field {FIELD!r}. Send one.")
        yield uploads
    finally:
        await form.close()


def png(pixels: Tensor) -> bytes:
    """Return pixels (uint8, C x H x W) as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(to_channels(pixels, 3).permute(1, 2, 0).numpy()).save(file, "PNG")
    return file.getvalue()


def data_uri(pixels: Tensor) -> str:
    """Return pixels (uint8, C x H x W) as a PNG in a data URI."""
    return f"data:image/png;base64,{base64.b64encode(png(pixels)).decode()}"
