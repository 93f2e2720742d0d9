"""Describe an evaluation for a paper, with BibTeX of exactly what it used."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources

from vidrobust.corruptions import BENCHMARKS, SEVERITIES
from vidrobust.evaluation.adversarial.suites import SUITES
from vidrobust.evaluation.summary import Summary
from vidrobust.utils.latex import latex_escape


@dataclass(frozen=True)
class Reference:
    """An entry of references.bib.

    Attributes:
        key: of BibTeX.
        cites: key of docs/references.md.
        uses: what in an evaluation stands on it, such as "attack:pgd".
        text: the entry, without `cites` and `uses`.
    """

    key: str
    cites: str
    uses: frozenset[str]
    text: str


@cache
def references() -> tuple[Reference, ...]:
    """Return the entries of references.bib, in its order."""
    package = resources.files("vidrobust.evaluation.report")
    text = (package / "references.bib").read_text(encoding="utf-8")
    entries = []
    for entry in re.findall(r"^@\w+\{.*?^\}", text, re.MULTILINE | re.DOTALL):
        own = {name: _field(entry, name) for name in ("cites", "uses")}
        kept = [
            line for line in entry.splitlines() if not line.strip().startswith(("cites", "uses"))
        ]
        key = entry.partition("{")[2].partition(",")[0]
        uses = frozenset(own["uses"].split())
        entries.append(Reference(key, own["cites"], uses, "\n".join(kept)))
    return tuple(entries)


def _field(entry: str, name: str) -> str:
    """Return the value of a field of an entry."""
    found = re.search(rf"^  {name} = \{{(.*)\}},$", entry, re.MULTILINE)
    return found[1] if found else ""


def used(summary: Summary) -> set[str]:
    """Return what an evaluation used, in the words of `uses` in references.bib."""
    names = {f"protocol:{summary.protocol}", "measure:intervals"}
    if summary.curve:
        names |= {f"attack:{name}" for name in summary.attacks}
        names |= {f"norm:{point.norm}" for point in summary.curve}
        names |= {f"support:{point.support}" for point in summary.curve}
        suite = (summary.suite or "").partition(",")[0]
        names |= {f"suite:{suite}"} if SUITES.get(suite, suite) != suite else set()
        names |= {"measure:checks"} if summary.checks else set()
    if summary.retrieval:
        names.add(f"retrieval:{summary.retrieval.similarity}")
    if summary.corruption:
        names |= _sets_of(summary.corruption.corruptions) | {"measure:mpc"}
        names |= {"measure:mce"} if summary.corruption.mce is not None else set()
    if summary.bias:
        names |= {f"bias:{name}" for name in summary.bias.views} | {"measure:bias"}
    measured = {
        "calibration": summary.calibration,
        "open_set": summary.open_set,
        "geometry": summary.geometry,
        "sensitivity": summary.sensitivity,
        "precise_bn": summary.precise_bn,
        "eot": summary.eot > 1,
    }
    return names | {f"measure:{name}" for name, value in measured.items() if value}


def _sets_of(corruptions: Iterable[str]) -> set[str]:
    """Return the published sets that corruptions come from, as words of `uses`."""
    names = set()
    for corruption in corruptions:
        # sets of our own are no source
        published = [
            name
            for name, members in BENCHMARKS.items()
            if corruption in members and name not in ("all", "quick")
        ]
        names.add(f"corruptions:{published[0] if published else 'other'}")
    return names


def bibtex(names: set[str]) -> str:
    """Return the entries of what was used, from `used`."""
    return "\n\n".join(each.text for each in references() if each.uses & names)


def cited(names: set[str], *prefixes: str) -> str:
    r"""Return \cite of the references of some of what was used; "" for none.

    Args:
        names: from `used`.
        prefixes: such as "attack:".
    """
    wanted = {name for name in names if name.startswith(prefixes)}
    keys = [each.key for each in references() if each.uses & wanted]
    return f" \\cite{{{','.join(keys)}}}" if keys else ""


@dataclass(frozen=True)
class Effort:
    """Record what the attacks of an evaluation cost.

    Attributes:
        doubts: lines of its self-checks.
        seconds: of all attacks.
    """

    doubts: int = 0
    seconds: float = 0.0


def methods_text(summary: Summary, effort: Effort | None = None) -> list[str]:
    r"""Return paragraphs for LaTeX that describe the evaluation, with \cite commands."""
    names = used(summary)
    return [
        line
        for line in (
            _representation(summary, names),
            _attacks(summary, names, effort or Effort()),
            _corruptions(summary, names),
            _cues(summary, names),
            _features(summary, names),
        )
        if line
    ]


def _representation(summary: Summary, names: set[str]) -> str:
    """Return what was measured on which videos."""
    views = summary.views["representation"]
    learned = (
        f" It was fitted to {summary.train_videos} training videos." if summary.train_videos else ""
    )
    few = f" Labels: {latex_escape(summary.labels)} of each class." if summary.labels else ""
    return (
        f"We evaluate on {latex_escape(summary.dataset)} ({latex_escape(summary.split)}) with"
        f" {views} views (clips x crops) per video, averaging {summary.view_average}. The"
        f" classifier is the {latex_escape(summary.classifier)} (protocol"
        f" {latex_escape(summary.protocol)}{cited(names, 'protocol:')}).{learned}{few} Intervals of"
        f" accuracies are 95\\% Wilson intervals{cited(names, 'measure:intervals')}."
    )


def _attacks(summary: Summary, names: set[str], effort: Effort) -> str:
    """Return how clips were attacked; "" without attacks."""
    if not summary.curve:
        return ""
    target = {
        "clip": "the centre clip of each video",
        "video": "the source frames of each video, through the average over its views",
    }[summary.unit]
    passes = sum(sum(sum(pair) for pair in point.passes.values()) for point in summary.curve)
    attacks = cited(names, "attack:", "suite:")
    random = (
        f" Gradients are averaged over {summary.eot} passes{cited(names, 'measure:eot')}."
        if summary.eot > 1
        else ""
    )
    seconds = f", {effort.seconds:.0f} s" if effort.seconds >= 1 else ""
    suite = latex_escape(summary.suite or "")
    threats = latex_escape(", ".join(summary.threats)) + cited(names, "norm:", "support:")
    return (
        f"We attack {target} of {summary.n} videos with {suite}{attacks}"
        f" under the threats {threats}, with pixel values in [0, 1]. A video counts as robust if it"
        " is classified rightly and no attack changes the prediction, at this budget and at all"
        f" smaller ones.{random} The attacks took {passes}"
        f" forward and backward passes of clips in all{seconds}."
        f"{_self_checks(summary, names, effort)}"
    )


def _self_checks(summary: Summary, names: set[str], effort: Effort) -> str:
    """Return a sentence about the self-checks; "" for evaluations that do not say."""
    if summary.checks is None:
        return ""
    if not summary.checks:
        return " Model and attack were not checked before."
    doubts = {0: "no warning", 1: "1 warning"}.get(effort.doubts, f"{effort.doubts} warnings")
    return (
        f" Checks of model and attack on {summary.checks} clips{cited(names, 'measure:checks')}"
        f" gave {doubts}."
    )


def _corruptions(summary: Summary, names: set[str]) -> str:
    """Return how videos were corrupted; "" without corruptions."""
    table = summary.corruption
    if table is None:
        return ""
    severities = ", ".join(map(str, table.severities))
    place = (
        "the frames of the file, before crop and resize"
        if table.place == "source"
        else "the crop that the model receives"
    )
    scale = f"severities {severities} of {len(SEVERITIES)}"
    relative = (
        f" The mean corruption error (mCE) is relative to {latex_escape(table.baseline or '')}"
        f"{cited(names, 'measure:mce')}."
        if table.mce is not None
        else ""
    )
    return (
        f"We corrupt {table.n} videos by {latex_escape(', '.join(table.corruptions))}"
        f"{cited(names, 'corruptions:')} at {scale}, applied to {place}, and report the mean"
        f" accuracy over corruptions and severities{cited(names, 'measure:mpc')}.{relative}"
    )


def _cues(summary: Summary, names: set[str]) -> str:
    """Return which cues were removed, and further measures; "" for none."""
    sentences = []
    if summary.bias:
        views = ", ".join(name for name in summary.bias.views if name != "clean")
        sentences.append(
            f"Cues are measured by the accuracy on {summary.bias.n} videos as {latex_escape(views)}"
            f"{cited(names, 'bias:', 'measure:bias')}."
        )
    if summary.calibration:
        sentences.append(
            "Calibration is the expected calibration error with"
            f" {len(summary.calibration[0].bins)} bins, and the Brier score"
            f"{cited(names, 'measure:calibration')}."
        )
    if summary.open_set:
        sentences.append(
            "Unknown classes are recognised by the largest probability"
            f"{cited(names, 'measure:open_set')}."
        )
    return " ".join(sentences)


def _features(summary: Summary, names: set[str]) -> str:
    """Return what was measured on features without a classifier; "" for none."""
    sentences = []
    if summary.precise_bn:
        sentences.append(
            f"Batch-norm statistics were computed anew from {summary.precise_bn} training clips"
            f"{cited(names, 'measure:precise_bn')}."
        )
    if summary.bf16:
        sentences.append("Features, and gradients of attacks, were computed in bf16.")
    if summary.retrieval:
        table = summary.retrieval
        sentences.append(
            f"In retrieval, {table.n} test videos search {table.gallery} training videos by the"
            f" {'centered ' if table.similarity == 'centered' else ''}cosine similarity of the mean"
            f" feature of {table.clips} clips{cited(names, 'retrieval:')}."
        )
    if summary.geometry:
        sentences.append(
            "Geometry is measured on normalised features: alignment, uniformity, and distances"
            f" within and between classes{cited(names, 'measure:geometry')}."
        )
    if summary.sensitivity:
        sentences.append(
            f"Sensitivity of the representation is measured on {summary.sensitivity.n} clips by"
            f" attacks without labels{cited(names, 'measure:sensitivity')}."
        )
    return " ".join(sentences)
