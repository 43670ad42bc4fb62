"""Tests of complete writes, clear errors, locks between processes and the user's cache."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from platformdirs.macos import MacOS

from sprat.errors import SpratError
from sprat.files import (
    WriteError,
    cache_dir,
    holder,
    lock,
    own_temporary,
    replacing,
    replacing_folder,
    sweep,
    temporary_folder,
    write_whole,
)

posix = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX")
root = pytest.mark.skipif(
    sys.platform == "win32" or os.geteuid() != 0, reason="needs the rights of root"
)


def _waits(code: str, **how: object) -> subprocess.Popen[str]:
    """Start a process that runs `code`, and return it once `code` has printed "ready"."""
    process = subprocess.Popen(
        [sys.executable, "-c", f"import sys\nfrom pathlib import Path\n{code}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        **how,  # type: ignore[call-overload]
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def _end(process: subprocess.Popen[str], *, kill: bool) -> None:
    if kill:
        process.kill()
    process.communicate()
    assert process.returncode == (-signal.SIGKILL if kill else 0)


def _writer(path: Path) -> str:
    return (
        "from sprat.files import replacing\n"
        f"with replacing(Path({str(path)!r})) as beside:\n"
        "    beside.write_text('half')\n"
        "    print('ready', flush=True)\n"
        "    sys.stdin.read()\n"
    )


def _holder(path: Path) -> str:
    return (
        "from sprat.files import lock\n"
        f"with lock(Path({str(path)!r}), print):\n"
        "    print('ready', flush=True)\n"
        "    sys.stdin.read()\n"
    )


@contextmanager
def _small_disk(folder: Path) -> Iterator[Path]:
    """Mount a disk of 64 KiB, or skip the test if that is not possible."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a small disk cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@root
def test_full_disk_is_reported_and_old_file_kept(tmp_path: Path) -> None:
    with _small_disk(tmp_path / "disk") as disk:
        write_whole(disk / "old.bin", b"old")
        with pytest.raises(WriteError) as caught:
            write_whole(disk / "old.bin", bytes(100_000))
        assert f"{disk}/old.bin cannot be written: the disk is full" in str(caught.value)
        assert "100,000 bytes are needed, 61,440 bytes are free" in str(caught.value)
        with pytest.raises(WriteError, match=r"old\.bin cannot be written: the disk is full"):
            _write_in_pieces(disk / "old.bin")
        assert [path.name for path in disk.iterdir()] == ["old.bin"]
        assert (disk / "old.bin").read_bytes() == b"old"


def _write_in_pieces(path: Path) -> None:
    with replacing(path) as temporary, temporary.open("wb") as file:
        for _ in range(100):
            file.write(bytes(1000))


@posix
def test_file_size_limit_is_reported(tmp_path: Path) -> None:
    code = (
        "import resource\n"
        "from pathlib import Path\n"
        "from sprat.files import write_whole\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "write_whole(Path('big.bin'), bytes(2000))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "big.bin cannot be written: the file is larger than the system allows" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("folder", "folder cannot be written: a folder has that name. Move that away"),
        ("file/within/x.json", "file is not a folder. Move that away"),
        ("file/x.json", "file is not a folder. Move that away"),
        ("n" * 300, "the name is too long. Choose a shorter one"),
        pytest.param("pipe", "it is a device or a pipe", marks=posix),
        pytest.param("to-null", "it is a device or a pipe", marks=posix),
    ],
)
def test_unwritable_path_is_reported(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("kept")
    if sys.platform != "win32":
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "to-null").symlink_to("/dev/null")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(WriteError, match=message):
        write_whole(tmp_path / name, "new")
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "file").read_text() == "kept"


@root
def test_denied_permission_is_reported(tmp_path: Path) -> None:
    (tmp_path / "shut").mkdir(mode=0o755)
    code = "from pathlib import Path\nfrom sprat.files import write_whole\n"
    code += "write_whole(Path('shut/x.json'), 'new')"
    done = _as_nobody(code, cwd=_open_to_all(tmp_path))
    assert "shut/x.json cannot be written: permission denied. Give yourself" in done.stderr


