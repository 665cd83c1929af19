"""Test-train and test-test: what a trained model can learn of classes it has never seen.

Called as a function, this package is `anml.api.evaluate`: Python gives `anml.evaluate` to whichever comes last.
"""

import sys
from types import ModuleType
from typing import Any


class _CallablePackage(ModuleType):
    def __call__(self, *arguments: Any, **settings: Any) -> Any:
        from importlib import import_module  # By its name: imports point down.

        return import_module("anml.api").evaluate(*arguments, **settings)


sys.modules[__name__].__class__ = _CallablePackage
