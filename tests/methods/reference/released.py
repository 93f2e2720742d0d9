"""Steps of released methods, written anew from their descriptions, plain and in double precision.

Each takes a model and views, and gives the loss (a scalar) and the adversarial clips.
`docs/fidelity.md` says which code they describe. Attacks begin at the clips: a random start is the
same on both sides, but for its clipping to [0, 1].
"""

import torch
from torch.nn import functional as F

T = 0.5
EPS = 1 / 32  # exact in single precision, in which attacks keep their budget


def unit(z):
    return F.normalize(z, dim=1)


def contrast(z, ids, temperature=T, stop=False, scale=1.0):
    """SupContrast's loss: -scale times the mean over anchors of their positives' mean log
    softmax.
    """
    n = unit(z)
    s = n @ (n.detach() if stop else n).T / temperature
    others = ~torch.eye(len(z), dtype=torch.bool)
    log_p = s - (s.exp() * others).sum(1, keepdim=True).log()
    positive = (ids[:, None] == ids) & others
    return -scale * ((log_p * positive).sum(1) / positive.sum(1)).mean()


def ascend(loss, x, steps, size, eps=EPS):
    """Signed steps of the gradient from x, clamped to the budget and to [0, 1]."""
    moved = x.clone()
    for _ in range(steps):
        v = moved.detach().requires_grad_(True)
        (g,) = torch.autograd.grad(loss(v), v)
        moved = (x + (v.detach() + size * g.sign() - x).clamp(-eps, eps)).clamp(0, 1)
    return moved


def simclr(model, views, ids, temperature=T, scale=1.0):
    """SupContrast's step: both views are one batch. ids: the videos', or their labels (SupCon)."""
    return contrast(
        model(torch.cat([views[:, 0], views[:, 1]])), ids.repeat(2), temperature, scale=scale
    )


def pairs(predicted, targets):
    """Cosines of both directions, means over the batch."""
    return [F.cosine_similarity(predicted[v], targets[1 - v], dim=1).mean() for v in (0, 1)]


def simsiam(model, predictor, views):
    z = [model(views[:, v]) for v in (0, 1)]
    first, second = pairs([predictor(each) for each in z], [each.detach() for each in z])
    return -(first + second) / 2


def byol(model, predictor, target, views):
    """2 - 2 cos, the sum of both directions; the target is the momentum encoder after its step."""
    z = [predictor(model(views[:, v])) for v in (0, 1)]
    first, second = pairs(z, [target(views[:, v]).detach() for v in (0, 1)])
    return (2 - 2 * first) + (2 - 2 * second)


def uel_loss(a, b, temperature=T):
    """The batch criterion of UEL: no gradient to the second factor of any similarity."""
    n = unit(torch.cat([a, b]))
    both = len(n)
    e = (n @ n.detach().T / temperature).exp() * ~torch.eye(both, dtype=torch.bool)
    p = e / e.sum(1, keepdim=True)
    own = p[torch.arange(both), torch.arange(both).roll(len(a))]
    wrong = torch.log(1 - p).sum(1) - torch.log(1 - own)
    return -(own.log() + wrong).mean()


def rocl(model, views, ids, steps, size, weight=256, positives=(1.0, 1.0), hard=None):
    """RoCL, and A-InfoNCE's RoCL-IP and RoCL-HN.

    positives: factors of a clean anchor's loss with the adversarial view and the other way round.
    hard: (beta, tau) of hard negatives.
    """
    x1, x2 = views[:, 0], views[:, 1]
    model.eval()
    x_adv = ascend(
        lambda v: contrast(model(torch.cat([v, x2])), ids.repeat(2), stop=True), x1, steps, size
    )
    model.train()
    second = contrast(model(torch.cat([x_adv, x2])), ids.repeat(2), stop=True)
    n = unit(model(torch.cat([x1, x2, x_adv])))
    s = n @ n.detach().T / T
    rows, b = len(s), len(x1)
    others = ~torch.eye(rows, dtype=torch.bool)
    positive = (ids.repeat(3)[:, None] == ids.repeat(3)) & others
    if hard is None:
        total = (s.exp() * others).sum(1)
    else:
        beta, tau = hard
        negative = s.exp() * (others & ~positive)
        n_negatives = 3 * (b - 1)
        mean_positive = (s.exp() * positive).sum(1) / positive.sum(1)
        # the code divides a column by its own row's mean
        weighed = negative**beta * negative / (negative**beta).mean(1)
        rest = (weighed.sum(1) - tau * n_negatives * mean_positive) / (1 - tau)
        floor = torch.tensor(n_negatives * torch.e ** (-1 / T))
        total = mean_positive + torch.maximum(rest, floor)
    each = total.log()[:, None] - s
    adversarial = torch.arange(rows) >= 2 * b
    factor = torch.ones_like(s)
    factor[~adversarial[:, None] & adversarial] = positives[0]
    factor[adversarial[:, None] & ~adversarial] = positives[1]
    three = (each * factor * positive).sum() / rows
    return three + second / weight, x_adv


