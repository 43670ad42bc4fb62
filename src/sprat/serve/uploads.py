"""What a client sent: the parts of its body, and the pictures in them."""

import base64
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from torch import Tensor

from sprat.data.picture import fit, upright
from sprat.serve.limits import Limits
from sprat.serve.refusals import Refused

FIELD = "images"
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # no reader of Pillow's others is reached
JPEG_START, SCAN_START = b"\xff\xd8", b"\xff\xda"
MOST_SCANS = 64  # each goes over the whole picture; a few bytes of it could cost seconds
MAX_TEXT_FIELDS = 100  # none is used; a form may send some beside its files


@asynccontextmanager
async def read_uploads(request: Request, limits: Limits) -> AsyncIterator[list[UploadFile]]:
    """The files of the field `images`, in memory or, from 1 MiB on, on disk; gone at the end.

    Raises:
        Refused: the body is no multipart form, or holds no file there or too many.
    """
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        words = f"send the pictures as multipart/form-data, in the field {FIELD!r}"
        raise Refused(415, "form", words)
    try:
        form = await request.form(max_files=limits.max_files, max_fields=MAX_TEXT_FIELDS)
    except UnicodeError as error:
        raise Refused(400, "form", "the form's charset cannot be read; use UTF-8") from error
    except HTTPException as error:
        if error.detail.startswith("Too many files"):
            words = f"a request may hold {limits.max_files} pictures; send the others in another"
            raise Refused(413, "files", words) from error
        raise Refused(400, "form", f"the form cannot be read: {error.detail}") from error
    try:
        uploads = [part for part in form.getlist(FIELD) if isinstance(part, UploadFile)]
        if not uploads:
            raise Refused(400, "form", f"there is no file in the field {FIELD!r}; send one")
        yield uploads
    finally:
        await form.close()


def decode(file: BinaryIO, side: int, max_pixels: int) -> Tensor:
    """A picture as the network is to see it: uint8, 3 x side x side; an animation's first frame.

    Raises:
        Refused: it is empty, of no format that is read, too large, or damaged.
    """
    content = file.read()
    if not content:
        raise Refused(422, "empty", "the file is empty")
    if content.startswith(JPEG_START) and content.count(SCAN_START) > MOST_SCANS:
        raise Refused(422, "scans", f"a JPEG of more than {MOST_SCANS} scans; save it anew")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise Image.DecompressionBombError
            image.load()
            return fit(upright(image), side)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        words = f"the picture has too many pixels; make it smaller, at most {max_pixels:,} in all"
        raise Refused(413, "pixels", words) from error
    except UnidentifiedImageError as error:
        words = "this is no picture that can be read; send JPEG, PNG, WebP, GIF, BMP or TIFF"
        raise Refused(415, "no picture", words) from error
    except Exception as error:  # a damaged file raises anything
        raise Refused(422, "damaged", "the picture is damaged or cut off") from error


def png(pixels: Tensor) -> bytes:
    """uint8, 3 x H x W, as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(file, "PNG")
    return file.getvalue()


def data_uri(pixels: Tensor) -> str:
    """The same, for an image's address in a page."""
    return f"data:image/png;base64,{base64.b64encode(png(pixels)).decode()}"
