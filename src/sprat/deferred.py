"""Modules that are imported when they are first used.

Settings are declared in the file of what they configure. `sprat --help` reads them and must not
wait for torch, which the rest of these files needs.
"""

import functools
from importlib import import_module
from types import ModuleType
from typing import Any


class _Deferred(ModuleType):
    @functools.cached_property
    def _module(self) -> ModuleType:
        return import_module(self.__name__)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def deferred(name: str) -> Any:
    """Return a stand-in for a module, which is imported when its first attribute is read.

    if TYPE_CHECKING:
        import torch
    else:
        torch = deferred("torch")
    """
    return _Deferred(name)
