"""A mkdocs hook that writes the site's benchmark pages from the results in benchmarks/results.

Every result gets a page `bench/NAME.html`. `bench/compared.html` compares results from different processors that share a measure.
"""

from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
from mkdocs.structure.files import File

from beton_tools.base.errors import UserError
from fastft.bench.page.comparison import compare, render_comparison
from fastft.bench.page.one import render_bench
from fastft.machine.bench_result import Result, read_result

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"


def on_files(files: Any, config: Any) -> Any:
    results = stored_results(RESULTS)
    pages = {name: render_bench(result) for name, result in results.items()}
    if len(results) > 1:  # each from another processor
        with suppress(UserError):  # no measure in common
            pages["compared"] = render_comparison(compare(list(results.values())))
    for name, page in pages.items():
        files.append(File.generated(config, f"bench/{name}.html", content=page))
    return files


def stored_results(folder: Path) -> dict[str, Result]:
    """Return the results of `fastft bench` by name. The folder also contains results of other programs, which are skipped."""
    documents = {path: msgspec.json.decode(path.read_bytes()) for path in sorted(folder.glob("*.json"))}
    return {path.stem: read_result(path) for path, d in documents.items() if isinstance(d, dict) and "sessions" in d}
