"""Compression: clips through a real encoder and back."""

import io

import av
import numpy as np


def h264(frames: np.ndarray, crf: int, fps: int = 25) -> np.ndarray:
    """(T, H, W, 3) uint8 through libx264 at constant rate factor `crf` (0 to 51) and back -> the same shape.

    Colours are sampled at half resolution (yuv420p), as files on disk have them; odd sides are repeated to even ones
    for the encoder and cut off again.
    """
    height, width = frames.shape[1:3]
    even = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as out:
        stream = out.add_stream("libx264", rate=fps, options={"crf": str(crf)})
        stream.height, stream.width, stream.pix_fmt = *even.shape[1:3], "yuv420p"
        stream.codec_context.thread_count = 1  # the same bits on every machine
        for frame in even:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        out.mux(stream.encode())
    file.seek(0)
    with av.open(file, "r") as read:
        back = [frame.to_ndarray(format="rgb24") for frame in read.decode(video=0)]
    if len(back) != len(frames):
        raise RuntimeError(f"H.264 gave {len(back)} frames back of {len(frames)}")
    return np.stack(back)[:, :height, :width]
