"""Meta-learned continual learning (ANML, SANML, OML): from one YAML file to a report.

In Python: `load`, `launch` and `evaluate` (anml/api.py) do what the commands of these names do.
"""

__version__ = "0.1.0"
__all__ = ["evaluate", "launch", "load"]


def __getattr__(name):  # noqa: ANN001, ANN202 - Python 3.6 reads this file too.
    """Import the Python interface when it is first used: `import anml` costs nothing."""
    if name not in __all__:
        message = f"module 'anml' has no attribute {name!r}"
        raise AttributeError(message)
    from importlib import import_module

    return getattr(import_module("anml.api"), name)
