"""Look at what a clip becomes: python tools/visualize.py --video FILE --output sheet.png [key=value ...]

Draws one frame of a clip under each corruption of eval.corruption.names (all) at every severity. The clip is the first
data.frames consecutive frames, the shorter side data.size pixels.
"""

from pathlib import Path

import numpy as np

from vidrobust import cli, config
from vidrobust.corruptions import MissingEncoder, expand
from vidrobust.data import read_frames
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
    frames = np.arange(args.first, args.first + cfg.data.frames)
    clip = read_frames(args.video, frames, short_side=cfg.data.size, backend=cfg.data.backend)
    names = expand(cfg.eval.corruption.names or ["all"])
    shown = len(clip) // 2 if args.frame is None else args.frame
    try:
        contact_sheet(clip, names, frame=shown, seed=cfg.seed).save(args.output, quality=85)
    except (ValueError, MissingEncoder) as error:  # ValueError of Pillow: a suffix that it does not know
        raise UserError(str(error)) from None
    print(f"{args.output}: {len(names)} corruptions of frame {shown} of {len(clip)}")


if __name__ == "__main__":
    cli.run(main)
