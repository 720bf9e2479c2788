"""The sentences at the top of a benchmark page, written from the rounds."""

from collections.abc import Iterator, Sequence

from markupsafe import Markup

from fastft.bench.measure import figures
from fastft.bench.page.bars import (
    describe_ratio,
    describe_setting,
    median_figures,
    range_text,
    rank,
    times,
    whole_setting,
)
from fastft.cost.cores import Demand
from fastft.machine.bench_result import OURS, Case, Contender, Measure, Result, Spread, ratio, spread
from fastft.report.page import figure, joined, percent

END_TO_END = "e2e.train"
SENTENCES = 3
USUAL = "timm"  # the peer that most readers use
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def sentences(result: Result, demands: Sequence[Demand]) -> list[Markup]:
    """Write three sentences: images per second on one core, how they compare, and what feeds the GPUs.

    Without these, the sentences are about the first measures in the file.
    """
    found = list(_whole_recipe(result))
    if result.machine.gpu is not None:
        found += _end_to_end(result)
    if demands:
        found.append(cores_sentence(result, max(demands, key=lambda d: d.images_per_second.median)))
    others = (m for m in result.measures if headline_of(m) != 1 and m.cases and m.cases[0].contender())
    return [*found, *(_compared(m, m.cases[0]) for m in others)][:SENTENCES]


def headline_of(measure: Measure) -> int:
    """Return 1 for the whole recipe with a loader, 2 for decoding and augmentation alone, and 0 for other measures."""
    declared = figures().get(measure.key)
    return declared.headline if declared else 0


def whole_cases(result: Result) -> list[tuple[str, Measure, Case]]:
    """Return what the images are, with measure and case for the whole recipe, where fastft was measured."""
    for choice in (1, 2):
        keys = [figure.key for figure in figures().values() if figure.headline == choice]
        measures = [m for key in keys if (m := result.measure(key)) is not None]
        if cases := [(m, case) for m in measures for case in m.cases if case.contender()]:
            return [(str(whole_setting(m, case).get("files", "images")), m, case) for m, case in cases]
    return []


def peers_of(case: Case) -> list[Contender]:
    """Return other libraries, without limits and other ways to use fastft."""
    return [c for c in case.measured if not c.limit and OURS not in c.name.lower()]


def best_of(measure: Measure, contenders: Sequence[Contender]) -> Contender | None:
    return min(contenders, key=lambda c: rank(measure, c), default=None)


# pieces ---------------------------------------------------------------------------------------------------------------


def amount(value: Spread, unit: str = "") -> Markup:
    """Format as 1,485 images/s (1,450–1,510)."""
    shown = Markup("<b>{}{}</b>").format(figure(value.median), f" {unit}" if unit else "")
    return shown + in_brackets(range_text(figure(value.low), figure(value.high)))


def multiple(value: Spread) -> Markup:
    """Format as 6.0× (5.8–6.2)."""
    low, middle, high = times(value)
    return Markup("<b>{}×</b>").format(middle) + in_brackets(range_text(low, high))


def in_brackets(text: str) -> Markup:
    return Markup(' <span class="range">({})</span>').format(text) if text else Markup("")


def listed(parts: Sequence[Markup]) -> Markup:
    """Join as a, b and c."""
    if len(parts) < 2:
        return Markup("").join(parts)
    return Markup(", ").join(parts[:-1]) + " and " + parts[-1]


# sentences ------------------------------------------------------------------------------------------------------------


def _whole_recipe(result: Result) -> Iterator[Markup]:
    if not (cases := whole_cases(result)):
        return
    rates = [
        Markup("{}{} from {}").format(amount(spread(own)), "" if k else " images per second", words)
        for k, (words, _, case) in enumerate(cases)
        if (own := case.contender())
    ]
    yield Markup("With fastft, one core decodes and augments {}.").format(listed(rates))
    _, measure, case = cases[0]
    peers = peers_of(case)
    best = best_of(measure, peers)
    compared = {USUAL: USUAL}
    if best is not None and len(peers) > 1:
        number = NUMBERS[len(peers)] if len(peers) < len(NUMBERS) else str(len(peers))
        compared |= {best.name: f"{best.name}, the fastest of the {number} others"}
    found = []
    for name, words in compared.items():
        ratios = [r for _, m, of in cases if (peer := of.contender(name)) and (r := ratio(m, of, peer))]
        if ratios:
            found.append(Markup("{} the throughput of {}").format(listed([multiple(r) for r in ratios]), words))
    if found:
        yield Markup("That is {}.").format(Markup(", and ").join(found))


def cores_sentence(result: Result, demand: Demand) -> Markup:
    """Say how many cores the GPUs need, in a result with the whole recipe.

    Example: 8 × H100 that train final_b16 at 12,300–19,300 images/s (modelled) need 9–14 CPU cores with fastft and
    50–78 with timm.
    """
    _, measure, case = whole_cases(result)[0]
    rival = case.contender(USUAL) or best_of(measure, peers_of(case))
    needed = [
        Markup("<b>{}</b>{} with {}").format(
            whole_range(demand.cores(spread(c).median)), "" if k else " CPU cores", c.name
        )
        for k, c in enumerate(filter(None, (case.contender(), rival)))
        if is_usable(c)
    ]
    return Markup("{} × {} that train <code>{}</code> at {} need {}.").format(
        demand.gpus, demand.gpu, demand.recipe, describe_demand(demand), listed(needed)
    )


def describe_demand(demand: Demand) -> str:
    how = "measured" if demand.measured else "modelled"
    return f"{whole_range(demand.images_per_second)} images/s ({how})"


def is_usable(contender: Contender) -> bool:
    """Return True if a number of cores can be computed from the contender's rate."""
    return not contender.limit and spread(contender).median > 0


def whole_range(value: Spread) -> str:
    """Format as 9–14, or as 14 if both ends are the same."""
    low, high = f"{value.low:,.0f}", f"{value.high:,.0f}"
    return range_text(low, high) or low


def _end_to_end(result: Result) -> Iterator[Markup]:
    measure = result.measure(END_TO_END)
    if measure is None or not measure.cases or (own := measure.cases[0].contender()) is None:
        return
    known, best = median_figures(own), best_of(measure, peers_of(measure.cases[0]))
    said = Markup("From file to updated weights, {} trains {}").format(
        result.machine.gpu, amount(spread(own), measure.unit)
    )
    if "mfu" in known:
        said += f" at an MFU of {percent(known['mfu'])}"
    if "waiting" in known:
        said += f", waiting for data {percent(known['waiting'])} of the time"
    if best is not None:
        said += Markup(", {} reaches {}").format(best.name, amount(spread(best)))
    yield said + "."


def _compared(measure: Measure, case: Case) -> Markup:
    """Write TITLE, SETTING: what fastft reaches, and how that compares with the best other contender."""
    own, best = case.contender(), best_of(measure, peers_of(case))
    title = joined(measure.title, describe_setting(case.setting))
    start = Markup("{}: {}").format(title, amount(spread(own), measure.unit) if own else "")
    found = ratio(measure, case, best) if best else None
    if best is None or found is None:
        return start + "."
    text, text_range = describe_ratio(found, measure.unit)
    return start + Markup(", <b>{}</b>{} {} {}.").format(
        text, in_brackets(text_range), "with" if text == "level" else "than", best.name
    )
