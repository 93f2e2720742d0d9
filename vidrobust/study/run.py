"""One run of a study: trained and measured, once."""

import json
from typing import Any

from vidrobust import config
from vidrobust.engine import checkpoint
from vidrobust.engine.log import log
from vidrobust.engine.loop import train
from vidrobust.errors import UserError
from vidrobust.evaluation import evaluate
from vidrobust.study.plan import Arm

# what may differ between two commands of the same study
_FREE = ("data.root=", "data.workers=", "data.timeout_s=", "train.checkpoint_every=", "train.log_every=", "device=")


def run_arm(arm: Arm) -> dict[str, Any]:
    """Its summary. What is there already is not done again: a finished run is read, one that was killed goes on.

    Raises UserError where its folder holds a run with other options, and what training and evaluation raise.
    """
    page, last = arm.folder / "config.yaml", arm.folder / "checkpoints" / "last.pt"
    if page.is_file():
        changed = [line for line in config.differences(config.load(page), arm.cfg) if not line.startswith(_FREE)]
        if changed:
            raise UserError(f"{arm.folder} holds a run with other options: {', '.join(changed)}; set --output-dir")
    done = arm.folder / "eval" / arm.cfg.eval.name / "summary.json"
    if not done.is_file():
        log.info(f"{arm.dataset}, {arm.name}, seed {arm.seed}: {arm.folder}")
        arm.folder.mkdir(parents=True, exist_ok=True)
        path = train(arm.cfg, arm.folder, last if last.is_file() else None, overwrite=not last.is_file())
        evaluate(arm.cfg, checkpoint.read_checkpoint(path), done.parent)
    found: dict[str, Any] = json.loads(done.read_text())
    return found
