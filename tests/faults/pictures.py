"""Pictures in small files that would take seconds or gigabytes to decode."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

MAKERS: dict[str, Callable[[], bytes]] = {}


def _picture(name: str) -> Callable[[Callable[[], bytes]], Callable[[], bytes]]:
    def add(make: Callable[[], bytes]) -> Callable[[], bytes]:
        MAKERS[name] = make
        return make

    return add


def write_all(folder: Path) -> dict[str, Path]:
    """Write every picture into the folder; return the files by name."""
    folder.mkdir()
    made = {name: folder / name for name in MAKERS}
    for name, path in made.items():
        path.write_bytes(MAKERS[name]())
    return made


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width: int, height: int, *more: bytes, interlaced: bool = False) -> bytes:
    """Return a black PNG in greyscale, with the chunks `more` before its pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, interlaced)
    packer = zlib.compressobj(9)
    row, pixels = bytes(width + 1), b""
    rows = height if not interlaced else 2 * height
    at_once = max(1, (1 << 20) // len(row))
    for begin in range(0, rows, at_once):
        pixels += packer.compress(row * min(at_once, rows - begin))
    pixels += packer.flush()
    parts = (chunk(b"IHDR", header), *more, chunk(b"IDAT", pixels), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@_picture("1 x 25,000,000.png")
def tall_png() -> bytes:
    return _png(1, 25_000_000)


@_picture("25,000,000 x 1.png")
def wide_png() -> bytes:
    return _png(25_000_000, 1)


@_picture("5000 x 5000 interlaced.png")
def interlaced_png() -> bytes:
    return _png(5_000, 5_000, interlaced=True)


@_picture("60000 x 60000.png")
def huge_png() -> bytes:
    return _png(60_000, 3).replace(
        chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 3, 8, 0, 0, 0, 0)),
        chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)),
    )


@_picture("a million chunks.png")
def chunks_png() -> bytes:
    return _png(32, 32, chunk(b"teSt", b"") * 1_000_000)


@_picture("100,000 texts.png")
def texts_png() -> bytes:
    return _png(32, 32, chunk(b"tEXt", b"key\0text") * 100_000)


@_picture("texts that unpack to gigabytes.png")
def bomb_png() -> bytes:
    packed = zlib.compress(bytes(60_000_000), 9)
    return _png(32, 32, *[chunk(b"zTXt", b"key%d\0\0" % n + packed) for n in range(40)])


@_picture("a profile that unpacks to gigabytes.png")
def profile_png() -> bytes:
    packed = zlib.compress(bytes(500_000_000), 9)
    return _png(32, 32, chunk(b"iCCP", b"profile\0\0" + packed))


@_picture("1,000 scans.jpg")
def scans_jpeg() -> bytes:
    return _scans(2_000, 1_000)


@_picture("60 scans of 25 megapixels.jpg")
def large_scans_jpeg() -> bytes:
    return _scans(5_000, 54)  # and its own six


def _scans(side: int, more: int) -> bytes:
    """Return a progressive JPEG with one of its scans repeated."""
    file = io.BytesIO()
    Image.new("L", (side, side), 100).save(file, "JPEG", progressive=True)
    content = file.getvalue()
    begin = content.index(b"\xff\xda", content.index(b"\xff\xda") + 2)  # start of the second scan
    following = content.find(b"\xff\xda", begin + 2)
    return content[:begin] + content[begin:following] * more + content[begin:]


@_picture("65500 x 380.jpg")
def wide_jpeg() -> bytes:
    file = io.BytesIO()
    Image.new("L", (65_500, 380)).save(file, "JPEG")
    return file.getvalue()


@_picture("200,000 segments.jpg")
def segments_jpeg() -> bytes:
    file = io.BytesIO()
    Image.new("L", (32, 32)).save(file, "JPEG")
    content = file.getvalue()
    return content[:2] + b"\xff\xe5\0\x03x" * 200_000 + content[2:]


@_picture("a million tiny tiles.tif")
def tiles_tiff() -> bytes:
    return _tiff(4_000, 4_000, tile=4)


@_picture("a million strips.tif")
def strips_tiff() -> bytes:
    return _tiff(1, 1_000_000, tile=0)


def _tiff(width: int, height: int, tile: int) -> bytes:
    """Return a TIFF of one bit per pixel whose tiles (rows if `tile` is 0) share a few bytes."""
    count = (width // tile) * (height // tile) if tile else height
    data = bytes(tile * -(-tile // 8) or 1)
    header_size, entries = 8, 12
    tables = header_size + 2 + 12 * entries + 4
    begins, sizes, at = tables, tables + 4 * count, tables + 8 * count
    place = ((322, 3, 1, tile), (323, 3, 1, tile), (324, 4, count, begins), (325, 4, count, sizes))
    rows = ((273, 4, count, begins), (278, 3, 1, 1), (279, 4, count, sizes))
    tags = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 1), (259, 3, 1, 1), (262, 3, 1, 1),
        (277, 3, 1, 1), (284, 3, 1, 1), *(place if tile else rows),
    ]  # fmt: skip
    tags += [(305, 2, 1, 0)] * (entries - len(tags))
    table = b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
    where = np.full(count, at, "<u4").tobytes() + np.full(count, len(data), "<u4").tobytes()
    return b"II*\0" + struct.pack("<IH", header_size, entries) + table + bytes(4) + where + data


@_picture("100,000 pages.tif")
def pages_tiff() -> bytes:
    count, size = 100_000, 2 + 12 * 8 + 4
    pixel = 8 + count * size
    tags = ((256, 1), (257, 1), (258, 8), (259, 1), (262, 1), (273, pixel), (278, 1), (279, 1))
    table = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    following = [*(8 + n * size for n in range(1, count)), 0]
    head = struct.pack("<H", len(tags)) + table
    pages = b"".join(head + struct.pack("<I", at) for at in following)
    return b"II*\0" + struct.pack("<I", 8) + pages + b"\0"


@_picture("a page that follows itself.tif")
def loop_tiff() -> bytes:
    tags = ((256, 1), (257, 1), (258, 8), (259, 1), (262, 1), (273, 110), (278, 1), (279, 1))
    table = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    page = struct.pack("<H", len(tags)) + table + struct.pack("<I", 8)
    return b"II*\0" + struct.pack("<I", 8) + page + bytes(8)


@_picture("20,000 frames.gif")
def frames_gif() -> bytes:
    file = io.BytesIO()
    Image.new("P", (32, 32)).save(file, "GIF")
    content = file.getvalue()
    begin = content.index(b",", 13)
    frame = content[begin:-1]
    return content[:begin] + frame * 20_000 + b";"


@_picture("5000 x 5000.gif")
def large_gif() -> bytes:
    file = io.BytesIO()
    Image.new("P", (5_000, 5_000)).save(file, "GIF")
    return file.getvalue()


@_picture("40 frames of 1000 x 1000.webp")
def frames_webp() -> bytes:
    frames = [Image.new("L", (1_000, 1_000), n) for n in range(40)]
    file = io.BytesIO()
    frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:], quality=0, method=0)
    return file.getvalue()


@_picture("20,000 x 1,250 run-length.bmp")
def runs_bmp() -> bytes:
    width, height = 20_000, 1_250
    palette = bytes(1024)
    rows = (b"\xff\0" * (width // 255) + bytes([width % 255, 0]) + b"\0\0") * height + b"\0\1"
    offset = 14 + 40 + len(palette)
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(rows), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", offset + len(rows), 0, 0, offset) + info + palette + rows
