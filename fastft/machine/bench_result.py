"""The result of `fastft bench`: a JSON file with every round from every contender, and what it was measured on.

A `Result` has measures, a measure has cases (threads, image sizes, ...), a case has contenders, a contender has rounds.
Medians, ranges and ratios are not stored, because `spread` and `ratio` compute them from the rounds.
docs/bench-schema.md describes the keys.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, field

from beton_tools.base.atomic import write_text
from beton_tools.base.console import printable
from beton_tools.base.errors import UserError
from beton_tools.base.typed_json import Count, Document, Number, Numbers, Signed, check
from beton_tools.base.user_files import read_user_file

FORMAT = 2
OURS = "fastft"
MAX_RESULT_BYTES = 64 << 20
FOREIGN_SHARE = 0.1  # if other programs keep a larger fraction of the cores busy, there is a warning

SHARE, MFU = "share", "mfu"
SHARES = (MFU, "waiting", "bandwidth_share")  # a round's figures that are fractions

Setting = dict[str, str | int | float]
Share = Annotated[float, Meta(ge=0, le=1)]
Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


class Processor(Document):
    """What /proc/cpuinfo and /sys say about a processor. ARM has implementer, part and revision in place of names."""

    vendor: str | None = None
    family: str | None = None
    model: str | None = None
    stepping: str | None = None
    microcode: str | None = None
    flags: list[str] = field(default_factory=list)
    threads_per_core: Count | None = None
    is_virtual: bool = False
    governor: str | None = None


class Machine(Document):
    """The machine on which the benchmark ran."""

    cpu: str
    instruction_sets: list[str]  # only those that image code uses: sse4_1, avx2, avx512bw, neon, ...
    cores: Annotated[int, Meta(ge=1)]  # hardware threads that the benchmark could use
    memory_gib: Number
    kernel: str
    system: str  # "Debian GNU/Linux 13 (trixie)"
    python: str
    libraries: dict[str, str]  # versions by package
    gpu: str | None = None
    gpus: Count = 0
    driver: str | None = None
    processor: Processor | None = None  # this and the next three: None or empty in older files
    packages: dict[str, str] = field(default_factory=dict)  # all installed packages' versions
    codecs: dict[str, str] = field(default_factory=dict)  # versions of JPEG libraries inside packages
    disk: str | None = None  # where the measured files were: file system, device and its kind


class Session(Document):
    """One call to the command, and how busy the machine was. The load includes the benchmark's own processes.

    seed: draws the contenders' order. betons: kind -> SHA-256 of the .beton file that was read.
    """

    command: str
    date: str  # UTC, ISO 8601
    seconds: Number
    load_before: Number  # one-minute load average
    load_after: Number
    steal: Share  # fraction of all CPU time that the hypervisor gave to others
    seed: Count | None = None
    betons: dict[str, Sha256] = field(default_factory=dict)


class Images(Document):
    """The images that every contender read. sha256: over the lines that hold each file's own SHA-256, in their order."""

    what: str
    count: Count
    mean_kb: Number
    sha256: Sha256 | None = None  # None in older files


class Round(Document):
    """One pass over the images by one contender.

    value: the result in the measure's unit. figures: more results from the same round, such as mfu, read_mb, or a
    split's parts in the order in which the work is done. foreign: how many cores were kept busy meanwhile by programs
    outside the benchmark. It can be a little below 0 if the system's counters are coarser than the round. None in older
    files.
    """

    value: Signed
    images: Count = 0
    wall: Number = 0.0  # seconds
    cpu: Number = 0.0  # CPU seconds in all threads and worker processes
    foreign: Signed | None = None
    figures: Numbers = field(default_factory=dict)


class Contender(Document):
    """One library's result: either `rounds`, or `skipped` with the reason.

    differences: how its work differs from fastft's, printed in the row. limit: this is not a library, but what the
    hardware or a codec allows.
    """

    name: str
    rounds: list[Round] = field(default_factory=list)
    version: str | None = None
    differences: list[str] = field(default_factory=list)
    limit: bool = False
    skipped: str | None = None


class Case(Document):
    """The contenders under one setting, such as {"threads": 2}. Their rounds alternated: all ran round k in turn.

    order: for each round, the measured contenders in the order in which they ran. Empty in older files.
    """

    setting: Setting
    contenders: list[Contender]
    order: list[list[str]] = field(default_factory=list)

    def contender(self, name: str = OURS) -> Contender | None:
        """Return the contender, or None if it is not in the case or was skipped."""
        return next((c for c in self.contenders if c.name == name and c.rounds), None)

    @property
    def measured(self) -> list[Contender]:
        return [c for c in self.contenders if c.rounds]

    @property
    def skipped(self) -> list[Contender]:
        return [c for c in self.contenders if c.skipped is not None]


class Measure(Document):
    """key: the measure's name in every file, for example "loader.threads". setting: what all cases share."""

    key: str
    bench: str
    title: str
    unit: str
    about: str
    cases: list[Case]
    better: Literal["higher", "lower"] = "higher"
    setting: Setting = field(default_factory=dict)

    @property
    def foreign(self) -> float | None:
        """How many cores programs outside the benchmark kept busy: a mean over all rounds, weighted by their seconds."""
        rounds = [
            r for case in self.cases for c in case.contenders for r in c.rounds if r.foreign is not None and r.wall
        ]
        if not rounds:
            return None
        return max(0.0, sum(r.foreign * r.wall for r in rounds if r.foreign is not None) / sum(r.wall for r in rounds))


