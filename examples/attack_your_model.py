"""Attack any torch video model: PGD and AutoAttack under a threat, with measured budgets.

python examples/attack_your_model.py --threat flicker-linf-8/255
"""

import argparse

import torch
from torch import Tensor, nn

from vidrobust.attacks import Misclassify, autoattack, contains, measure, parse_threat, pgd

MEAN = (0.45, 0.45, 0.45)
STD = (0.225, 0.225, 0.225)


class Wrapped(nn.Module):
    """Map clips (B, C, T, H, W) in [0, 1] to logits (B, K), as attacks expect it of a model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        # Normalisation is part of the model, so that budgets are in pixels.
        x = (x - self.mean) / self.std
        # This model wants frames before channels. Remove the line if yours does not.
        return self.model(x.transpose(1, 2))


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--threat", default="linf-4/255", help="such as l2-0.5, patch8-linf-1")
parser.add_argument("--steps", type=int, default=10, help="steps of PGD")
parser.add_argument("--effort", type=float, default=0.05, help="1 is AutoAttack; less is a try")
parser.add_argument("--clips", type=int, default=8)
args = parser.parse_args()
torch.manual_seed(0)

# Replace these three: your model, your clips and their labels.
net = nn.Sequential(nn.Flatten(1), nn.Linear(4 * 3 * 32 * 32, 5))
clips = torch.rand(args.clips, 3, 4, 32, 32)
labels = net(((clips - 0.45) / 0.225).transpose(1, 2)).argmax(1)

model = Wrapped(net).eval().requires_grad_(False)  # dropout and batch norm must not be random
threat = parse_threat(args.threat)
print(f"clean accuracy {(model(clips).argmax(1) == labels).float().mean():.2f}")
for name, adversarial in (
    ("PGD", pgd(Misclassify(model, labels), clips, threat, steps=args.steps)),
    ("AutoAttack", autoattack(model, clips, labels, threat, effort=args.effort)),
):
    # Trust no attack: measure what it changed, and ask the model again.
    assert contains(threat, clips, adversarial).all()
    accuracy = (model(adversarial).argmax(1) == labels).float().mean()
    largest = measure(threat, clips, adversarial).max()
    print(f"{name}: accuracy {accuracy:.2f}, largest change {largest:.4f} of {threat.eps:.4f}")
