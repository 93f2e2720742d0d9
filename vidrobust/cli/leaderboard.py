"""Rank the cards of evaluations in one table.

    python tools/leaderboard.py outputs/demo outputs/other/eval/pgd card.json --output board

It reads card.json of finished evaluations, and runs no model. leaderboard.html sorts, filters and
ranks by another accuracy on a click; leaderboard.md has the same table.
"""

import argparse
from pathlib import Path

from vidrobust.evaluation.report.leaderboard_page import leaderboard, write_leaderboard
from vidrobust.evaluation.report.ranked_cards import collect, ranking_measure
from vidrobust.utils.errors import UserError
from vidrobust.utils.logging import log, start_logging


def main() -> None:
    """Write leaderboard.html and leaderboard.md."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "places",
        nargs="+",
        type=Path,
        metavar="RUN_OR_CARD",
        help="a card.json, the folder of an evaluation, or a run's folder with all its eval/*",
    )
    parser.add_argument(
        "--output", type=Path, default=Path(), metavar="FOLDER", help="of both files (here)"
    )
    parser.add_argument(
        "--sort",
        default="",
        metavar="THREAT",
        help="a threat such as linf-1/255, clean or mpc, to rank by; default: the first threat that"
        " most cards have",
    )
    args = parser.parse_args()
    start_logging(None)
    if args.output.exists() and not args.output.is_dir():
        raise UserError(f"--output {args.output}: is a file; name a folder")
    entries = collect(args.places)
    board = leaderboard(entries, ranking_measure(entries, args.sort))
    write_leaderboard(args.output, board)
    log.info(f"leaderboard of {len(entries)} evaluations: {args.output / 'leaderboard.html'}")
