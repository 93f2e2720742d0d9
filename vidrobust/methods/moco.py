"""MoCo v2: a queue of keys from a momentum encoder (He et al. 2020, Chen et al. 2020)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from vidrobust.data import Record
from vidrobust.losses.cosine import cosines, full_precision
from vidrobust.losses.info_nce import info_nce
from vidrobust.methods.adversarial.adversary import Adversary
from vidrobust.methods.adversarial.view_batch import average, through
from vidrobust.methods.base import Method, negative_cosine
from vidrobust.methods.false_negatives.removal import Masks, Removal
from vidrobust.methods.spec import Cost, MethodSpec, Parts
from vidrobust.models import Model
from vidrobust.models.momentum import MomentumEncoder
from vidrobust.utils import distributed
from vidrobust.utils.errors import UserError


class MoCo(Method):
    """The first view asks, the others are its keys: positives now, and in the queue negatives of
    later batches.

    The queue keeps the id of each key, so that neither a video's own earlier keys nor, with
    `removal`, false negatives among the others are pushed away. With more than two clips a video, a
    query has several positives (Feichtenhofer et al. 2021). shuffle: with several ranks, keys are
    computed in batches mixed over them, so that norms give nothing away. adversary: L(q) + alpha
    L(q_adv), where x_adv raises the loss of the first view against its keys and the queue (an
    extension of CLAE, METHODS section 2.4); q_adv goes through the adversarial norm branch.
    Negatives of diminished semantics (paper C; METHODS section 3.1) go through the momentum encoder
    as keys do, with the factor `alpha_negatives` on their similarity, and are not enqueued.
    """

    queue: Tensor
    queue_ids: Tensor
    position: Tensor
    steps: Tensor

    def __init__(
        self,
        model: Model,
        temperature: float,
        encoder: MomentumEncoder,
        size: int,
        dim: int,
        removal: Removal | None = None,
        *,
        clips: int = 2,
        shuffle: bool = True,
        detect_on_keys: bool = False,
        adversary: Adversary | None = None,
        alpha: float = 1.0,
    ) -> None:
        super().__init__(removal)
        self.model, self.temperature, self.encoder = model, temperature, encoder
        self.views, self.shuffle, self.detect_on_keys = clips, shuffle, detect_on_keys
        self.adversary, self.alpha = adversary, alpha
        self.register_buffer("queue", F.normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("queue_ids", torch.full((size,), -1))
        self.register_buffer("position", torch.zeros((), dtype=torch.long))  # of the oldest
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def prepare(self, records: Sequence[Record]) -> None:
        if len(self.queue) > len(records):
            raise UserError(
                f"method.queue={len(self.queue)} is larger than the data set ({len(records)}"
                f" videos), all of which it would hold; set at most {len(records)}"
            )
        self.encoder.start_from(self.model)
        super().prepare(records)

    def forward(self, views: Tensor, ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """views (B, V + M, C, T, H, W) in [0, 1], ids (B,) -> {"loss": (B,), and its parts}; labels
        are not seen.
        """
        query = self.model(views[:, 0])
        if self.training:
            self.encoder.follow(self.model, self.progress)
        keys = self._keys(views[:, 1 : self.views])
        pushed = (
            self._keys(views[:, self.views :]).transpose(0, 1)
            if views.shape[1] > self.views
            else None
        )
        masks = self._masks(F.normalize(full_precision(query.detach()), dim=1), keys, ids)
        queue = self.queue.clone()  # it changes before the backward pass

        def losses(query: Tensor) -> Tensor:
            with torch.autocast(query.device.type, enabled=False):
                query = F.normalize(full_precision(query), dim=1)
                own = torch.einsum("bd,vbd->bv", query, keys)
                positives, ignore, weights = masks
                extra = (
                    None
                    if pushed is None
                    else self.alpha_negatives * cosines([query], pushed) / self.temperature
                )
                return info_nce(
                    torch.cat([own, query @ queue.T], 1) / self.temperature,
                    positives,
                    ignore,
                    extra,
                    weights,
                )

        loss = losses(query)
        parts = (
            {"loss": loss}
            if self.adversary is None
            else self._with_adversary(self.adversary, loss, losses, views)
        )
        if self.training:
            self._enqueue(keys, ids)
        return parts | negative_cosine(query, pushed)

    def _with_adversary(
        self, adversary: Adversary, clean: Tensor, losses: Callable[[Tensor], Tensor], views: Tensor
    ) -> dict[str, Tensor]:
        """CLAE with the queue's negatives: the adversarial view of the first one asks as well."""

        def asked(v: Tensor) -> Tensor:
            return losses(self.model(v))

        made = adversary.views(self.model, lambda model: asked, views[:, 0], self.progress)
        adv = average([through(self.model, view, asked) for view in made])
        adversary.budget.saw(adv)
        return {"loss": clean + self.alpha * adv, "loss_clean": clean, "loss_adv": adv}

    def _keys(self, views: Tensor) -> Tensor:
        """views (B, V - 1, ...) -> (V - 1, B, D) unit vectors, each view in a pass of its own."""
        keys = [self._mixed(views[:, v]) for v in range(views.shape[1])]
        return F.normalize(full_precision(torch.stack(keys)), dim=2)

    def _mixed(self, x: Tensor) -> Tensor:
        """The keys of a batch, computed in batches of all ranks' videos."""
        if not self.shuffle or distributed.world() == 1:
            return self.encoder(x)
        everything = distributed.gather(x)
        generator = torch.Generator().manual_seed(int(self.steps))  # the same on all ranks
        order = torch.randperm(len(everything), generator=generator).to(x.device)
        here = distributed.here(len(x))
        mixed = distributed.gather(self.encoder(everything[order[here]]))
        return mixed[order.argsort()[here]]

    def _masks(
        self, query: Tensor, keys: Tensor, ids: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Positives, ignored pairs and weights of the (B, V - 1 + K) logits.

        An anchor's own keys of earlier steps count neither way.
        """
        found = Masks()
        if self.removal is not None:
            if self.training:
                self.removal.remember(keys[0], ids)
            seen = keys[0] if self.detect_on_keys else query
            found = self.removal(seen, self.queue, (ids, self.queue_ids), self.progress)
        own = torch.zeros(keys.shape[1], keys.shape[0], dtype=torch.bool, device=query.device)
        ignored = ids[:, None] == self.queue_ids
        attracted = torch.zeros_like(ignored) if found.attract is None else found.attract
        ignored = ignored if found.ignore is None else ignored | found.ignore
        weights = found.weights
        if weights is not None:
            weights = torch.cat([torch.ones_like(own, dtype=weights.dtype), weights], 1)
        return torch.cat([~own, attracted], 1), torch.cat([own, ignored], 1), weights

    @torch.no_grad()
    def _enqueue(self, keys: Tensor, ids: Tensor) -> None:
        """Replace the oldest of the queue by the keys of all ranks, view by view."""
        fresh = torch.cat([distributed.gather(key) for key in keys])
        names = distributed.gather(ids).repeat(len(keys))
        at = (self.position + torch.arange(len(fresh), device=fresh.device)) % len(self.queue)
        self.queue[at], self.queue_ids[at] = fresh, names
        self.position.add_(len(fresh)).remainder_(len(self.queue))
        self.steps += 1


def _build(parts: Parts) -> MoCo:
    options = parts.options
    keys = parts.batch_size * (options.clips_per_video - 1)
    if options.queue < keys:
        raise UserError(
            f"method.queue={options.queue} is less than the {keys} keys of a batch; raise it"
        )
    model = parts.model("projector")
    removal = parts.removal(options.queue)
    return MoCo(
        model,
        options.temperature,
        parts.momentum(model),
        options.queue,
        parts.dim,
        removal,
        clips=options.clips_per_video,
        shuffle=options.norm == "shuffle",
        detect_on_keys=options.false_negatives.encoder == "momentum",
        adversary=parts.attack(),
        alpha=options.adversary.alpha,
    )


SPEC = MethodSpec(
    build=_build,
    help="MoCo v2: a queue of keys",
    cost=Cost(forward=1, learned=(1,)),
    options=frozenset({"temperature", "clips_per_video", "queue", "momentum", "momentum_climbs"}),
    adversaries=("clae",),
    fixed=frozenset({"queue"}),
)
