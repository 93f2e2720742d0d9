"""AttackRow: the result of one video under one threat, a line of results.jsonl."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from vidrobust.attacks import ThreatModel
from vidrobust.data import Failure


@dataclass(frozen=True)
class AttackRow:
    """The result of one video under one threat.

    Attributes:
        index: index of the video in the test split.
        uid: name of the video.
        label: its class.
        clean_pred: class that is predicted without an attack; None for a failed video.
        threat: the budget, as `eval.threats` names it.
        eps: size of the budget.
        adv_pred: class that is predicted for the adversarial clip.
        robust: the prediction is right, and no attack changes it.
        killed_by: the attack that changed it, "clean" if it was wrong before, "error" for a failed
            video, None if it is robust.
        uint8_pred: class that is predicted for the adversarial clip rounded to uint8.
        uint8_killed_by: as `killed_by`, for rounded clips.
        clean_h264_pred: class after an H.264 round trip without an attack; None without H.264.
        h264_pred: class after an H.264 round trip of the adversarial clip; None without H.264.
        measured: size of the perturbation in the threat's norm.
        in_budget: the perturbation is within the budget.
        passes: attack -> [forward, backward] passes, in clips. The first row of a batch has those
            of the whole batch, other rows have none: a sum over rows is the cost of the evaluation.
        rejected: attack -> number of clips outside of the budget, which were not used; in the first
            row of a batch, as `passes`.
        clean_confidence: largest probability without an attack; None for a failed video, and in
            rows of earlier revisions.
        clean_brier: Brier score of the probabilities without an attack, 0 to 2; None as above.
        adv_confidence: largest probability for the adversarial clip; None as above.
        adv_brier: Brier score of the probabilities for the adversarial clip; None as above.
        change_frames: root mean square change of each frame of the adversarial clip, at most 32
            values; None as above.
        change_map: mean absolute change by place, which `fingerprint.read_map` reads; None as
            above.
        error: why the video failed, or None.
    """

    index: int
    uid: str
    label: int
    clean_pred: int | None
    threat: str
    eps: float
    adv_pred: int | None
    robust: bool
    killed_by: str | None
    uint8_pred: int | None
    uint8_killed_by: str | None
    clean_h264_pred: int | None = None
    h264_pred: int | None = None
    measured: float | None = None
    in_budget: bool | None = None
    passes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    rejected: Mapping[str, int] = field(default_factory=dict)
    clean_confidence: float | None = None
    clean_brier: float | None = None
    adv_confidence: float | None = None
    adv_brier: float | None = None
    change_frames: list[float] | None = None
    change_map: str | None = None
    error: str | None = None

    @property
    def clean_right(self) -> bool:
        """True if the prediction without an attack is right."""
        return self.clean_pred == self.label

    @property
    def uint8_right(self) -> bool:
        """True if the prediction for the rounded adversarial clip is right."""
        return self.uint8_pred == self.label

    @property
    def h264_right(self) -> bool:
        """True if the prediction after H.264 is right."""
        return self.h264_pred == self.label

    @classmethod
    def failed(cls, failure: Failure, threat: ThreatModel) -> AttackRow:
        """Return the row of a video that does not decode, or on which the model gives NaN."""
        return cls(
            index=failure.index,
            uid=failure.uid,
            label=failure.label,
            clean_pred=None,
            threat=str(threat),
            eps=threat.eps,
            adv_pred=None,
            robust=False,
            killed_by="error",
            uint8_pred=None,
            uint8_killed_by="error",
            error=failure.reason,
        )

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> AttackRow:
        """Return the row of a line of results.jsonl; earlier revisions wrote fewer keys."""
        names = {item.name for item in fields(cls)}
        return cls(**{key: value for key, value in row.items() if key in names})

    def to_json(self) -> dict[str, Any]:
        """Return the keys and values of a line of results.jsonl."""
        return asdict(self)
