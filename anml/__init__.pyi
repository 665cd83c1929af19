# What type checkers and editors see: `__init__.py` imports these when they are first used.
from anml.api import evaluate as evaluate
from anml.api import launch as launch
from anml.api import load as load

__version__: str
