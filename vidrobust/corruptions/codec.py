"""Compression: clips through a real encoder and back."""

import io

import av
import numpy as np

# RGB in [0, 255] to BT.601's Y, Cb, Cr of limited range, as files on disk have them
_TO_YUV = np.array([[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]]) / 255
_OFFSET = np.array([16.0, 128.0, 128.0])


def h264(frames: np.ndarray, crf: int, fps: int = 25) -> np.ndarray:
    """(T, H, W, 3) uint8 through libx264 at constant rate factor `crf` (0 to 51) and back -> the same shape.

    Colours are sampled at half resolution (yuv420p); odd sides are repeated to even ones for the encoder and cut off
    again. The same clip gives the same bits: colours are converted here, and libx264 works without its fast routines,
    as those and swscale read memory that nobody wrote.
    """
    height, width = frames.shape[1:3]
    even = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as out:
        stream = out.add_stream("libx264", rate=fps, options={"crf": str(crf), "x264-params": "asm=0"})
        stream.height, stream.width, stream.pix_fmt = *even.shape[1:3], "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in even:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(_to_yuv420(frame), format="yuv420p")))
        out.mux(stream.encode())
    file.seek(0)
    with av.open(file, "r") as read:
        back = [_to_rgb(frame.to_ndarray(), *even.shape[1:3]) for frame in read.decode(video=0)]
    if len(back) != len(frames):
        raise RuntimeError(f"H.264 gave {len(back)} frames back of {len(frames)}")
    return np.stack(back)[:, :height, :width]


def _to_yuv420(frame: np.ndarray) -> np.ndarray:
    """(H, W, 3) RGB -> (3 H / 2, W): Y, then Cb and Cr, each the mean of two by two pixels, as PyAV lays them out."""
    height, width = frame.shape[:2]
    yuv = frame.astype(np.float64) @ _TO_YUV.T + _OFFSET
    small = yuv[..., 1:].reshape(height // 2, 2, width // 2, 2, 2).mean((1, 3))
    planes = [yuv[..., 0].ravel(), small[..., 0].ravel(), small[..., 1].ravel()]
    return np.concatenate(planes).round().clip(0, 255).astype(np.uint8).reshape(-1, width)


def _to_rgb(planes: np.ndarray, height: int, width: int) -> np.ndarray:
    """The inverse of `_to_yuv420`, each colour sample repeated over its pixels."""
    flat, y = planes.ravel().astype(np.float64), height * width
    small = flat[y : y + y // 2].reshape(2, height // 2, width // 2)
    colour = small.repeat(2, axis=1).repeat(2, axis=2)
    yuv = np.stack([flat[:y].reshape(height, width), colour[0], colour[1]], -1)
    return ((yuv - _OFFSET) @ np.linalg.inv(_TO_YUV).T).round().clip(0, 255).astype(np.uint8)
