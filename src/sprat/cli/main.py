"""Run a command, and report its errors without a traceback."""

import contextlib
import io
import os
import sys
import warnings
from typing import IO

from cyclopts import CycloptsError

from sprat.cli import completion, data, evaluate, network, search, serve, train  # noqa: F401
from sprat.cli.app import app
from sprat.cli.errors import complain, ended_by
from sprat.errors import SpratError, lacks_memory
from sprat.models.code import CodeNotNamed
from sprat.text import command as to_paste


def main() -> None:
    """Run a command; an error that the user can correct is printed on stderr, exit code 2."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the parent process
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115, PTH123
        elif isinstance(stream, io.TextIOWrapper):  # a progress bar must not fail in cp1252
            stream.reconfigure(errors="replace")
    warnings.filterwarnings("ignore", module=r"PIL\.")  # sprat reports damage itself
    code = _run(sys.argv[1:])
    if (error := _flush(sys.stdout)) and code != 141:
        code = ended_by(error)
    _flush(sys.stderr)
    sys.exit(code)


def _run(words: list[str]) -> int:
    """Run a command; return its exit code."""
    try:
        code: int = app(
            words,
            result_action="return_int_as_exit_code_else_zero",
            exit_on_error=False,
            print_error=False,
        )
        return code
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else bool(ended.code)
    except KeyboardInterrupt:
        complain("Interrupted.")
        return 130
    except CycloptsError as error:
        complain(str(error))
        return 2
    except CodeNotNamed as error:
        command = to_paste("sprat", *words, "--code", error.source)
        return ended_by(SpratError(*error.args, f"  {command}"))
    except (SpratError, OSError) as error:
        return ended_by(error)
    except (MemoryError, RuntimeError) as error:
        if not lacks_memory(error):
            raise
        complain(
            "There is not enough memory for this command. Use smaller batches (--batch-size) or "
            "pictures (--pictures.side), or close other programs. If the run has saved an epoch, "
            "resume it: sprat train --resume RUN"
        )
        return 2


def _flush(stream: IO[str]) -> OSError | None:
    """Flush a stream; return the error if that fails, and discard the rest, which would fail again
    when the interpreter exits."""
    try:
        stream.flush()
    except OSError as error:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return error
    return None
