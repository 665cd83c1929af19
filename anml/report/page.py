"""Pages: rendered from a template, and put in place with their files as a whole."""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from anml.report import labels
from anml.report.text import accuracy


def render(template: str, **context: Any) -> str:
    """Return a page. Everything is escaped: names and logs may hold any text."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.globals.update(labels=labels, accuracy=accuracy)
    return environment.get_template(template).render(context)


def read_text(path: Path) -> str:
    """Return the text of a file, empty where there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


@contextmanager
def replacing(output: Path, page: str) -> Iterator[Path]:
    """Yield an empty folder. Its files are moved into `output`, the page last: no reader meets half a report.

    Figures that the earlier page shows and the new one does not are removed.
    """
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output, prefix=".new.") as name:
        yield Path(name)
        earlier = set(re.findall(r'<img src="([^"/]+\.png)"', read_text(output / page)))
        files = sorted(Path(name).iterdir(), key=lambda path: path.name == page)
        for path in files:
            os.replace(path, output / path.name)
    for address in earlier - {quote(path.name) for path in files}:
        (output / Path(unquote(address)).name).unlink(missing_ok=True)
