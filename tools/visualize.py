"""Look at what a clip becomes: python tools/visualize.py --video FILE --output sheet.png [key=value ...]

Draws one frame of a clip under each corruption of eval.corruption.names (where none are given: under all) at every
severity. The clip is the first data.frames consecutive frames, the shorter side data.size pixels; an image is
data.frames=1.
"""

from pathlib import Path

import numpy as np

from vidrobust import cli, config
from vidrobust.corruptions import MissingEncoder, expand
from vidrobust.data import is_image, read_frames
from vidrobust.errors import UserError
from vidrobust.evaluation import contact_sheet


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("--video", type=Path, required=True, help="a video, an image or a folder of frames")
    parser.add_argument("--output", type=Path, required=True, help="the picture, .png or .jpg")
    parser.add_argument("--frame", type=int, help="which frame of the clip is shown (the middle one)")
    parser.add_argument("--first", type=int, default=0, help="frame of the video at which the clip begins (0)")
    args = parser.parse_intermixed_args()
    cfg = config.loads("", args.overrides, "command line")
    if cli.print_config(args, cfg):
        return
    if args.output.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise UserError(f"--output {args.output}: a picture is a .png or a .jpg")
    if not args.output.parent.is_dir():
        raise UserError(f"--output {args.output}: there is no folder {args.output.parent}")
    if is_image(str(args.video)) and cfg.data.frames > 1:
        raise UserError(f"{args.video} is one image: set data.frames=1")
    frames = np.arange(args.first, args.first + cfg.data.frames)
    clip = read_frames(args.video, frames, short_side=cfg.data.size, backend=cfg.data.backend)
    names = expand(cfg.eval.corruption.names or ["all"])
    shown = len(clip) // 2 if args.frame is None else args.frame
    try:
        contact_sheet(clip, names, frame=shown, seed=cfg.seed).save(args.output, quality=85)
    except (ValueError, MissingEncoder) as error:
        raise UserError(str(error)) from None
    print(f"{args.output}: frame {shown} of 0 to {len(clip) - 1}, corruptions: {len(names)}")


if __name__ == "__main__":
    cli.run(main)
