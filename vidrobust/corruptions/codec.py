"""Compression and transmission errors: frames through a real encoder and decoder.

On consecutive frames, at the size of the source: an encoder predicts each from the last. Colours
are sampled at half resolution (yuv420p); odd sides are repeated to even ones and cut off again. The
same clip gives the same bits: one thread, colours converted here (swscale reads memory that nobody
wrote), libx264 without its fast routines. Tables: Mini-Kinetics-C (Yi et al. 2021); those of mpeg1
and mpeg2 are ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
import torch
from av.codec.context import Flags
from torch.nn import functional as F

from vidrobust.corruptions.clip import from_planes, level, require_clip, to_planes, to_uint8

# RGB in [0, 255] to BT.601's Y, Cb, Cr of limited range, as files on disk have them
_TO_YUV = (
    torch.tensor([[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]])
    / 255
)
_TO_RGB = torch.linalg.inv(_TO_YUV.double()).float()
_OFFSET = torch.tensor([[16.0], [128.0], [128.0]])
_BYTES_PER_FRAME = 5000  # at 1 Mbit/s and 25 frames a second, about what the benchmark's files have
# libx265 needs as many pixels a side: of less it reads, and even writes, where it should not
_SMALLEST = {"libx265": 72}
# libx264's fast routines read memory that nobody wrote, and decide by it; libx265 tells of
# everything it does
_PLAIN = {"libx264": "asm=0", "libx265": "log-level=none:pools=none:frame-threads=1"}


class MissingEncoder(RuntimeError):
    """This PyAV was built without an encoder."""


def h264(frames: np.ndarray, crf: int, fps: float = 25.0) -> np.ndarray:
    """(T, H, W, 3) uint8 through libx264 at constant rate factor `crf` (0 to 51) and back -> the
    same shape.
    """
    require_clip(frames)
    return _decode(_encode(frames, "libx264", fps, {"crf": str(crf)}))


def h264_crf(
    clip: np.ndarray, severity: int, rng: np.random.Generator, fps: float = 25.0
) -> np.ndarray:
    """H.264 at a constant rate factor of 23 to 51. Nothing is drawn."""
    return _decode(
        _encode(clip, "libx264", fps, {"crf": str(level(clip, severity, (23, 30, 37, 44, 51)))})
    )


def h265_crf(
    clip: np.ndarray, severity: int, rng: np.random.Generator, fps: float = 25.0
) -> np.ndarray:
    """H.265 at a constant rate factor of 27 to 51. Nothing is drawn. Raises MissingEncoder without
    libx265.
    """
    return _decode(
        _encode(clip, "libx265", fps, {"crf": str(level(clip, severity, (27, 33, 39, 45, 51)))})
    )


def h264_abr(
    clip: np.ndarray, severity: int, rng: np.random.Generator, fps: float = 25.0
) -> np.ndarray:
    """H.264 at 1/2 to 1/32 of the bits that it takes at CRF 23, its default. Nothing is drawn.

    The benchmark divides the bit rate of the file, which a clip in memory has none of.
    """
    return _at_rate(clip, "libx264", level(clip, severity, (2, 4, 8, 16, 32)), fps)


def h265_abr(
    clip: np.ndarray, severity: int, rng: np.random.Generator, fps: float = 25.0
) -> np.ndarray:
    """H.265 at 1/2 to 1/32 of the bits that H.264 takes at CRF 23. Nothing is drawn; needs
    libx265.
    """
    return _at_rate(clip, "libx265", level(clip, severity, (2, 4, 8, 16, 32)), fps)


def mpeg1(clip: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """MPEG-1 at a constant quantiser of 4 to 31, the coarsest there is. Nothing is drawn."""
    return _decode(
        _encode(clip, "mpeg1video", 25, {}, quantiser=level(clip, severity, (4, 8, 14, 21, 31)))
    )


def mpeg2(clip: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """MPEG-2 at a constant quantiser of 4 to 31, the coarsest there is. Nothing is drawn."""
    return _decode(
        _encode(clip, "mpeg2video", 25, {}, quantiser=level(clip, severity, (4, 8, 14, 21, 31)))
    )


def bit_error(
    clip: np.ndarray, severity: int, rng: np.random.Generator, fps: float = 25.0
) -> np.ndarray:
    """Wrong bytes in an H.264 stream (CRF 23), .05 to .5 a frame on average. One draw a video; the
    decoder conceals.

    That is one in 100,000 to 10,000, as published, at 1 Mbit/s; of a smaller picture's fewer bytes
    a larger share. An error spoils the rest of its slice, a quarter of a frame, and what is
    predicted from it. As in the middle of a longer video, the first of several frames is whole. A
    short clip at low severity may come through whole.
    """
    once_in = level(clip, severity, (100_000, 50_000, 30_000, 20_000, 10_000))
    stream = _encode(clip, "libx264", fps, {"crf": "23"}, _SLICED)
    whole = min(len(stream.packets) - 1, 1)
    exposed = sum(len(content) for content, _ in stream.packets[whole:])
    rate = len(clip) * _BYTES_PER_FRAME / (once_in * exposed)
    packets = stream.packets[:whole]
    for content, shown in stream.packets[whole:]:
        flipped = np.frombuffer(content, np.uint8).copy()
        flipped[rng.random(len(flipped)) < rate] ^= np.uint8(rng.integers(1, 256))
        packets.append((flipped.tobytes(), shown))
    return _decode(stream.with_packets(packets))


def packet_loss(
    clip: np.ndarray, severity: int, rng: np.random.Generator, fps: float = 25.0
) -> np.ndarray:
    """1, 2, 3, 4, 6 % of the packets of an H.264 stream (CRF 23) do not arrive. One draw a video;
    the decoder conceals.

    A packet is a slice of at most 1,200 bytes, as a network carries them; a frame has four at
    least, as at 1 Mbit/s. As in `bit_error`, the first of several frames arrives, and short clips
    may come through whole.
    """
    chance = level(clip, severity, (0.01, 0.02, 0.03, 0.04, 0.06))
    stream = _encode(clip, "libx264", fps, {"crf": "23"}, _SLICED)
    whole = min(len(stream.packets) - 1, 1)
    packets = stream.packets[:whole]
    for content, shown in stream.packets[whole:]:
        kept = [unit for unit in content.split(_START)[1:] if rng.random() >= chance]
        packets.append((b"".join(_START + unit for unit in kept), shown))
    return _decode(stream.with_packets(packets))


_SLICED = ("slices=4", "slice-max-size=1200")
_START = b"\x00\x00\x01"  # of a unit in an H.264 stream, which never holds it inside


@dataclass(frozen=True)
class _Stream:
    """An encoded clip. packets: (bytes, the frame that they show), in the decoder's order; shape:
    of the clip.
    """

    codec: str
    headers: bytes | None
    packets: list[tuple[bytes, int]]
    shape: tuple[int, ...]
    coded: tuple[int, int]

    def with_packets(self, packets: list[tuple[bytes, int]]) -> "_Stream":
        return _Stream(self.codec, self.headers, packets, self.shape, self.coded)

    @property
    def bytes(self) -> int:
        return sum(len(content) for content, _ in self.packets)


def _encode(
    clip: np.ndarray,
    encoder: str,
    fps: float,
    options: dict[str, str],
    more: Sequence[str] = (),
    quantiser: int = 0,
    rate: int = 0,
) -> _Stream:
    """options: FFmpeg's; more: the encoder's own. quantiser: a constant one, for MPEG-1 and 2.
    rate: bits a second.
    """
    try:
        kind = av.codec.Codec(encoder, "w")
    except av.codec.codec.UnknownCodecError:
        raise MissingEncoder(
            f"this PyAV has no encoder {encoder}: install PyAV's wheel (pip install"
            " --force-reinstall av), which has it"
        ) from None
    height, width = clip.shape[1:3]
    tall, wide = (max(side + side % 2, _SMALLEST.get(encoder, 16)) for side in (height, width))
    padded = np.pad(clip, ((0, 0), (0, tall - height), (0, wide - width), (0, 0)), mode="edge")
    context = kind.create("video")
    context.width, context.height, context.pix_fmt, context.thread_count = wide, tall, "yuv420p", 1
    context.framerate = Fraction(_rate(fps)).limit_denominator(1001)
    context.time_base = 1 / context.framerate
    context.flags |= Flags.global_header  # what describes the stream is apart from it, as in a file
    if encoder in _PLAIN:
        options = options | {f"{encoder[3:]}-params": ":".join([_PLAIN[encoder], *more])}
    context.options = options
    if quantiser:
        context.qmin = context.qmax = quantiser
    if rate:
        context.bit_rate = rate
    packets: list[tuple[bytes, int]] = []
    for number, frame in enumerate([*padded, None]):
        picture = None
        if frame is not None:
            picture = av.VideoFrame.from_ndarray(_to_yuv420(frame), format="yuv420p")
            picture.pts, picture.time_base = number, context.time_base
        packets += [(bytes(packet), int(packet.pts or 0)) for packet in context.encode(picture)]
    return _Stream(kind.canonical_name, context.extradata, packets, clip.shape, (tall, wide))


def _decode(stream: _Stream) -> np.ndarray:
    """The clip. A frame that does not decode is the last that did, or the first; gray when none
    does.
    """
    context = av.codec.Codec(stream.codec, "r").create("video")
    context.thread_count, context.extradata = 1, stream.headers
    context.flags |= Flags.output_corrupt
    found: dict[int, np.ndarray] = {}
    for content, shown in [*stream.packets, (b"", -1)]:
        if not content and shown >= 0:
            continue  # nothing of it has arrived; an empty packet would end the stream
        packet = None
        if content:
            packet = av.Packet(content)
            packet.pts = packet.dts = shown
        try:
            decoded = context.decode(packet)
        except av.error.FFmpegError:  # of a packet that is beyond concealing
            continue
        for frame in decoded:
            found[int(frame.pts or 0)] = _to_rgb(frame.to_ndarray(format="yuv420p"), *stream.coded)
    length, height, width = stream.shape[:3]
    out = np.full(stream.shape, 128, np.uint8)
    shown = min(found, default=-1)
    for t in range(length):
        shown = t if t in found else shown
        if shown >= 0:
            out[t] = found[shown][:height, :width]
    return out


def _rate(fps: float) -> float:
    """Images and folders of frames have none: 0."""
    return fps if fps >= 1 else 25.0


def _at_rate(clip: np.ndarray, encoder: str, divisor: int, fps: float) -> np.ndarray:
    """As the benchmark: average, largest rate and buffer are the same."""
    usual = _encode(clip, "libx264", fps, {"crf": "23"})
    rate = max(int(8 * usual.bytes * _rate(fps) / len(clip) / divisor), 1000)
    return _decode(
        _encode(clip, encoder, fps, {"maxrate": str(rate), "bufsize": str(rate)}, rate=rate)
    )


def _to_yuv420(frame: np.ndarray) -> np.ndarray:
    """(H, W, 3) RGB -> (3 H / 2, W): Y, then Cb and Cr, each the mean of two by two pixels, as PyAV
    lays them out.
    """
    rgb = to_planes(frame)
    width = rgb.shape[2]
    yuv = (_TO_YUV @ rgb.flatten(1) + _OFFSET).view_as(rgb)
    planes = torch.cat([yuv[0].flatten(), F.avg_pool2d(yuv[1:], 2).flatten()])
    return planes.round_().clamp_(0, 255).to(torch.uint8).view(-1, width).numpy()


def _to_rgb(planes: np.ndarray, height: int, width: int) -> np.ndarray:
    """The inverse of `_to_yuv420`, each colour sample repeated over its pixels."""
    flat, y = torch.from_numpy(planes).flatten().float(), height * width
    colour = (
        flat[y : y + y // 2]
        .view(2, height // 2, width // 2)
        .repeat_interleave(2, 1)
        .repeat_interleave(2, 2)
    )
    yuv = torch.cat([flat[:y], colour.flatten()]).view(3, -1)
    return to_uint8(from_planes((_TO_RGB @ (yuv - _OFFSET)).view(3, height, width)))
