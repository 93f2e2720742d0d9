"""Extract features of all videos in a folder into an .npz file.

python examples/extract_features.py /path/to/videos --weights outputs/demo/backbone.pt --width 16
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from vidrobust.config import DataConfig
from vidrobust.data import Record, eval_dataset
from vidrobust.evaluation import evaluation_mode, extract
from vidrobust.models import build_backbone

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("folder", type=Path, help="searched for videos, subfolders included")
parser.add_argument("--output", type=Path, default=Path("features.npz"))
parser.add_argument("--weights", help="backbone.pt of a run; without it the weights are random")
parser.add_argument("--backbone", default="r2plus1d_10")
parser.add_argument("--width", type=int, default=8, help="width of the backbone, as in the run")
parser.add_argument("--frames", type=int, default=8, help="frames per clip")
parser.add_argument("--size", type=int, default=56, help="height and width of a clip, pixels")
parser.add_argument("--clips", type=int, default=2, help="clips per video, evenly spaced")
parser.add_argument("--workers", type=int, default=0)
args = parser.parse_args()

# A record per video; -1 is the label of a video without a class.
suffixes = {".avi", ".mkv", ".mov", ".mp4", ".webm"}
paths = sorted(path for path in args.folder.rglob("*") if path.suffix.lower() in suffixes)
records = [Record(str(path.relative_to(args.folder)), str(path), -1) for path in paths]
if not records:
    parser.error(f"{args.folder}: holds no videos")

options = DataConfig(frames=args.frames, stride=2, short_side=args.size, size=args.size)
clips = eval_dataset(options, records, args.clips)

torch.manual_seed(0)
backbone = build_backbone(args.backbone, width=args.width)
if args.weights:
    backbone.trunk.load_state_dict(torch.load(args.weights, weights_only=True))
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
backbone.to(device)
with evaluation_mode(backbone):
    # one result per backbone
    (result,) = extract([backbone], clips, device, batch_size=16, workers=args.workers)

# Features are (videos, clips, dimension). Videos that do not decode have no row.
np.savez(args.output, features=result.features.numpy(), uids=np.array(result.uids))
for failure in result.failed:
    print(f"not decoded: {failure.reason}")
print(f"{args.output}: features {tuple(result.features.shape)} of {len(result.uids)} videos")
