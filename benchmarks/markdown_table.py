"""Tables in Markdown."""

from collections.abc import Iterable, Sequence


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]], numbers_from: int) -> str:
    """Rows below a head; columns from `numbers_from` on are aligned to the right."""
    rule = ["---" if k < numbers_from else "---:" for k in range(len(head))]
    lines = [head, rule, *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
