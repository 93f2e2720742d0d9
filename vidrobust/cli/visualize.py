"""Look at what a clip becomes.

    python tools/visualize.py --video FILE --output sheet.png [key=value ...]

Draws one frame of a clip under each corruption of eval.corruption.names (where none are given:
under all) at every severity. Or, with method.negatives.names or eval.bias, what the clip becomes as
a negative of diminished semantics, made as method.negatives says, and without a cue, or with that
of --other: six frames a row. The clip is the first data.frames consecutive frames, the shorter side
data.size pixels, of negatives and cues the central square; an image is data.frames=1.
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
    parser = common.parser(__doc__)
    parser.add_argument(
        "--video", type=Path, required=True, help="a video, an image or a folder of frames"
    )
    parser.add_argument(
        "--other", type=Path, help="one of another class, for conflict, swapped and swapped_frozen"
    )
    parser.add_argument("--output", type=Path, required=True, help="the picture, .png or .jpg")
    parser.add_argument(
        "--frame", type=int, help="corruptions: which frame of the clip is shown (the middle one)"
    )
    parser.add_argument(
        "--first", type=int, default=0, help="frame of the video at which the clip begins (0)"
    )
    args = parser.parse_intermixed_args()
    cfg = config.loads("", args.overrides, "command line")
    if common.print_config(args, cfg):
        return
    if args.output.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise UserError(f"--output {args.output}: a picture is a .png or a .jpg")
    if not args.output.parent.is_dir():
        raise UserError(f"--output {args.output}: there is no folder {args.output.parent}")
    try:
        picture, said = (
            draw_cues if cfg.eval.bias or cfg.method.negatives.names else draw_corruptions
        )(args, cfg)
    except (ValueError, MissingEncoder) as error:
        raise UserError(str(error)) from None
    picture.save(args.output, quality=85)
    print(f"{args.output}: {said}")


def draw_corruptions(args: argparse.Namespace, cfg: config.Config) -> tuple[Image.Image, str]:
    clip = read(args.video, args, cfg)
    names = expand(cfg.eval.corruption.names or ["all"])
    shown = len(clip) // 2 if args.frame is None else args.frame
    picture = contact_sheet(clip, names, frame=shown, seed=cfg.seed)
    return picture, f"frame {shown} of 0 to {len(clip) - 1}, corruptions: {len(names)}"


def draw_cues(args: argparse.Namespace, cfg: config.Config) -> tuple[Image.Image, str]:
    wanted = cfg.method.negatives
    for name in wanted.names:
        lookup({**NEGATIVES, "texture": None}, name, "method.negatives.names")
    for name in cfg.eval.bias:
        require_cue(name, cfg.data.frames, cfg.data.size)
    names = list(dict.fromkeys([*wanted.names, *cfg.eval.bias]))
    if args.other is None and (paired := [name for name in names if name in PAIRED]):
        raise UserError(f"{paired[0]} is of two clips: --other FILE, of another class")
    clip, other = (
        None if path is None else square(read(path, args, cfg)) for path in (args.video, args.other)
    )
    assert clip is not None
    spec = NegativeSpec(
        (), 1, (wanted.patch_px[0], wanted.patch_px[1]), wanted.turn, wanted.tube, wanted.grid
    )
    made = cues(clip, names, spec, seed=cfg.seed, other=other)
    beside = {} if other is None else {"the other": other}
    return cue_sheet(
        {"as it is": clip, **beside, **made}
    ), f"of {len(clip)} frames: {', '.join(names)}"


def read(path: Path, args: argparse.Namespace, cfg: config.Config) -> np.ndarray:
    """The clip (T, H, W, 3) uint8."""
    if is_image(str(path)) and cfg.data.frames > 1:
        raise UserError(f"{path} is one image: set data.frames=1")
    frames = np.arange(args.first, args.first + cfg.data.frames)
    record = Record(path.name, str(path), 0)
    if cfg.data.manifest:  # what is used of a damaged file, as a run does
        root = Path(cfg.data.root).expanduser()
        (record,) = apply_manifest([record], Path(cfg.data.manifest).expanduser(), root)
    with open_record(record, cfg.data.backend) as video:
        return frames_of(video, path, frames, short_side=cfg.data.size)


def square(clip: np.ndarray) -> np.ndarray:
    """The central square of its frames."""
    height, width = clip.shape[1:3]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return np.ascontiguousarray(clip[:, top : top + side, left : left + side])
