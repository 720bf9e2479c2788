"""The table in docs/step.md: what a step asks of a card, counted under a card that only answers (make test-fake-gpu)."""

from records import Row, document

from beton_tools.base.console import markdown_table as markdown

PRECISION = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def launches() -> str:
    """Tabulate the newest record per PyTorch, beside the record of the oldest commit."""
    records = document("fake_card")["records"]
    now = {record["torch"]: record for record in records}  # the last one of each
    newest, *others = sorted(now.values(), key=lambda record: _release(record["torch"]), reverse=True)
    before = next(r for r in records if r["torch"] == newest["torch"])
    rows = []
    for row in newest["rows"]:
        old = _same_way(before, row)
        works = [_work(one) for one in (old, row, *(_same_way(other, row) for other in others))]
        rows.append([_name(row), str(row["images"]), *works, f"{row['gb']:.1f}"])
    assert all(_is_steady(row) for record in now.values() for row in record["rows"])
    head = ["step", "images", f"before (`{before['commit']}`)", f"torch {newest['torch']}"]
    head += [f"torch {other['torch']}" for other in others]
    return (
        f"{markdown([*head, 'GB at the peak'], rows)}\n\nWhat the host hands to the card in a step of {newest['model']} in which "
        "all parameters are trained, with the EMA: kernels, matrix products, graphs and fills. None of these steps waits for the "
        f"card, allocates memory or copies to the host. Counted {newest['date']} as on an {newest['card']}."
    )


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.partition("+")[0].split("."))


def _same_way(record: Row, row: Row) -> Row:
    keys = ("precision", "half_residual", "mode", "attention", "images")
    return next((r for r in record["rows"] if all(r[k] == row[k] for k in keys)), {})


def _work(row: Row) -> str:
    return f"{row['work']:,.0f}" if "work" in row else "fails" if row else ""


def _name(row: Row) -> str:
    copy = ", half-precision copy" if row["half_residual"] else ", autocast" if row["precision"] != "float32" else ""
    kernel = "" if row["attention"] == "auto" else f", `{row['attention']}` attention"
    return f"{row['mode']}, {PRECISION[row['precision']]}{copy}{kernel}"


def _is_steady(row: Row) -> bool:
    return not any(row["counts"].get(name) for name in ("waits", "allocations", "host_allocations", "to_host"))