def _open_to_all(folder: Path) -> Path:
    ours = [one for one in folder.parents if one.stat().st_uid == os.getuid()][:3]
    for one in (folder, *ours):  # an xdist worker adds a folder in between
        one.chmod(one.stat().st_mode | 0o055)
    return folder


def _as_nobody(code: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code as a user without a home folder, an entry in passwd, or a name."""
    become = "import os, pwd, sprat.files\n"  # while Python's files can still be read
    become += "os.setgroups([]); os.setgid(54_321); os.setuid(54_321); os.environ.pop('HOME', '')\n"
    return subprocess.run(
        [sys.executable, "-c", become + code],
        cwd=cwd,
        env={key: value for key, value in os.environ.items() if key != "XDG_CACHE_HOME"}
        | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_error_about_another_file_is_unchanged(tmp_path: Path) -> None:
    def read_another() -> None:
        with replacing(tmp_path / "x.json"):
            Path("/nowhere/at/all").read_bytes()

    with pytest.raises(FileNotFoundError, match="/nowhere/at/all"):
        read_another()
    assert list(tmp_path.iterdir()) == []


def test_new_file_never_overwrites_a_concurrent_one(tmp_path: Path) -> None:
    def come_late() -> None:
        with replacing(tmp_path / "x", new=True) as temporary:
            temporary.write_text("second")
            (tmp_path / "x").write_text("first")

    with pytest.raises(WriteError, match="it exists already"):
        come_late()
    assert [path.read_text() for path in tmp_path.iterdir()] == ["first"]


@posix
def test_writing_removes_only_killed_processes_leftovers(tmp_path: Path) -> None:
    _end(_waits(_writer(tmp_path / "killed.png")), kill=True)
    (left,) = tmp_path.iterdir()
    living = _waits(_writer(tmp_path / "living.so"))
    assert not left.exists(), "the writer of another file sweeps too"
    (tmp_path / ".mine-settings.json").write_text("the user's own")
    write_whole(tmp_path / "other.json", "{}")
    sweep(tmp_path)
    _end(living, kill=False)
    assert (tmp_path / "living.so").read_text() == "half"
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"living.so", "other.json", ".mine-settings.json"}


@posix
def test_swept_temporary_folder_is_made_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make, made = tempfile.mkdtemp, []

    def swept_once(**how: str) -> str:
        made.append(make(**how))
        if len(made) == 1:
            Path(made[0]).rmdir()
        return made[-1]

    monkeypatch.setattr(tempfile, "mkdtemp", swept_once)
    with temporary_folder() as folder:
        assert str(folder) == made[1]


def test_temporary_folders_of_killed_processes_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code = "from sprat.files import temporary_folder\nwith temporary_folder() as folder:\n"
    code += "    print('ready', flush=True)\n    sys.stdin.read()\n"
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    _end(_waits(code, env=environment), kill=True)
    (left,) = tmp_path.iterdir()
    living = _waits(code, env=environment)
    with temporary_folder() as folder:
        assert not left.exists()
        assert len(list(tmp_path.iterdir())) == 2, "the folder in use is still there"
        (folder / "x").write_text("x")
    _end(living, kill=False)
    assert list(tmp_path.iterdir()) == []


@posix
@pytest.mark.parametrize("kill", [True, False])
def test_lock_names_its_holder_and_is_released(tmp_path: Path, kill: bool) -> None:
    path = tmp_path / ".lock"
    process = _waits(_holder(path))
    said = []

    def refuse(who: str) -> None:
        said.append(who)
        raise SpratError(who)

    with pytest.raises(SpratError), lock(path, refuse):
        pass
    assert said[0].startswith(f"process {process.pid} on {os.uname().nodename} since ")
    assert holder(path) == said[0]
    _end(process, kill=kill)
    assert holder(path) is None
    with lock(path, refuse) as held:
        assert held()
        path.unlink()
        assert not held()
        path.write_text("another's")
        assert not held()
    assert path.read_text() == "another's", "only its own file is removed"


@root
def test_cache_without_home_folder_is_private(tmp_path: Path) -> None:
    code = "from sprat.files import cache_dir; print(cache_dir())"
    folder = tmp_path / "sprat_cache_54321"
    _open_to_all(tmp_path).chmod(0o1777)
    for _ in range(2):
        done = _as_nobody(code, tmp_path, TMPDIR=str(tmp_path))
        assert done.stdout == f"{folder}\n", done.stderr
    assert (folder.stat().st_uid, folder.stat().st_mode & 0o777) == (54_321, 0o700)
    folder.chmod(0o777)
    done = _as_nobody(code, tmp_path, TMPDIR=str(tmp_path))
    assert "other users can write there. Name another folder with XDG_CACHE_HOME" in done.stderr


@posix
def test_cache_planted_by_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "theirs").mkdir(mode=0o700)
    (tmp_path / f"sprat_cache_{os.getuid()}").symlink_to(tmp_path / "theirs")
    with pytest.raises(WriteError, match="other users can write there"):
        own_temporary()


def test_cache_is_in_platform_folder_unless_one_exists(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "sprat"
    monkeypatch.setattr(sys, "platform", "darwin")

    def of_macos(name: str, appauthor: bool) -> str:
        return MacOS(name, appauthor).user_cache_dir

    monkeypatch.setattr("platformdirs.user_cache_dir", of_macos)
    assert cache_dir() == tmp_path / "Library" / "Caches" / "sprat"
    (tmp_path / ".cache" / "sprat").mkdir(parents=True)
    assert cache_dir() == tmp_path / ".cache" / "sprat"


def test_cache_follows_xdg_and_write_errors_keep_errno(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_dir() == Path("/somewhere/sprat")
    assert WriteError("in words", OSError(errno.EIO, "x")).errno == errno.EIO


class TestReplacingFolder:
    def test_replaces_only_after_success(self, tmp_path: Path) -> None:
        folder = tmp_path / "a" / "folder"
        for content in ("old", "new"):
            with replacing_folder(folder, ["file"]) as made:
                (made / "file").write_text(content)
        with contextlib.suppress(KeyboardInterrupt), replacing_folder(folder, ["file"]) as made:
            (made / "file").write_text("half")
            raise KeyboardInterrupt
        assert (folder / "file").read_text() == "new"
        assert list(folder.parent.iterdir()) == [folder]

    @posix
    @pytest.mark.parametrize(
        ("dies", "left"),
        [
            ("files._exchanged = lambda *names: end()", "old"),
            ("real = files._exchanged; files._exchanged = lambda *n: real(*n) and end()", "new"),
            (  # where names cannot be exchanged, after the old folder was moved away
                "files._exchanged = lambda *names: False\n"
                "real = Path.replace\n"
                "Path.replace = lambda path, to: end() if path.name == 'new' else real(path, to)",
                "old",
            ),
        ],
    )
    def test_kill_leaves_either_old_or_new_folder(
        self, dies: str, left: str, tmp_path: Path
    ) -> None:
        folder, next_one = tmp_path / "folder", tmp_path / "next"
        folder.mkdir()
        (folder / "file").write_text("old")
        code = (
            "import os\nfrom pathlib import Path\nfrom sprat import files\n"
            f"end = lambda: os.kill(os.getpid(), 9)\n{dies}\n"
            f"with files.replacing_folder(Path({str(folder)!r}), ['file']) as made:\n"
            "    (made / 'file').write_text('new')"
        )
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
        with replacing_folder(next_one, ["file"]) as made:
            (made / "file").write_text("next")
        assert (folder / "file").read_text() == left
        assert sorted(tmp_path.iterdir()) == [folder, next_one]

    def test_old_folder_is_restored_after_failure(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder, replace = tmp_path / "folder", Path.replace
        folder.mkdir()
        (folder / "file").write_text("old")
        monkeypatch.setattr("sprat.files._exchanged", lambda *names: False)

        def fails(path: Path, target: Path) -> Path:
            if path.name == "new":
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(target))
            return replace(path, target)

        monkeypatch.setattr(Path, "replace", fails)
        with pytest.raises(WriteError), replacing_folder(folder, ["file"]) as made:
            (made / "file").write_text("new")
        assert (folder / "file").read_text() == "old"
        assert list(tmp_path.iterdir()) == [folder]
