"""Log the progress of a training run."""

import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from vidrobust.utils import distributed
from vidrobust.utils.logging import Metrics, duration, to_file


class Progress:
    """Clocks, the live bar, log lines and metrics; on ranks above 0 the clocks alone."""

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
        self.start, self.total, self.per_epoch, self.log_every, self.device = (
            start,
            total,
            per_epoch,
            log_every,
            device,
        )
        self.metrics = Metrics(out, start) if main else None
        silent = not (main and sys.stderr.isatty())
        self.bar = tqdm(total=total, initial=start, disable=silent, file=sys.stderr)
        self.began = self.clock = time.perf_counter()
        self._clear()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()
        if self.metrics:
            self.metrics.close()

    def _clear(self) -> None:
        self.steps, self.data_s, self.step_s, self.failed = 0, 0.0, 0.0, 0
        self.videos = self.forward = self.backward = 0

    def data_arrived(self) -> None:
        self.data_s += time.perf_counter() - self.clock

    def passed(self, videos: int, passes: tuple[int, int]) -> None:
        """Count the forward and backward passes, in clips, of a step of this rank over so many
        videos.
        """
        self.videos, self.forward, self.backward = (
            self.videos + videos,
            self.forward + passes[0],
            self.backward + passes[1],
        )

    def step_done(
        self, step: int, rate: float, parts: dict[str, Tensor], norm: Tensor, failed: int, bad: int
    ) -> None:
        """Count a step; every `log_every` steps, and after the last one, write a row.

        Losses are the step's, mean over ranks; times, and passes a video, are means, failed reads
        sums over ranks, since the last row. failed: reads of the step that failed; bad: videos that
        were bad so far, on any rank.
        """
        done, total, now = step + 1, self.total, time.perf_counter()
        self.step_s, self.clock = self.step_s + now - self.clock, now
        self.steps, self.failed = self.steps + 1, self.failed + failed
        self.bar.update()
        if done % self.log_every and done < total:
            return
        values = {name: float(distributed.mean(value.detach())) for name, value in parts.items()}
        all_failed = distributed.world() * float(
            distributed.mean(norm.new_tensor(float(self.failed)))
        )
        data_s, step_s = self.data_s / self.steps, self.step_s / self.steps
        forward, backward = self.forward / max(1, self.videos), self.backward / max(1, self.videos)
        self._clear()
        if self.metrics is None:
            return
        on_gpu = self.device.type == "cuda"
        row: dict[str, Any] = {
            "step": step,
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
        left_s = (now - self.began) / (done - self.start) * (total - done)
        text = f"loss {values['loss']:.4f}  lr {rate:.2e}  data {data_s:.3f} s  step {step_s:.3f} s"
        self.bar.set_postfix_str(text)
        to_file.info(f"step {done}/{total}  {text}  left {duration(left_s)}")

    def epoch_done(self, step: int, found: dict[str, float]) -> None:
        """Write what the method says of an epoch, if anything; step: its last."""
        if self.metrics is not None and found:
            self.metrics.write(
                {"step": step, "epoch": step // self.per_epoch, "split": "train_epoch", **found}
            )
            text = "  ".join(f"{name} {value:.4f}" for name, value in found.items())
            to_file.info(f"epoch {step // self.per_epoch}  {text}")
