"""Name the classes of loose videos: the most probable ones, clip by clip."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from vidrobust import config
from vidrobust.attacks import finite_logits
from vidrobust.data import Failure, Record, build_records, eval_dataset
from vidrobust.evaluation.measured_model import MeasuredModel
from vidrobust.evaluation.results import fault
from vidrobust.evaluation.view_average import average_views
from vidrobust.models import outputs_of
from vidrobust.models.fast_passes import to_measure
from vidrobust.models.inference import evaluation_mode, extract
from vidrobust.utils import distributed
from vidrobust.utils.errors import UserError
from vidrobust.utils.logging import log

# clip: its number, or None for the average over the clips of a video
Prediction = dict[str, Any]


def predict_videos(
    cfg: config.Config, measured: MeasuredModel, records: Sequence[Record], top: int
) -> tuple[list[Prediction], list[Failure]]:
    """Return the most probable classes of each clip, and of each video over its clips.

    Args:
        cfg: its data and eval options are used; eval.clips clips of a video are taken.
        measured: a model with a classifier.
        records: the videos.
        top: number of classes.

    Returns:
        (predictions, videos that do not decode or have no finite logits). A video of one clip has
        one. A prediction has the
        video's name, the number of the clip (None: the average over all), its start and end in
        seconds (None: unknown), and `classes`, a list of [name, probability], the most probable
        first.

    Raises:
        UserError: for a model without a classifier, and if no video decodes.
    """
    outputs = outputs_of(measured.model.head)
    if cfg.eval.precise_bn:
        raise UserError("eval.precise_bn: loose videos are no training videos; set it to 0")
    if not outputs:
        raise UserError("the model has no classifier; give its weights, or extract features")
    names = _names(cfg, measured, outputs)
    device = distributed.start(cfg.device)
    model = to_measure(measured.model, device, cfg.eval)
    predict: Callable[[Tensor], Tensor] = model
    with evaluation_mode(model, branch=cfg.eval.branch):
        (found,) = extract(
            [predict],
            eval_dataset(cfg.data, list(records), cfg.eval.clips, cfg.eval.sampling),
            device,
            batch_size=cfg.eval.batch_size,
            workers=cfg.data.workers,
            title="videos",
        )
    clips = found.features  # (videos, clips, classes), logits
    whole = average_views(clips, cfg.eval.view_average)
    rows: list[Prediction] = []
    failed = list(found.failed)
    for video, uid in enumerate(found.uids):
        fps = float(found.fps[video])
        starts, ends = found.start[video].tolist(), found.end[video].tolist()
        each = zip(range(len(starts)), starts, ends, clips[video], strict=True)
        average = [(None, min(starts), max(ends), whole[video])] if len(starts) > 1 else []
        for clip, start, end, logits in [*each, *average]:
            row = {
                "video": uid,
                "clip": clip,
                "start_s": start / fps if fps else None,
                "end_s": end / fps if fps else None,
            }
            rows.append(row | {"classes": _most_probable(logits, names, top)})
        if not finite_logits(clips[video]).all():
            failed.append(Failure(video, uid, -1, fault(uid, "NaN or infinite logits")))
            rows = [row for row in rows if row["video"] != uid]
    return rows, failed


def _most_probable(logits: Tensor, names: Sequence[str], top: int) -> list[list[Any]]:
    """Return the classes of logits (K,) with the highest probabilities, as [name, probability]."""
    probabilities, places = logits.softmax(0).topk(min(top, len(names)))
    return [
        [names[place], probability]
        for place, probability in zip(places.tolist(), probabilities.tolist(), strict=True)
    ]


def _names(cfg: config.Config, measured: MeasuredModel, outputs: int) -> Sequence[str]:
    """Return the names of the classes of a model with a number of outputs.

    They are those of its input card, or of the data set that a run of this package was trained on;
    numbers, with a warning, where neither is known.
    """
    names: Sequence[str] = (measured.input.classes if measured.input else None) or ()
    if measured.input is None:
        try:
            names = build_records(cfg.data, "train")[1]
        except UserError as error:
            log.warning(f"the names of the classes are unknown ({error})")
    if len(names) == outputs:
        return names
    log.warning(
        f"the model's {outputs} classes are shown as numbers, as {len(names)} names are known;"
        " model.input.classes=FILE names them"
    )
    return [str(number) for number in range(outputs)]