class Result(Document):
    """The whole file: one version on one machine.

    changed: whether the working tree differed from `commit`. None without git. sessions: there are several if `--add`
    added measures to the file. missing: keys of measures that were requested, but not made because the run ended early.
    """

    format: int
    fastft: str
    commit: str | None
    changed: bool | None
    quick: bool  # every path ran only once, so the numbers mean nothing
    machine: Machine
    images: Images
    sessions: Annotated[list[Session], Meta(min_length=1)]
    measures: list[Measure]
    notes: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    @property
    def date(self) -> str:
        """The last session's day."""
        return max(s.date for s in self.sessions)[:10]

    def measure(self, key: str) -> Measure | None:
        return next((m for m in self.measures if m.key == key), None)

    def find(self, key: str, **setting: str | int | float) -> Case | None:
        """Return the measure's case whose settings include these."""
        measure = self.measure(key)
        cases = measure.cases if measure else []
        return next(
            (c for c in cases if setting.items() <= ((measure.setting if measure else {}) | c.setting).items()), None
        )


@dataclass(frozen=True)
class Spread:
    """The median, and the lowest and highest round."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> "Spread":
        return cls(median(values), min(values), max(values))


def spread(contender: Contender) -> Spread:
    return Spread.of([r.value for r in contender.rounds])


def ratio(measure: Measure, case: Case, peer: Contender, own: str = OURS) -> Spread | None:
    """Return how many times better `own` is than the peer.

    The ratio is taken round by round, because load on the machine slows both contenders in a round. If they have different
    numbers of rounds, it is the ratio between the medians. Returns None if the two are the same contender, one did not run,
    or a round is zero.
    """
    ours = case.contender(own)
    if ours is None or ours is peer or not peer.rounds:
        return None
    top, bottom = ([r.value for r in c.rounds] for c in ((ours, peer) if measure.better == "higher" else (peer, ours)))
    if len(top) != len(bottom):
        top, bottom = [median(top)], [median(bottom)]
    if not all(bottom):
        return None
    return Spread.of([a / b for a, b in zip(top, bottom, strict=True)])


def read_result(path: Path) -> Result:
    """Read a result that `fastft bench` wrote.

    The MFUs that earlier versions stored for CPUs are left out.

    Raises UserError if there is no such file, if it is something else, or if a fraction in it is above 100 %.
    """
    try:
        value: Any = msgspec.json.decode(read_user_file(path, MAX_RESULT_BYTES, "a result file from fastft bench"))
        if not isinstance(value, dict) or "measures" not in value:
            raise UserError(f"{path} is not a fastft bench result. Give the JSON file that it wrote")
        if value.get("format") != FORMAT:
            raise UserError(
                f"{path} has format {value.get('format', 1)}, but this fastft version reads format {FORMAT}. "
                "Measure again with fastft bench"
            )
        result: Result = check(str(path), _printable(value), Result)
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a fastft bench result: {error}") from None
    if result.machine.gpu is None:
        result.measures = [without_shares(m, [MFU]) for m in result.measures if not m.key.endswith(f".{MFU}")]
    for measure in result.measures:
        for k, case in enumerate(measure.cases):
            if not _is_ordered(case):
                raise UserError(
                    f"{path}: case {k + 1} of {measure.key}: its order does not match its rounds. Measure again"
                )
        for found in impossible_shares(measure):
            raise UserError(f"{path}: {found}. A share cannot be above 100 %. Measure again with fastft bench")
    return result


def is_disturbed(measure: Measure, cores: int) -> bool:
    """Return True if other programs kept more than FOREIGN_SHARE of the cores busy."""
    return (measure.foreign or 0.0) > FOREIGN_SHARE * cores


def _is_ordered(case: Case) -> bool:
    """Return True if the order names each contender once in each of its rounds, or is not known."""
    names = sorted(c.name for c in case.measured)
    lengths = {len(c.rounds) for c in case.measured}
    return not case.order or (lengths <= {len(case.order)} and all(sorted(turn) == names for turn in case.order))


def impossible_shares(measure: Measure) -> Iterator[str]:
    """Name every contender that has a fraction above 100 %."""
    for contender in (c for case in measure.cases for c in case.contenders):
        for r in contender.rounds:
            shares = {name: r.figures[name] for name in SHARES if name in r.figures}
            shares |= {SHARE: r.value} if measure.unit == SHARE else {}
            if name := next((name for name, value in shares.items() if value > 1), None):
                yield f"{contender.name} in {measure.key} has {name} {shares[name]:.1%}"
                break


def without_shares(measure: Measure, names: Sequence[str] = SHARES) -> Measure:
    """Remove these figures from the rounds, and return the measure."""
    for r in (r for case in measure.cases for c in case.contenders for r in c.rounds):
        r.figures = {name: value for name, value in r.figures.items() if name not in names}
    return measure


def _printable(value: Any) -> Any:
    """Escape what could change a terminal or the direction of a page's text, because the file may be somebody else's."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable(key): _printable(item) for key, item in value.items()}
    return [_printable(item) for item in value] if isinstance(value, list) else value


def write_result(path: Path, result: Result) -> None:
    """Write the file completely or not at all."""
    write_text(path, msgspec.json.format(msgspec.json.encode(result), indent=1).decode() + "\n")


def skipped_reasons(result: Result) -> Iterator[tuple[str, str]]:
    """Yield (contender, reason), each pair once."""
    pairs = {(c.name, c.skipped): None for m in result.measures for case in m.cases for c in case.skipped}
    return ((name, why) for name, why in pairs if why is not None)
