"""MoCo v2: a queue of keys from a momentum encoder (He et al. 2020, Chen et al. 2020)."""

from collections.abc import Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True)
class MoCoSettings:
    """Settings of MoCo.

    Attributes:
        temperature: divides similarities.
        queue: K, keys that are kept as negatives.
        dim: D of embeddings.
        clips: V, views per video: a query and V - 1 keys.
        shuffle: with several ranks, keys are computed in batches mixed over them, so that batch
            statistics do not reveal which key belongs to a query.
        in_batch: keys of a batch join the queue before its loss, as negatives of its other queries.
        detect_on_keys: false negatives are detected from keys, not from queries.
        alpha: weight of the adversarial query.
        alpha_negatives: factor of the similarity of non-semantic negatives.
    """

    temperature: float
    queue: int
    dim: int
    clips: int = 2
    shuffle: bool = True
    in_batch: bool = False
    detect_on_keys: bool = False
    alpha: float = 1.0
    alpha_negatives: float = 1.0


@dataclass(frozen=True)
class _Candidates:
    """The candidates of B queries: V - 1 keys of their own and K keys of the queue each.

    Attributes:
        keys: (V - 1, B, D) unit vectors.
        queue: (K, D) unit vectors.
        positives: (B, V - 1 + K) bool.
        ignore: (B, V - 1 + K) bool.
        weights: (B, V - 1 + K), or None.
        negatives: keys (B, M, D) of non-semantic negatives, or None.
    """

    keys: Tensor
    queue: Tensor
    positives: Tensor
    ignore: Tensor
    weights: Tensor | None
    negatives: Tensor | None


