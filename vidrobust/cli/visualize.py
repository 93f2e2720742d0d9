"""Draw a clip under corruptions, as a negative, or with its cues changed.

    python tools/visualize.py --video FILE --output sheet.png [key=value ...]

corruptions         one frame under each of eval.corruption.names (default: all) at each severity
negatives and cues  with method.negatives.names or eval.bias: the clip as a non-semantic negative,
                    made with the options of method.negatives; without a cue; or with a cue of
                    --other. Six frames per row, the central square

The clip is data.frames consecutive frames, from --first on, with data.size pixels on the shorter
side. For an image set data.frames=1.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from vidrobust import config
from vidrobust.cli import common
from vidrobust.corruptions import MissingEncoder, expand
from vidrobust.data import Record, apply_manifest, is_image
from vidrobust.data.decoding.read_frames import frames_of, open_record
from vidrobust.evaluation import contact_sheet
from vidrobust.evaluation.natural.bias import PAIRED, require_cue
from vidrobust.evaluation.report.contact_sheet import cue_sheet, cues
from vidrobust.utils.errors import UserError, lookup
from vidrobust.views import NEGATIVES, NegativeSpec


def main() -> None:
    """Draw a sheet of pictures, and save it."""
    parser = common.parser(__doc__)
    parser.add_argument(
        "--video", type=Path, required=True, help="a video, an image or a folder of frames"
    )
    parser.add_argument(
        "--other",
        type=Path,
        help="a second video of another class, for conflict, swapped and swapped_frozen",
    )
    parser.add_argument("--output", type=Path, required=True, help="picture file, .png or .jpg")
    parser.add_argument(
        "--frame", type=int, help="corruptions: index of the frame to show; default: the middle one"
    )
    parser.add_argument(
        "--first", type=int, default=0, help="index of the clip's first frame in the video (0)"
    )
    args = parser.parse_intermixed_args()
    cfg = config.loads("", args.overrides, "command line")
    if common.print_config(args, cfg):
        return
    if args.output.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise UserError(f"--output {args.output}: must be a .png or a .jpg")
    if not args.output.parent.is_dir():
        raise UserError(f"--output {args.output}: there is no folder {args.output.parent}")
    shows_cues = cfg.eval.bias or cfg.method.negatives.names
    draw = draw_cues if shows_cues else draw_corruptions
    try:
        picture, summary = draw(args, cfg)
    except (ValueError, MissingEncoder) as error:
        raise UserError(str(error)) from None
    picture.save(args.output, quality=85)
    print(f"{args.output}: {summary}")


def draw_corruptions(args: argparse.Namespace, cfg: config.Config) -> tuple[Image.Image, str]:
    """Return a sheet of a frame under corruptions, and a line that describes it."""
    clip = read(args.video, args, cfg)
    names = expand(cfg.eval.corruption.names or ["all"])
    # by default the middle frame
    index = len(clip) // 2 if args.frame is None else args.frame
    picture = contact_sheet(clip, names, frame=index, seed=cfg.seed)
    return picture, f"frame {index} of 0 to {len(clip) - 1}, corruptions: {len(names)}"


def draw_cues(args: argparse.Namespace, cfg: config.Config) -> tuple[Image.Image, str]:
    """Return a sheet of a clip as negatives and with changed cues, and a line that describes it."""
    options = cfg.method.negatives
    # check all names before the clip is decoded
    for name in options.names:
        lookup({**NEGATIVES, "texture": None}, name, "method.negatives.names")
    for name in cfg.eval.bias:
        require_cue(name, cfg.data.frames, cfg.data.size)
    names = list(dict.fromkeys([*options.names, *cfg.eval.bias]))
    if args.other is None and (paired := [name for name in names if name in PAIRED]):
        raise UserError(f"{paired[0]} needs a second clip, of another class: add --other FILE")
    clip = square(read(args.video, args, cfg))
    other = None if args.other is None else square(read(args.other, args, cfg))
    # `cues` sets the name and the count
    spec = NegativeSpec(
        (), 1, (options.patch_px[0], options.patch_px[1]), options.turn, options.tube, options.grid
    )
    rows = {"as it is": clip}
    if other is not None:
        rows["the other"] = other
    rows |= cues(clip, names, spec, seed=cfg.seed, other=other)
    return cue_sheet(rows), f"of {len(clip)} frames: {', '.join(names)}"


def read(path: Path, args: argparse.Namespace, cfg: config.Config) -> np.ndarray:
    """Read a clip (T, H, W, 3) uint8.

    Args:
        path: a video, an image or a folder of frames.
        args: command line; --first is used.
        cfg: frames, size, decoder and manifest.
    """
    if is_image(str(path)) and cfg.data.frames > 1:
        raise UserError(f"data.frames={cfg.data.frames}: {path} is one image; set data.frames=1")
    frames = np.arange(args.first, args.first + cfg.data.frames)
    record = Record(path.name, str(path), 0)
    # the manifest may restrict a damaged file to the frames that decode, as in a run
    if cfg.data.manifest:
        root = Path(cfg.data.root).expanduser()
        (record,) = apply_manifest([record], Path(cfg.data.manifest).expanduser(), root)
    with open_record(record, cfg.data.backend) as video:
        return frames_of(video, path, frames, short_side=cfg.data.size)


def square(clip: np.ndarray) -> np.ndarray:
    """Return the central square of a clip's frames."""
    height, width = clip.shape[1:3]
    side = min(height, width)
    top = (height - side) // 2
    left = (width - side) // 2
    return np.ascontiguousarray(clip[:, top : top + side, left : left + side])
