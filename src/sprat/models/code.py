"""Networks defined in the user's own code, which runs only if the user named it.

use("my_nets.py")
make = find("my_nets.py:MyNet")
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

from sprat.deferred import deferred
from sprat.errors import SpratError, did_you_mean

if TYPE_CHECKING:
    from types import ModuleType

    from torch import nn
else:
    nn = deferred("torch.nn")

Code = str | Path | Iterable[str | Path]
"""Python files or modules with a user's networks."""

_used: dict[str, ModuleType] = {}  # by the name that the user gave: a file, a module, or FILE:CLASS


class CodeNotNamed(SpratError):
    """A network is defined in the user's own code, which the user did not name."""

    def __init__(self, source: str, class_name: str) -> None:
        super().__init__(
            f"The network {class_name} is your own code in {source}, which runs only where you "
            f"name it. Add --code {source} to the command, or code={source!r} in Python."
        )
        self.source = source


def is_own(name: str) -> bool:
    """Return whether a network's name refers to a class in the user's own code, FILE:CLASS."""
    return ":" in name


def source_of(name: str) -> str:
    """Return the file or module of a network in the user's own code."""
    return name.rpartition(":")[0]


def use(name: str) -> None:
    """Run the user's code, so that `find` can find its networks.

    Args:
        name: a Python file, or a module in the working directory or installed. FILE:FUNCTION also
            allows that function to be called: a model from somebody else must not choose which one
            is.

    Raises:
        SpratError: there is no such file or module, or running it fails.
    """
    use_all(name)


def use_all(names: str | Path | Iterable[str | Path]) -> None:
    """Run each of the files or modules that the user named, once; see `use`.

    Raises:
        SpratError: as `use`.
    """
    ran: dict[str, ModuleType] = {}
    for name in map(str, [names] if isinstance(names, str | Path) else names):
        source = source_of(name) if is_own(name) and not name.endswith(".py") else name
        if source not in ran:
            ran[source] = _run(source)
        _used[name] = ran[source]


def use_networks(networks: Iterable[object], code: Code = ()) -> None:
    """Run the code that the user named, as `use_all` does, and that of each network in own code.

    Args:
        networks: names of networks; anything else among them is ignored.
    """
    own = [name for name in networks if isinstance(name, str) and is_own(name)]
    use_all([*([code] if isinstance(code, str | Path) else code), *own])


def _run(source: str) -> ModuleType:
    try:
        return _run_file(source) if source.endswith(".py") else _import(source)
    except FileNotFoundError as error:
        if error.filename != source:  # the user's code may open files too
            raise SpratError(f"{source} cannot be run: {error}. Change its code.") from error
        raise SpratError(
            f"There is no file {source}. Name the Python file that defines your network, such as "
            "my_nets.py."
        ) from error
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        raise SpratError(
            f"{source} cannot be run: {type(error).__name__}: {error}. Change its code, or name "
            "another file, such as my_nets.py, or a module that can be imported."
        ) from error


def used() -> list[str]:
    """Return the files and modules named so far."""
    return list(_used)


def options(sources: Iterable[str]) -> list[str]:
    """Return the options that name these files, modules and functions again in a command to
    paste."""
    return [word for source in sources for word in ("--code", _without_class(source))]


def _without_class(name: str) -> str:
    module, source, last = _used.get(name), *name.rpartition(":")[::2]
    return source if source and _is_network(getattr(module, last, None)) else name


def find(name: str) -> Callable[..., nn.Module]:
    """Return the class that FILE:CLASS names, or the function that makes a network. It is looked up
    in FILE or, if that is not in use (it may have moved), in all code in use.

    Raises:
        CodeNotNamed: the user named no code.
        SpratError: the code in use has no such network.
    """
    source, _, class_name = name.rpartition(":")
    here = [_used[key] for key in (name, source) if key in _used]
    for module in here or _used.values():
        found = getattr(module, class_name, None)
        if _is_network(found):
            return found
        if inspect.isfunction(found):
            if class_name in {key.rpartition(":")[2] for key in _used}:
                return found
            raise CodeNotNamed(name, class_name)
    if not _used:
        raise CodeNotNamed(source, class_name)
    modules = here or list(_used.values())
    networks = [key for each in modules for key, v in vars(each).items() if _is_network(v)]
    hint = did_you_mean(class_name, networks) or "."
    where = source if here else " and ".join(used())
    raise SpratError(
        f"{where} has no network {class_name!r}{hint} Name a class that is a "
        "torch.nn.Module, or a function that returns one."
    )


def _is_network(value: object) -> TypeGuard[type[nn.Module]]:
    return isinstance(value, type) and issubclass(value, nn.Module)


def _run_file(file: str) -> ModuleType:
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(2, "No such file", file)
    folder = str(path.resolve().parent)
    if folder not in sys.path:  # for imports from the file's own folder; last, to shadow nothing
        sys.path.append(folder)
    name = f"sprat_own_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses, for example, look there
    spec.loader.exec_module(module)
    return module


def _import(name: str) -> ModuleType:
    sys.path.insert(0, "")
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove("")
