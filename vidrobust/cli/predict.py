"""Name the classes of loose videos by a model with a classifier.

    python tools/predict.py --model torchvision:r3d_18 --weights my.pth --videos FOLDER
    python tools/predict.py --checkpoint outputs/supervised --videos "clips/*.mp4" [key=value ...]

Each video has eval.clips clips, and a line for each with its start and end in seconds; the last
line of a video is the average over them. The configuration is that of the checkpoint, or of the
model's input card.
"""

import csv
import io
import json
from pathlib import Path

from vidrobust.cli import common
from vidrobust.data.given import loose_records
from vidrobust.evaluation.measured_model import load_run, load_source
from vidrobust.evaluation.predictions import Prediction, predict_videos
from vidrobust.utils.atomic_files import replacing
from vidrobust.utils.errors import UserError
from vidrobust.utils.logging import log, start_logging
from vidrobust.utils.text import visible


def main() -> None:
    """Predict the classes of videos, and print or write them."""
    parser = common.parser(__doc__)
    common.add_checkpoint(parser, model=True)
    common.add_videos(parser, required=True)
    parser.add_argument("--top", type=int, default=5, help="number of classes of each clip (5)")
    parser.add_argument(
        "--output", type=Path, help="file: .csv, or .jsonl with a JSON object in each line"
    )
    args = common.parsed(parser)
    start_logging(None, quiet=not common.is_main())
    if args.top < 1:
        raise UserError(f"--top {args.top}: must be at least 1")
    if args.output and args.output.suffix not in (".csv", ".jsonl"):
        raise UserError(f"--output {args.output}: must be a .csv or a .jsonl")
    if args.model:
        cfg, _ = common.model_config(args)
    else:
        cfg, state, _ = common.load_checkpoint(args)
    if common.print_config(args, cfg):
        return
    records = loose_records(args.videos, cfg.data.frames)
    source = load_source(cfg, args.model, args.weights) if args.model else None
    measured = source or load_run(cfg, state, 1)
    rows, failed = predict_videos(cfg, measured, records, args.top)
    if not common.is_main():
        return
    if args.output:
        with replacing(args.output) as file:
            text = _csv(rows) if args.output.suffix == ".csv" else _jsonl(rows)
            file.write(text.encode())
        log.info(f"{len(rows)} rows in {args.output}")
    else:
        print("\n".join(_line(row) for row in rows))
    if failed:
        raise UserError(
            f"videos without a prediction: {len(failed)}; the first: {failed[0].reason}"
        )


def _line(row: Prediction) -> str:
    """Return a prediction as a line for people."""
    clip = "all clips" if row["clip"] is None else f"clip {row['clip']}"
    if row["start_s"] is not None:
        clip += f", {row['start_s']:.2f} to {row['end_s']:.2f} s"
    classes = ", ".join(f"{visible(name)} {100 * p:.1f} %" for name, p in row["classes"])
    return f"{visible(row['video'])} ({clip}): {classes}"


def _jsonl(rows: list[Prediction]) -> str:
    """Return predictions as JSON, one in each line."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def _csv(rows: list[Prediction]) -> str:
    """Return predictions as a table with a row for each clip and class."""
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(["video", "clip", "start_s", "end_s", "rank", "class", "probability"])
    for row in rows:
        for rank, (name, probability) in enumerate(row["classes"], 1):
            clip = "all" if row["clip"] is None else row["clip"]
            span = ["" if row[key] is None else f"{row[key]:.3f}" for key in ("start_s", "end_s")]
            table.writerow([row["video"], clip, *span, rank, name, f"{probability:.6f}"])
    return text.getvalue()
