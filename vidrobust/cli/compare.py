"""Compare the decisions of two models on the same test videos.

    python tools/compare.py outputs/one/eval/pgd outputs/other/eval/pgd --output compare.json

It reads two finished evaluations, and runs no model: agreement, Cohen's kappa and error consistency
on clean videos, and under each threat that both have.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from vidrobust.evaluation.decision_similarity import Comparison, Similarity, compare_evaluations
from vidrobust.evaluation.report.tables import escape, table
from vidrobust.utils.atomic_files import replacing
from vidrobust.utils.errors import UserError
from vidrobust.utils.logging import log, start_logging
from vidrobust.utils.readable import percent, with_interval


def main() -> None:
    """Print the comparison of two evaluations, or write it."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "folders", nargs=2, type=Path, metavar="FOLDER", help="folder of an evaluation"
    )
    parser.add_argument("--output", type=Path, help="file: .json, or .md with the printed table")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap intervals (0)")
    args = parser.parse_args()
    start_logging(None)
    if args.output and args.output.suffix not in (".json", ".md"):
        raise UserError(f"--output {args.output}: must be a .json or a .md")
    if args.seed < 0:
        raise UserError(f"--seed {args.seed}: must be at least 0")
    comparison = compare_evaluations(args.folders, args.seed)
    text = "\n".join(comparison_lines(comparison)) + "\n"
    if not args.output:
        print(text, end="")
        return
    if args.output.suffix == ".json":
        text = json.dumps(asdict(comparison), indent=2) + "\n"
    with replacing(args.output) as file:
        file.write(text.encode("utf-8", "backslashreplace"))
    log.info(f"comparison: {args.output}")


def comparison_lines(comparison: Comparison) -> list[str]:
    """Return the comparison as lines of Markdown."""
    titles = [
        "videos",
        "n",
        "accuracy of both",
        "agreement",
        "Cohen's kappa",
        "error consistency",
    ]
    pair = zip(
        comparison.folders,
        comparison.checkpoints,
        comparison.classifiers,
        comparison.suites,
        strict=True,
    )
    lines = [
        f"- {escape(folder)}: {escape(checkpoint)}, {escape(classifier)}"
        + (f", attacked by {escape(suite)}" if suite else "")
        for folder, checkpoint, classifier, suite in pair
    ]
    lines.append("")
    if len(set(comparison.classifiers)) > 1:
        lines += ["The classifiers differ, and with them what is compared.", ""]
    if len(comparison.rows) > 1 and len(set(comparison.suites)) > 1:
        lines += ["The attacks differ: a weaker one leaves more videos right.", ""]
    lines += table(titles, *[_cells(row) for row in comparison.rows])
    lines += ["", "95 % bootstrap intervals over videos."]
    if comparison.left_out:
        lines.append(f"Threats of one evaluation only: {', '.join(comparison.left_out)}.")
    return lines


def _cells(row: Similarity) -> list[str]:
    """Return the cells of a row."""
    accuracies = " and ".join(percent(acc) for acc in row.acc)
    return [
        row.threat or "clean",
        str(row.n),
        accuracies,
        with_interval(row.agreement, row.agreement_ci95),
        "{:.3f} ({:.3f} to {:.3f})".format(row.kappa, *row.kappa_ci95),
        "{:.3f} ({:.3f} to {:.3f})".format(row.error_consistency, *row.error_consistency_ci95),
    ]
