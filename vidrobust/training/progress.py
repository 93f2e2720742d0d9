"""Log the progress of a training run."""

import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from vidrobust.utils import distributed
from vidrobust.utils.logging import Metrics, to_file
from vidrobust.utils.readable import duration


class Progress:
    """Clocks, a live bar, log lines and metrics.jsonl; on ranks above 0 only the clocks."""

    def __init__(
        self,
        out: Path,
        start: int,
        total: int,
        per_epoch: int,
        log_every: int,
        device: torch.device,
        main: bool,
    ) -> None:
        """Start the clocks.

        Args:
            out: folder of the run.
            start: steps that were done before.
            total: steps of the whole run.
            per_epoch: steps per epoch.
            log_every: steps between rows.
            device: of the model.
            main: this is rank 0.
        """
        self.start = start
        self.total = total
        self.per_epoch = per_epoch
        self.log_every = log_every
        self.device = device
        self.metrics = Metrics(out, start) if main else None
        silent = not (main and sys.stderr.isatty())
        self.bar = tqdm(total=total, initial=start, disable=silent, file=sys.stderr)
        self.began = time.perf_counter()
        self.clock = self.began  # the end of the last step
        self._clear()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()
        if self.metrics:
            self.metrics.close()

    def _clear(self) -> None:
        """Begin to count anew, after a row."""
        self.steps = 0
        self.data_s = 0.0
        self.step_s = 0.0
        self.failed = 0
        self.videos = 0
        self.forward = 0
        self.backward = 0

    def data_arrived(self) -> None:
        """Note that the loader has returned a batch."""
        self.data_s += time.perf_counter() - self.clock

    def passed(self, videos: int, passes: tuple[int, int]) -> None:
        """Count (forward, backward) passes, in clips, of a step of this rank."""
        forward, backward = passes
        self.videos += videos
        self.forward += forward
        self.backward += backward

    def step_done(
        self, step: int, rate: float, parts: dict[str, Tensor], norm: Tensor, failed: int, bad: int
    ) -> None:
        """Count a step; every `log_every` steps, and after the last one, write a row.

        Losses are those of the step, means over ranks. Times and passes per video are means since
        the last row; failed reads are sums over ranks since the last row.

        Args:
            step: number of the step.
            rate: its learning rate.
            parts: the loss and its parts.
            norm: norm of the gradient.
            failed: reads of the step that failed.
            bad: videos that were bad so far, on any rank.
        """
        done = step + 1
        total = self.total
        now = time.perf_counter()
        self.step_s += now - self.clock
        self.clock = now
        self.steps += 1
        self.failed += failed
        self.bar.update()
        if done % self.log_every and done < total:
            return
        # collectives: every rank calls them, also those that write nothing
        values = {name: float(distributed.mean(value.detach())) for name, value in parts.items()}
        all_failed = distributed.world() * float(
            distributed.mean(norm.new_tensor(float(self.failed)))
        )
        data_s = self.data_s / self.steps
        step_s = self.step_s / self.steps
        forward = self.forward / max(1, self.videos)
        backward = self.backward / max(1, self.videos)
        self._clear()
        if self.metrics is None:
            return
        on_gpu = self.device.type == "cuda"
        row: dict[str, Any] = {
            "step": step,
            "total_steps": total,
            "epoch": step // self.per_epoch,
            "split": "train",
            **values,
            "lr": rate,
            "grad_norm": float(norm),
            "forward": forward,
            "backward": backward,
            "data_s": data_s,
            "step_s": step_s,
            "mem_gb": torch.cuda.max_memory_allocated(self.device) / 2**30 if on_gpu else 0.0,
            "failed_reads": round(all_failed),
            "bad_videos": bad,
        }
        self.metrics.write(row)
        # the mean over the whole run, as single steps vary
        left_s = (now - self.began) / (done - self.start) * (total - done)
        text = f"loss {values['loss']:.4f}  lr {rate:.2e}  data {data_s:.3f} s  step {step_s:.3f} s"
        self.bar.set_postfix_str(text)
        to_file.info(f"step {done}/{total}  {text}  left {duration(left_s)}")

    def epoch_done(self, step: int, values: dict[str, float]) -> None:
        """Write the numbers that the method reports for an epoch, if any.

        Args:
            step: the last of the epoch.
            values: by name.
        """
        if self.metrics is not None and values:
            epoch = step // self.per_epoch
            self.metrics.write({"step": step, "epoch": epoch, "split": "train_epoch", **values})
            text = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
            to_file.info(f"epoch {step // self.per_epoch}  {text}")