class MoCo(Method):
    """MoCo v2: the first view is the query, the others are its keys.

    Keys are positives of their query, and negatives of later batches in a queue; with `in_batch`
    also of their own batch, as in MoCo v3 (Chen et al. 2021), which has no queue. The queue
    keeps the id of each key, so that neither earlier keys of the same video nor false negatives are
    pushed away. With more than two clips per video, a query has several positives (Feichtenhofer et
    al. 2021).

    With an adversary the loss is L(q) + alpha L(q_adv), where x_adv raises the loss of the first
    view against its keys and the queue (an extension of CLAE, Ho and Vasconcelos 2020), and q_adv
    goes through the adversarial norm branch. Non-semantic negatives (Ge et al. 2021) go through the
    momentum encoder as keys do and are not enqueued.
    """

    queue: Tensor
    queue_ids: Tensor  # video of each key, -1 for the random ones at the beginning
    position: Tensor  # of the oldest key
    steps: Tensor  # seed of the shuffle

    def __init__(
        self,
        model: Model,
        encoder: MomentumEncoder,
        settings: MoCoSettings,
        removal: Removal | None = None,
        adversary: Adversary | None = None,
    ) -> None:
        """Set the parts of the method.

        Args:
            model: backbone and projector.
            encoder: computes keys.
            settings: of the loss and the queue.
            removal: of false negatives in the queue.
            adversary: makes adversarial queries.
        """
        super().__init__(removal)
        self.model = model
        self.encoder = encoder
        self.settings = settings
        self.views = settings.clips
        self.adversary = adversary
        keys = F.normalize(torch.randn(settings.queue, settings.dim), dim=1)
        self.register_buffer("queue", keys)
        self.register_buffer("queue_ids", torch.full((settings.queue,), -1))
        self.register_buffer("position", torch.zeros((), dtype=torch.long))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def prepare(self, records: Sequence[Record]) -> None:
        """Start the momentum encoder from the model, and learn what is known of the videos."""
        if len(self.queue) > len(records):
            raise UserError(
                f"method.queue={len(self.queue)} is larger than the data set ({len(records)}"
                f" videos), all of which it would hold; set at most {len(records)}"
            )
        self.encoder.start_from(self.model)
        super().prepare(records)

    def forward(
        self, views: Tensor, ids: Tensor, labels: Tensor, progress: float = 0.0
    ) -> dict[str, Tensor]:
        """Return {"loss": (B,), and its parts for the log}.

        Args:
            views: (B, V + M, C, T, H, W) in [0, 1]: V clips, followed by M non-semantic negatives.
            ids: (B,), one per video.
            labels: (B,), not used.
            progress: fraction of training done.
        """
        query = self.model(views[:, 0])
        # keys are those of the encoder after its update, as in MoCo's code
        if self.training:
            self.encoder.follow(self.model, progress)
        keys = self._keys(views[:, 1 : self.views])
        negatives = self._embed_negatives(views)
        if self.training and self.settings.in_batch:
            self._enqueue(keys, ids)
        candidates = self._candidates(query, keys, ids, negatives, progress)
        loss = self.query_loss(query, candidates)
        parts = {"loss": loss}
        if self.adversary is not None:
            parts = self._with_adversary(self.adversary, loss, candidates, views[:, 0], progress)
        if self.training and not self.settings.in_batch:
            self._enqueue(keys, ids)
        return parts | negative_cosine(query, negatives)

    def query_loss(self, query: Tensor, candidates: _Candidates) -> Tensor:
        """Return the loss (B,) of queries (B, D) of any norm (He et al. 2020, eq. 1).

        The M non-semantic negatives t_m of a query q add exp(alpha q . t_m / T) to the denominator
        (Ge et al. 2021).
        """
        temperature = self.settings.temperature
        # logits in full precision: in bf16, keys of a long queue differ by less than its resolution
        with torch.autocast(query.device.type, enabled=False):
            query = F.normalize(full_precision(query), dim=1)
            own = torch.einsum("bd,vbd->bv", query, candidates.keys)
            logits = torch.cat([own, query @ candidates.queue.T], 1) / temperature
            extra = None
            if candidates.negatives is not None:
                similarities = cosines([query], candidates.negatives)
                extra = self.settings.alpha_negatives * similarities / temperature
            return info_nce(
                logits, candidates.positives, candidates.ignore, extra, candidates.weights
            )

    def _with_adversary(
        self,
        adversary: Adversary,
        clean: Tensor,
        candidates: _Candidates,
        x: Tensor,
        progress: float,
    ) -> dict[str, Tensor]:
        """Return CLAE's loss with the negatives of the queue, and its parts.

        Args:
            adversary: makes adversarial queries.
            clean: the loss (B,) of clean queries.
            candidates: of both.
            x: clips (B, C, T, H, W) of the queries.
            progress: fraction of training done.
        """

        # The attack and the learned loss compare with the same keys and queue. CLAE has no queue;
        # keys take the place of z1, and do not depend on the norm branch of the query.
        def loss(x: Tensor) -> Tensor:
            return self.query_loss(self.model(x), candidates)

        adv_views = adversary.views(self.model, lambda model: loss, x, progress)
        adv = average([through(self.model, view, loss) for view in adv_views])
        adversary.budget.record(adv)
        whole = clean + self.settings.alpha * adv
        return {"loss": whole, "loss_clean": clean, "loss_adv": adv}

    # Keys

    def _keys(self, views: Tensor) -> Tensor:
        """Return unit keys (V, B, D) of views (B, V, ...), each view in a pass of its own."""
        keys = [self._shuffled_keys(views[:, v]) for v in range(views.shape[1])]
        return F.normalize(full_precision(torch.stack(keys)), dim=2)

    def _shuffled_keys(self, x: Tensor) -> Tensor:
        """Return the keys (B, D) of clips, computed in batches that are mixed over all ranks."""
        if not self.settings.shuffle or distributed.world() == 1:
            return self.encoder(x)
        # Shuffled batch norm (He et al. 2020, section 3.3). All ranks must use the same order: it
        # comes from the number of the step.
        everyone = distributed.gather(x)
        generator = torch.Generator().manual_seed(int(self.steps))  # the same on all ranks
        order = torch.randperm(len(everyone), generator=generator).to(x.device)
        rows = distributed.here(len(x))
        shuffled = distributed.gather(self.encoder(everyone[order[rows]]))
        return shuffled[order.argsort()[rows]]

    def _embed_negatives(self, views: Tensor) -> Tensor | None:
        """Return the keys (B, M, D) of non-semantic negatives, or None."""
        if views.shape[1] == self.views:
            return None
        return self._keys(views[:, self.views :]).transpose(0, 1)

    def _candidates(
        self,
        query: Tensor,
        keys: Tensor,
        ids: Tensor,
        negatives: Tensor | None,
        progress: float,
    ) -> _Candidates:
        """Return what queries are compared with, false negatives removed.

        Keys of the query's own video in the queue are neither positives nor negatives.
        """
        masks = Masks()
        if self.removal is not None:
            if self.training:
                self.removal.remember(keys[0], ids)
            anchors = F.normalize(full_precision(query.detach()), dim=1)
            if self.settings.detect_on_keys:
                anchors = keys[0]
            masks = self.removal(anchors, self.queue, (ids, self.queue_ids), progress)
        # columns: the V - 1 keys of the query, which are positives, then the queue
        own = torch.ones(keys.shape[1], keys.shape[0], dtype=torch.bool, device=query.device)
        # random keys at the beginning have the id -1, and are negatives of all queries
        ignore = ids[:, None] == self.queue_ids
        attract = torch.zeros_like(ignore) if masks.attract is None else masks.attract
        ignore = ignore if masks.ignore is None else ignore | masks.ignore
        weights = masks.weights
        if weights is not None:
            weights = torch.cat([torch.ones_like(own, dtype=weights.dtype), weights], 1)
        return _Candidates(
            keys,
            self.queue.clone(),  # the queue changes before the backward pass
            torch.cat([own, attract], 1),
            torch.cat([~own, ignore], 1),
            weights,
            negatives,
        )

    @torch.no_grad()
    def _enqueue(self, keys: Tensor, ids: Tensor) -> None:
        """Replace the oldest of the queue by the keys of all ranks, view by view."""
        # every rank enqueues the keys of all ranks, so that queues stay equal
        new_keys = torch.cat([distributed.gather(key) for key in keys])
        new_ids = distributed.gather(ids).repeat(len(keys))
        offsets = torch.arange(len(new_keys), device=new_keys.device)
        places = (self.position + offsets) % len(self.queue)
        self.queue[places] = new_keys
        self.queue_ids[places] = new_ids
        self.position.add_(len(new_keys)).remainder_(len(self.queue))
        self.steps += 1


def _build(parts: Parts) -> MoCo:
    options = parts.options
    # a batch that is longer than the queue would overwrite its own keys
    keys = parts.batch_size * (options.clips_per_video - 1)
    if options.queue < keys:
        raise UserError(
            f"method.queue={options.queue} is less than the {keys} keys of a batch; raise it"
        )
    model = parts.model()
    removal = parts.removal(options.queue)
    settings = MoCoSettings(
        temperature=options.temperature,
        queue=options.queue,
        dim=parts.dim,
        clips=options.clips_per_video,
        shuffle=options.norm == "shuffle",
        in_batch=options.in_batch,
        detect_on_keys=options.false_negatives.encoder == "momentum",
        alpha=options.adversary.alpha,
        alpha_negatives=options.negatives.alpha,
    )
    encoder = parts.momentum(model)
    return MoCo(model, encoder, settings, removal, parts.attack())


SPEC = MethodSpec(
    build=_build,
    help="MoCo v2: a queue of keys",
    cost=Cost(forward=1, learned=(1,)),
    options=frozenset(
        {"temperature", "clips_per_video", "queue", "in_batch", "momentum", "momentum_climbs"}
    ),
    adversaries=("clae",),
    fixed=frozenset({"queue"}),
)