def acl(encode, views, ids, steps, size, model, weight=1.0, branch="adv"):
    """ACL: clean and adversarial pairs, each one batch; encode: of clips (2B), by its norm branch.

    DynACL's `encode` is two encoders. Gives both losses, the clips, and the embeddings.
    """
    both, two = torch.cat([views[:, 0], views[:, 1]]), ids.repeat(2)
    with encode.use_branch(branch):
        encode.eval()
        x_adv = ascend(lambda v: contrast(encode(v), two), both, steps, size)
        encode.train()
        a = encode(x_adv)
    z = encode(both)
    clean, adv = contrast(z, two), contrast(a, two)
    return ((2 - weight) * clean + weight * adv) / 2, x_adv, z, a


def air_terms(z, a, original):
    """AIR's two sums, in which torch's kl_div is given probabilities for their logarithms."""

    def like(one, other):
        return (F.cosine_similarity(one, other, dim=1) / T).softmax(0)

    (z1, z2), (a1, a2) = z.chunk(2), a.chunk(2)
    p1, p2 = like(z1, original), like(z2, original)
    q1, q2 = like(a1, original) * like(a1, z1), like(a2, original) * like(a2, z2)
    return (p2 * (p2.log() - p1)).sum(), (q2 * (q2.log() - q1)).sum()


def advcl(  # noqa: PLR0913  (all that the released step takes)
    model, heads, views, ids, known, steps, size, weight=0.2, radius=8.0, scale=T / 0.07
):
    """AdvCL: four views, pseudo-labels (B, G); the attack is in training mode."""
    x1, x2, x = views[:, 0], views[:, 1], views[:, 2]
    side = x.shape[-1]
    rows, columns = torch.meshgrid(*2 * [torch.arange(side) - side / 2], indexing="ij")
    keep = (rows**2 + columns**2).sqrt() >= radius
    spectrum = torch.fft.fftshift(torch.fft.fft2(x), dim=(-2, -1)) * keep
    high = torch.fft.ifft2(torch.fft.ifftshift(spectrum, dim=(-2, -1))).real
    four = ids.repeat(4)

    def contrastive(v):
        with model.use_branch("adv"):
            moved = model(v)
        return contrast(
            torch.cat([moved, *(model(other) for other in (x1, x2, high))]), four, scale=scale
        )

    def cross_entropy(v):
        with model.use_branch("adv_ce"):
            features = model.backbone(v)
        losses = [F.cross_entropy(head(features), known[:, g]) for g, head in enumerate(heads)]
        return torch.stack(losses).mean()

    x_cl = ascend(contrastive, x, steps, size)
    x_ce = ascend(cross_entropy, x, steps, size)
    return contrastive(x_cl) + weight * cross_entropy(x_ce), x_cl, x_ce


def taro_targets(model, predictor, x):
    """Choose which clip of the batch each is to be taken for, in training mode."""
    e = model.backbone(x).detach()
    p = predictor(model.head(e)).detach().softmax(1)
    s = (unit(e) @ unit(e).T - torch.eye(len(e)) + 1) / 2  # its own counts as 0
    entropy = (p * p.log()).sum(1)
    entropy = (entropy / entropy.max()).expand(len(e), -1)
    return (F.normalize(s, dim=1) + F.normalize(entropy, dim=1)).argmax(1)


def taro(model, predictor, views, chosen, steps, size):
    """TARO on SimSiam; chosen: of each view, from `taro_targets`."""
    x = [views[:, v] for v in (0, 1)]
    model.eval(), predictor.eval()
    moved = []
    for v in (0, 1):
        aim = model(x[v][chosen[v]]).detach()

        def near(clip, aim=aim):
            return F.cosine_similarity(predictor(model(clip)), aim, dim=1).sum()

        moved.append(ascend(near, x[v], steps, size))
    model.train(), predictor.train()
    z = [model(clip) for clip in (x[0], *moved)]
    p = [predictor(each) for each in z]

    def between(a, b):
        first = F.cosine_similarity(p[a], z[b].detach(), dim=1).mean()
        return -(first + F.cosine_similarity(p[b], z[a].detach(), dim=1).mean()) / 2

    return between(0, 1) + between(2, 1) + between(0, 2), torch.cat(moved)


def deacl(model, teacher, x, steps, size, gamma=2.0):
    aim = teacher(x).detach()
    model.eval()
    x_adv = ascend(lambda v: -F.cosine_similarity(model(v), aim, dim=1).sum(), x, steps, size)
    model.train()
    clean, moved = model(torch.cat([x, x_adv])).chunk(2)
    loss = -F.cosine_similarity(clean, aim, dim=1).mean()
    return loss - gamma * F.cosine_similarity(moved, clean, dim=1).mean(), x_adv


def lars_step(params, lr, weight_decay, trust=1e-3):
    """The first step of ACL's LARS, which adapts norms and biases as well."""
    moved = []
    for p in params:
        size, slope = p.norm(), p.grad.norm()
        rate = (
            trust * size / (slope + weight_decay * size) if size > 1e-15 and slope > 1e-15 else 1.0
        )
        moved.append(p.detach() - lr * rate * (p.grad + weight_decay * p.detach()))
    return moved


def sgd_step(params, lr, weight_decay):
    """The first step of SGD, which decays norms and biases as well."""
    return [p.detach() - lr * (p.grad + weight_decay * p.detach()) for p in params]
