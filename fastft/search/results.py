"""The files of a sweep and of a search: table.md, results.json and plot.png."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from beton_tools.base.atomic import write_text
from beton_tools.base.errors import UserError
from fastft.evaluate.plot import Panel, save_plot

TABLE, DOCUMENT, PLOT = "table.md", "results.json", "plot.png"
WRITTEN = f"{TABLE}, {DOCUMENT}, {PLOT}"


def write_results(
    folder: Path, parts: Sequence[str], document: Mapping[str, Any], panels: Sequence[Panel], title: str = ""
) -> None:
    """Write the three files, each atomically. parts: of the Markdown page. panels, title: of the plot.

    Raises:
        UserError: the disk is full or fails.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / TABLE, "\n\n".join(parts) + "\n")
        write_text(folder / DOCUMENT, json.dumps(document, indent=1) + "\n")
        save_plot(panels, [folder / PLOT], title)
    except OSError as error:
        raise disk_error(folder, error) from None


def disk_error(path: Path, error: OSError) -> UserError:
    return UserError(
        f"{path}: cannot be written ({error.strerror or error}); free some space, the same command continues"
    )
