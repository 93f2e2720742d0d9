"""Train SimCLR on the built-in synthetic videos, with a training loop of ten lines.

python examples/simclr_in_ten_lines.py --steps 100
"""

import argparse

import torch

from vidrobust import config
from vidrobust.data import TrainBatches, batch_loader, build_records, train_dataset
from vidrobust.methods import build_method
from vidrobust.views import apply_draws, to_float

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--root", default="datasets/motionshapes", help="written on first use")
parser.add_argument("--steps", type=int, default=10)
parser.add_argument("--batch-size", type=int, default=16)
parser.add_argument("--videos", type=int, default=8, help="training videos in each of 8 classes")
parser.add_argument("--device", default="cpu")
args = parser.parse_args()

# Options as in a config file; `python tools/train_net.py --help` lists them.
options = f"""
data: {{name: motionshapes, root: "{args.root}", frames: 4, short_side: 40, size: 32}}
model: {{backbone: r2plus1d_10, width: 8, hidden: 64, dim: 32}}
method: {{name: simclr, temperature: 0.5}}
"""
sizes = [f"data.motionshapes.train_per_class={args.videos}"]
cfg = config.loads(options, [*sizes, "data.motionshapes.test_per_class=2"])
records, classes = build_records(cfg.data, "train")
torch.manual_seed(cfg.seed)
method = build_method(cfg, len(classes)).to(args.device).train()
clips = train_dataset(cfg.data, cfg.augment, records, method.views, cfg.seed)
batches = TrainBatches(len(records), args.batch_size, cfg.seed, 0, args.steps)
optimizer = torch.optim.AdamW(method.parameters(), lr=1e-3)

for step, batch in enumerate(batch_loader(clips, batches, workers=0)):
    views = to_float(batch.clips.to(args.device))  # (B, V, C, T, H, W) in [0, 1]
    # Colour and blur are applied here, to all views at once; crops were made by the loader.
    views = apply_draws(views.flatten(0, 1), batch.draws.flatten(0, 1)).view(views.shape)
    ids, labels = batch.index.to(args.device), batch.labels.to(args.device)
    loss = method(views, ids, labels, step / args.steps)["loss"].mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(f"step {step + 1}: loss {loss.item():.4f}")
