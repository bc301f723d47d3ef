"""Load a package's public functions when they are first used, so that importing it stays quick.

A public function may share its name with the module that holds it: `forensics.train` is a package
and the function that trains. Python sets a package's attribute to the submodule at every first
import of it, so a function put in its place would come and go with the order of imports. The module
itself is made callable instead: one object, whatever was imported first.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import inspect


def getter(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a module's `__getattr__` (PEP 562) over public names, each with the module it is in.

    A home that is itself `package.name` is a module made callable by `make_callable`.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = importlib.import_module(homes[name])
        return module if homes[name] == f"{package}.{name}" else getattr(module, name)

    return get


def make_callable(module: str, home: str, function: str) -> None:
    """Make calling the module `module` call `home.function`, imported at the first call."""

    def load() -> Callable[..., Any]:
        return getattr(importlib.import_module(home), function)

    class CallableModule(ModuleType):
        """A module that is also the function that it is named after."""

        def __call__(self, *arguments: Any, **options: Any) -> Any:
            return load()(*arguments, **options)

        @property
        def __signature__(self) -> inspect.Signature:
            import inspect  # costs 5 ms that only those who ask for a signature pay

            return inspect.signature(load())

    sys.modules[module].__class__ = CallableModule
