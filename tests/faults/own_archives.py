"""Hostile archives of pictures: paths outside, links, devices, clashing names, bombs, damage."""

import gzip
import io
import random
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from faults.cases import Kind
from faults.own import Ends, Variant, flip, kind
from faults.sound import Sound
from faults.world import World

OUTSIDE = (
    "../x.png",
    "a/../../x.png",
    "/etc/x.png",
    "//etc/x.png",
    "C:/x.png",
    "C:x.png",
    "..",
    "\\\\server\\share\\x.png",
    "..\\x.png",
    "C:\\x.png",
    "./../x.png",
    "class-0/..",
)
HARMLESS = (
    "class-0/ ",
    "class-0/a:b",
    "class-0/CON",
    "class-0/x.",
    "class-0/\x1b[31m",
    "class-0/\u202ex",
    "class-0/-rf",
    "class-0/a\nb",
    "class-0/" + "x" * 251,
    "class-0/é",
    "class-0/e\u0301",
    "./class-0/x",
    "class-0//x",
    "class-0/0.PNG.",
    "Class-0/0",
    "class-0/=1+1",
)
IMPOSSIBLE = ("class-0/" + "x" * 300, "a/" * 600 + "x.png", "class-0/" + "é" * 200)


def archives(world: World) -> Kind:
    """Archives with something wrong or odd, for every command that reads archives."""
    sound = Sound(world)
    variants = [*_zips(sound), *_tars(sound), *_damaged(sound)]
    return kind(world, sound, variants)


def _variant(name: str, file: str, ends: Ends, make: Callable[[random.Random], bytes]) -> Variant:
    def write(folder: Path, rng: random.Random) -> Path:
        (folder / file).write_bytes(make(rng))
        return folder / file

    return Variant(f"{file[1:]}: {name}", write, ends)


def _damaged(sound: Sound) -> Iterator[Variant]:
    """Yield archives of every format: intact, cut off, with changed bits, or with other content."""
    for suffix in (".zip", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar"):
        whole = sound.packed(f".{suffix.rpartition('.')[2]}")
        ends: Ends = "any" if suffix == ".tar" else "damaged"  # tar has no checksums of its files
        yield _variant("as it should be", f"a{suffix}", "same", lambda r, c=whole: c)
        yield _variant("in capitals", f"a{suffix.upper()}", "same", lambda r, c=whole: c)
        yield _variant("cut", f"a{suffix}", "damaged", lambda r, c=whole: c[: r.randrange(len(c))])
        for bits in (1, 1, 3):
            yield _variant(
                f"{bits} bits changed",
                f"a{suffix}",
                ends,
                lambda r, c=whole, b=bits: flip(c, r, b),
            )
        yield _variant("then zeros", f"a{suffix}", "any", lambda r, c=whole: c + bytes(1_000))
        yield _variant("then nonsense", f"a{suffix}", "any", lambda r, c=whole: c + r.randbytes(99))
        yield _variant("twice", f"a{suffix}", "any", lambda r, c=whole: c + c)
        yield _variant("empty", f"a{suffix}", "refused", lambda r: b"")
        yield _variant("nonsense", f"a{suffix}", "refused", lambda r: r.randbytes(5_000))
        yield _variant("zeros", f"a{suffix}", "refused", lambda r: bytes(10_240))
        for other in (".zip", ".gz", ".xz", ".parquet"):
            if not suffix.endswith(other):
                content = b"PAR1" if other == ".parquet" else sound.packed(other)
                may = suffix.startswith(".tar") and other in (".gz", ".xz")
                yield _variant(
                    f"a {other}", f"a{suffix}", "same" if may else "refused", lambda r, c=content: c
                )
    for magic in (
        b"7z\xbc\xaf\x27\x1c\0\4",
        b"Rar!\x1a\7\1\0",
        b"\x28\xb5\x2f\xfd",
        b"\x89PNG\r\n",
    ):
        for suffix in (".zip", ".tar"):
            yield _variant(f"{magic!r}", f"a{suffix}", "refused", lambda r, m=magic: m + bytes(600))


# --- zip ----------------------------------------------------------------------------------------


def _zip(sound: Sound, *members: tuple[str, bytes], **attributes: Any) -> bytes:
    """Return a zip of the intact pictures and `members`, whose entries have these attributes."""
    file = io.BytesIO(sound.packed(".zip"))
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as packed:
        for name, content in members:
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            for key, value in attributes.items():
                setattr(info, key, value)
            packed.writestr(info, content)
    return file.getvalue()


def _patched(content: bytes, signature: bytes, at: int, form: str, value: int) -> bytes:
    """Return a zip with one field changed, in the last record that has this signature."""
    changed = bytearray(content)
    struct.pack_into(form, changed, changed.rindex(signature) + at, value)
    return bytes(changed)


def _zips(sound: Sound) -> Iterator[Variant]:
    picture = (sound.folder / "class-0/0.png").read_bytes()

    def variant(name: str, ends: Ends, make: Callable[[], bytes]) -> Variant:
        return _variant(name, "a.zip", ends, lambda rng: make())

    for name in (*OUTSIDE, *IMPOSSIBLE):
        yield variant(f"{name!r:.40}", "refused", lambda n=name: _zip(sound, (n, picture)))
    for name in HARMLESS:
        yield variant(f"{name!r:.40}", "used", lambda n=name: _zip(sound, (f"{n}.png", picture)))
    for bits in (stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK):

        def special(bits: int = bits) -> bytes:
            return _zip(
                sound, ("class-0/x.png", b"/etc/passwd"), external_attr=(bits | 0o777) << 16
            )

        yield variant(f"of mode {bits:o}", "refused", special)
    yield variant(
        "a link as a class",
        "refused",
        lambda: _zip(sound, ("class-9", b"/tmp"), external_attr=(stat.S_IFLNK | 0o777) << 16),
    )
    yield variant(
        "set-user-id",
        "used",
        lambda: _zip(
            sound, ("class-0/x.png", picture), external_attr=(stat.S_IFREG | 0o6777) << 16
        ),
    )
    yield variant("twice", "refused", lambda: _zip(sound, ("class-0/0.png", picture)))
    yield variant("twice by another way", "refused", lambda: _zip(sound, ("class-0/./0.png", b"")))
    yield variant("a file that is a folder", "refused", lambda: _zip(sound, ("class-0", b"")))
    yield variant(
        "a folder that is a file", "refused", lambda: _zip(sound, ("class-0/0.png/x", b""))
    )
    yield variant(
        "names that differ in case", "used", lambda: _zip(sound, ("CLASS-0/0.png", picture))
    )
    yield variant("sprat's own file", "same", lambda: _zip(sound, (".sprat.json", b"[1, 1]")))
    yield variant(
        "a name with NUL",
        "any",
        lambda: _zip(sound, ("class-0/NNN.png", picture)).replace(b"NNN", b"N\0N"),
    )
    yield variant(
        "a name that is no UTF-8",
        "refused",
        lambda: _zip(sound, ("class-0/é.png", picture)).replace("é".encode(), b"\xff\xff"),
    )
    yield variant(
        "a name in an old code page",
        "used",
        lambda: _zip(sound, ("class-0/NN.png", picture)).replace(b"NN", b"\x81\x82"),
    )
    yield variant(
        "another name in its own header",
        "refused",
        lambda: _zip(sound, ("class-0/NN.png", picture)).replace(b"NN", b"XX", 1),
    )
    yield variant(
        "macOS's own",
        "same",
        lambda: _zip(sound, ("__MACOSX/class-0/._0.png", b"x"), ("__MACOSX/._class-0", b"x")),
    )
    yield variant(
        "an archive in it", "same", lambda: _zip(sound, ("more.zip", sound.packed(".zip")))
    )
    yield variant(
        "an archive alone in it", "refused", lambda: _alone(("set/more.zip", sound.packed(".zip")))
    )
    yield variant("one class", "refused", lambda: _alone(("one/0.png", picture)))
    yield variant("no picture", "refused", lambda: _alone(("a/x.txt", b"x"), ("b/y.txt", b"y")))
    yield variant(
        "a table of paths outside",
        "refused",
        lambda: _alone(("labels.csv", b"path,label\n/etc/passwd,a\n../x,b\n")),
    )
    yield variant(
        "a table without files",
        "refused",
        lambda: _alone(("labels.csv", b"path,label\nx.png,a\ny.png,b\n")),
    )
    yield variant("no shard", "refused", lambda: _alone(("train.parquet", b"PAR1")))
    yield variant("without members", "refused", lambda: b"PK\5\6" + bytes(18))
    last, first = b"PK\1\2", b"PK\3\4"
    whole = _zip(sound, ("class-0/x.png", picture))
    for name, signature, at, form, value in (
        ("encrypted", last, 8, "<H", 1),
        ("a method that nobody has", last, 10, "<H", 99),
        ("Deflate64", last, 10, "<H", 9),
        ("LZMA", last, 10, "<H", 14),
        ("stored", last, 10, "<H", 0),
        ("another checksum", last, 16, "<I", 1),
        ("a huge size", last, 24, "<I", 0xFFFFFFF0),
        ("a small size", last, 24, "<I", 3),
        ("no size", last, 24, "<I", 0),
        ("a huge packed size", last, 20, "<I", 0xFFFFFFF0),
        ("a small packed size", last, 20, "<I", 5),
        ("another disk", last, 34, "<H", 3),
        ("a huge offset", last, 42, "<I", 0xFFFFFFF0),
        ("the offset of another", last, 42, "<I", 0),
        ("zip64 without it", last, 24, "<I", 0xFFFFFFFF),
        ("a long name", last, 28, "<H", 0xFFFF),
        ("a long comment", last, 32, "<H", 0xFFFF),
        ("a version beyond all", last, 6, "<H", 255),
        ("a long name of its own", first, 26, "<H", 999),
        ("a directory elsewhere", b"PK\5\6", 16, "<I", 0),
        ("a huge directory", b"PK\5\6", 12, "<I", 0xFFFFFFF0),
        ("a small directory", b"PK\5\6", 12, "<I", 60),
        ("more members than there are", b"PK\5\6", 10, "<H", 9_999),
        ("several disks", b"PK\5\6", 4, "<H", 2),
    ):
        yield variant(
            name, "any", lambda s=signature, a=at, f=form, v=value: _patched(whole, s, a, f, v)
        )
    yield variant("a bomb of 10 GB", "refused", _bomb)
    yield variant(
        "a bomb that denies it",
        "refused",
        lambda: _patched(_alone(("a/x.png", bytes(64 << 20))), last, 24, "<I", 100),
    )
    yield variant("100,000 entries of one file", "refused", lambda: _overlapping(100_000))
    yield variant("4 million entries", "refused", lambda: _overlapping(4_000_000))
    yield variant(
        "65,535 files", "any", lambda: _alone(*((f"{n % 3}/{n}", b"") for n in range(65_535)))
    )


def _alone(*members: tuple[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in members:
            packed.writestr(name, content)
    return file.getvalue()


def _bomb() -> bytes:
    """Return a zip whose directory lists one small file ten times, each time as 1 GB."""
    part = _alone(("a/x.png", bytes(1 << 20)))
    changed = part
    for signature, at in ((b"PK\1\2", 24), (b"PK\3\4", 22)):
        changed = _patched(changed, signature, at, "<I", 1 << 30)
    return _directory(changed, [b"a/%d.png" % n for n in range(10)])


def _overlapping(count: int) -> bytes:
    """Return a zip whose entries have different names and share the content of one file."""
    return _directory(_alone(("a/x.png", b"x")), (b"a/%d" % n for n in range(count)))


def _directory(content: bytes, names: Any) -> bytes:
    """Return a zip of one file with a directory that lists it under each of these names."""
    begin = content.index(b"PK\1\2")
    entry = bytearray(content[begin : begin + 46])
    parts, count = [], 0
    for name in names:
        struct.pack_into("<H", entry, 28, len(name))
        parts.append(bytes(entry) + name)
        count += 1
    directory = b"".join(parts)
    most = min(count, 0xFFFF)
    tail = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, most, most, len(directory), begin, 0)
    return content[:begin] + directory + tail


# --- tar ----------------------------------------------------------------------------------------


def _tar(sound: Sound, name: str, content: bytes = b"", **attributes: Any) -> bytes:
    """Return a tar of the intact pictures and a member with these attributes."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", errors="surrogateescape") as tar:
        for path, _ in sound.rows:
            tar.add(sound.folder / path, path)
        member = tarfile.TarInfo(name)
        member.size = len(content)
        for key, value in attributes.items():
            setattr(member, key, value)
        tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


def _header(sound: Sound, **attributes: Any) -> bytes:
    """Return a tar of the intact pictures and the header of a member that has no content."""
    member = tarfile.TarInfo("class-0/x.png")
    for key, value in attributes.items():
        setattr(member, key, value)
    whole = sound.packed(".tar")
    end = -(-len(whole.rstrip(b"\0")) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    return whole[:end] + member.tobuf(tarfile.GNU_FORMAT) + bytes(10_240)


def _tars(sound: Sound) -> Iterator[Variant]:
    picture = (sound.folder / "class-0/0.png").read_bytes()

    def variant(name: str, ends: Ends, make: Callable[[], bytes], file: str = "a.tar") -> Variant:
        return _variant(name, file, ends, lambda rng: make())

    for name in (*OUTSIDE, *IMPOSSIBLE):
        ends: Ends = "any" if "\\" in name else "refused"
        yield variant(f"{name!r:.40}", ends, lambda n=name: _tar(sound, n, picture))
    for name in HARMLESS:
        yield variant(f"{name!r:.40}", "used", lambda n=name: _tar(sound, f"{n}.png", picture))
    kinds = {
        "a link": tarfile.SYMTYPE,
        "a hard link": tarfile.LNKTYPE,
        "a pipe": tarfile.FIFOTYPE,
        "a device": tarfile.CHRTYPE,
        "a disk": tarfile.BLKTYPE,
        "sparse": tarfile.GNUTYPE_SPARSE,
    }
    for name, type_ in kinds.items():
        for link in ("/etc/passwd", "../../x", "class-0/0.png", ""):
            yield variant(
                f"{name} to {link!r}",
                "refused",
                lambda t=type_, n=link: _tar(sound, "class-0/x.png", type=t, linkname=n),
            )
    yield variant(
        "a file through a link",
        "refused",
        lambda: _tar(sound, "class-9", type=tarfile.SYMTYPE, linkname="/tmp"),
    )
    yield variant(
        "a type that nobody has", "any", lambda: _tar(sound, "class-0/x.png", picture, type=b"Z")
    )
    yield variant(
        "a contiguous file",
        "used",
        lambda: _tar(sound, "class-0/x.png", picture, type=tarfile.CONTTYPE),
    )
    yield variant("twice", "refused", lambda: _tar(sound, "class-0/0.png", picture))
    yield variant("a file that is a folder", "refused", lambda: _tar(sound, "class-0", b"x"))
    yield variant("a folder outside", "any", lambda: _tar(sound, "../x", type=tarfile.DIRTYPE))
    yield variant("not UTF-8", "used", lambda: _tar(sound, "class-0/\udcff.png", picture))
    yield variant(
        "a class that is not UTF-8", "refused", lambda: _tar(sound, "\udcff/0.png", picture)
    )
    yield variant(
        "of another owner",
        "used",
        lambda: _tar(sound, "class-0/x.png", picture, uid=0, gid=2**20, mode=0o7777),
    )
    yield variant("without rights", "used", lambda: _tar(sound, "class-0/x.png", picture, mode=0))
    yield variant(
        "before 1970", "used", lambda: _tar(sound, "class-0/x.png", picture, mtime=-(2**33))
    )
    for key, value in (
        ("path", "/etc/x.png"),
        ("path", "../x.png"),
        ("path", ""),
        ("path", "class-0/" + "x" * 300),
        ("size", "-1"),
        ("size", "99999999999"),
        ("size", "x"),
        ("linkpath", "/etc/passwd"),
        ("mtime", "nan"),
        ("mtime", "9" * 400),
        ("GNU.sparse.size", "99999999999"),
        ("hdrcharset", "BINARY"),
        ("GNU.sparse.map", "0,1"),
        ("GNU.sparse.major", "1"),
        ("comment", "x" * (20 << 20)),
        ("a=b", "c"),
    ):
        yield variant(
            f"pax {key} {value!r:.20}",
            "any",
            lambda k=key, v=value: _tar(sound, "class-0/x.png", picture, pax_headers={k: v}),
        )
    for size in (1 << 20, 1 << 33, 1 << 40, (1 << 62)):
        yield variant(
            f"{size:,} bytes that are not there", "refused", lambda s=size: _header(sound, size=s)
        )
    yield variant("a negative size", "refused", lambda: _header(sound, size=-512))
    yield variant(
        "a long name that is not there",
        "refused",
        lambda: _header(sound, type=tarfile.GNUTYPE_LONGNAME, size=1 << 30),
    )
    yield variant("cut between files", "refused", lambda: sound.packed(".tar")[:2048])
    yield variant(
        "a bomb",
        "refused",
        lambda: _gzipped(_header(sound, size=2 << 30)[:-10_240], 2 << 30),
        "a.tar.gz",
    )
    yield variant(
        "a bomb after the end", "refused", lambda: _gzipped(sound.packed(".tar"), 2 << 30), "a.tgz"
    )
    yield variant(
        "a gzip in a gzip",
        "refused",
        lambda: gzip.compress(gzip.compress(sound.packed(".tar"))),
        "a.tar.gz",
    )
    yield variant("100,000 folders", "any", lambda: _many(sound, 100_000), "a.tar.gz")


def _gzipped(content: bytes, zeros: int) -> bytes:
    file = io.BytesIO()
    with gzip.GzipFile(fileobj=file, mode="wb", compresslevel=1) as packed:
        packed.write(content)
    block = gzip.compress(bytes(1 << 24), 1)
    return file.getvalue() + block * (zeros >> 24)


def _many(sound: Sound, count: int) -> bytes:
    headers = b"".join(_folder(n) for n in range(count))
    return gzip.compress(headers + sound.packed(".tar"), 1)


def _folder(number: int) -> bytes:
    member = tarfile.TarInfo(f"class-0/{number}")
    member.type = tarfile.DIRTYPE
    return member.tobuf()
