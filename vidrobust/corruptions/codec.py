"""Compression and transmission errors: frames through a real encoder and decoder.

Pass consecutive frames at the size of the source, because an encoder predicts each frame from the
last. Colours are sampled at half resolution (yuv420p). Odd sides are padded to even ones, and cut
off again.

The same clip gives bitwise identical results, for three reasons: codecs run in one thread, colours
are converted here (swscale reads uninitialised memory), and libx264 runs without its assembly.

Tables: Mini-Kinetics-C (Yi et al. 2021); those of mpeg1 and mpeg2 are this package's own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
import torch
from av.codec.context import Flags
from torch.nn import functional as F

from vidrobust.corruptions.clip import from_planes, level, require_clip, to_planes, to_uint8

# RGB in [0, 255] to BT.601's Y, Cb, Cr of limited range, as in files on disk
_TO_YUV = (
    torch.tensor([[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]])
    / 255
)
_TO_RGB = torch.linalg.inv(_TO_YUV.double()).float()
_OFFSET = torch.tensor([[16.0], [128.0], [128.0]])
# at 1 Mbit/s and 25 frames per second, which is close to the benchmark's files
_BYTES_PER_FRAME = 5000
# Least side in pixels. With smaller frames, libx265 reads and even writes out of bounds.
_SMALLEST = {"libx265": 72}
# The assembly of libx264 reads uninitialised memory, on which its decisions depend. libx265 would
# log everything that it does, and use several threads.
_PLAIN = {"libx264": "asm=0", "libx265": "log-level=none:pools=none:frame-threads=1"}
# options of libx264: slices of at most 1,200 bytes, as packets of a network carry
_SLICED = ("slices=4", "slice-max-size=1200")
# start of a unit in an H.264 stream; it never occurs within a unit
_START = b"\x00\x00\x01"


class MissingEncoder(RuntimeError):
    """Report an encoder that this build of PyAV does not have."""


# ------------------------------------------------------------------ compression


def h264(frames: np.ndarray, crf: int, fps: float = 25.0) -> np.ndarray:
    """Return frames after a round trip through libx264.

    Args:
        frames: (T, H, W, 3) uint8.
        crf: constant rate factor, 0 (best) to 51.
        fps: frames per second.

    Raises:
        MissingEncoder: PyAV has no libx264.
    """
    require_clip(frames)
    return _decode(_encode(frames, "libx264", fps, {"crf": str(crf)}))


def h264_crf(
    clip: np.ndarray, severity: int, rng: np.random.Generator, fps: float = 25.0
) -> np.ndarray:
    """Return the clip after H.264 at a constant rate factor.

    Args:
        clip: (T, H, W, 3) uint8.
        severity: 1 to 5: rate factor 23, 30, 37, 44 or 51.
        rng: unused.
        fps: frames per second.
    """
    crf = level(clip, severity, (23, 30, 37, 44, 51))
    return _decode(_encode(clip, "libx264", fps, {"crf": str(crf)}))


def h265_crf(
    clip: np.ndarray, severity: int, rng: np.random.Generator, fps: float = 25.0
) -> np.ndarray:
    """Return the clip after H.265 at a constant rate factor.

    Args:
        clip: (T, H, W, 3) uint8.
        severity: 1 to 5: rate factor 27, 33, 39, 45 or 51.
        rng: unused.
        fps: frames per second.

    Raises:
        MissingEncoder: PyAV has no libx265.
    """
    crf = level(clip, severity, (27, 33, 39, 45, 51))
    return _decode(_encode(clip, "libx265", fps, {"crf": str(crf)}))


def h264_abr(
    clip: np.ndarray, severity: int, rng: np.random.Generator, fps: float = 25.0
) -> np.ndarray:
    """Return the clip after H.264 at a fraction of the bit rate of CRF 23, libx264's default.

    The benchmark divides the bit rate of the file. A clip in memory has no such rate.

    Args:
        clip: (T, H, W, 3) uint8.
        severity: 1 to 5: 1/2, 1/4, 1/8, 1/16 or 1/32 of the bits.
        rng: unused.
        fps: frames per second.
    """
    return _at_rate(clip, "libx264", level(clip, severity, (2, 4, 8, 16, 32)), fps)


def h265_abr(
    clip: np.ndarray, severity: int, rng: np.random.Generator, fps: float = 25.0
) -> np.ndarray:
    """Return the clip after H.265 at a fraction of the bit rate that H.264 needs at CRF 23.

    Args:
        clip: (T, H, W, 3) uint8.
        severity: 1 to 5: 1/2, 1/4, 1/8, 1/16 or 1/32 of the bits.
        rng: unused.
        fps: frames per second.

    Raises:
        MissingEncoder: PyAV has no libx265.
    """
    return _at_rate(clip, "libx265", level(clip, severity, (2, 4, 8, 16, 32)), fps)


def mpeg1(clip: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Return the clip after MPEG-1 at a constant quantiser.

    Args:
        clip: (T, H, W, 3) uint8.
        severity: 1 to 5: quantiser 4, 8, 14, 21 or 31, the coarsest of the format.
        rng: unused.
    """
    quantiser = level(clip, severity, (4, 8, 14, 21, 31))
    return _decode(_encode(clip, "mpeg1video", 25, {}, quantiser=quantiser))


def mpeg2(clip: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Return the clip after MPEG-2 at a constant quantiser.

    Args:
        clip: (T, H, W, 3) uint8.
        severity: 1 to 5: quantiser 4, 8, 14, 21 or 31, the coarsest of the format.
        rng: unused.
    """
    quantiser = level(clip, severity, (4, 8, 14, 21, 31))
    return _decode(_encode(clip, "mpeg2video", 25, {}, quantiser=quantiser))


# ------------------------------------------------------------------ transmission errors


def bit_error(
    clip: np.ndarray, severity: int, rng: np.random.Generator, fps: float = 25.0
) -> np.ndarray:
    """Return the clip decoded from an H.264 stream (CRF 23) with wrong bytes.

    The decoder conceals the errors. The published rates are one wrong byte in 100,000 to 10,000 at
    1 Mbit/s, which is 0.05 to 0.5 per frame. A smaller picture has fewer bytes per frame, so a
    larger fraction of them is wrong. An error damages the rest of its slice, a quarter of a frame,
    and everything predicted from it. The first of several frames arrives undamaged, as in the
    middle of a longer video. A short clip at low severity may come through undamaged.

    Args:
        clip: (T, H, W, 3) uint8.
        severity: 1 to 5: 0.05, 0.1, 0.17, 0.25 or 0.5 wrong bytes per frame on average.
        rng: samples the wrong bytes.
        fps: frames per second.
    """
    once_in = level(clip, severity, (100_000, 50_000, 30_000, 20_000, 10_000))
    stream = _encode(clip, "libx264", fps, {"crf": "23"}, _SLICED)
    undamaged = min(len(stream.packets) - 1, 1)
    exposed = sum(len(content) for content, _ in stream.packets[undamaged:])
    # The expected number of wrong bytes is that of the published file, whatever the size of this
    # stream.
    rate = len(clip) * _BYTES_PER_FRAME / (once_in * exposed)
    packets = stream.packets[:undamaged]
    for content, shown in stream.packets[undamaged:]:
        damaged = np.frombuffer(content, np.uint8).copy()
        # XOR with 1 to 255 changes a byte for certain
        damaged[rng.random(len(damaged)) < rate] ^= np.uint8(rng.integers(1, 256))
        packets.append((damaged.tobytes(), shown))
    return _decode(stream.with_packets(packets))


def packet_loss(
    clip: np.ndarray, severity: int, rng: np.random.Generator, fps: float = 25.0
) -> np.ndarray:
    """Return the clip decoded from an H.264 stream (CRF 23) with lost packets.

    The decoder conceals the losses. A packet is a slice of at most 1,200 bytes, as a network
    carries them. A frame has at least four packets, as it would at 1 Mbit/s. As in `bit_error`, the
    first of several frames arrives, and short clips may come through undamaged.

    Args:
        clip: (T, H, W, 3) uint8.
        severity: 1 to 5: 1, 2, 3, 4 or 6 % of the packets are lost.
        rng: samples the lost packets.
        fps: frames per second.
    """
    probability = level(clip, severity, (0.01, 0.02, 0.03, 0.04, 0.06))
    stream = _encode(clip, "libx264", fps, {"crf": "23"}, _SLICED)
    undamaged = min(len(stream.packets) - 1, 1)
    packets = stream.packets[:undamaged]
    for content, shown in stream.packets[undamaged:]:
        kept = [unit for unit in content.split(_START)[1:] if rng.random() >= probability]
        packets.append((b"".join(_START + unit for unit in kept), shown))
    return _decode(stream.with_packets(packets))


# ------------------------------------------------------------------ encoder and decoder


@dataclass(frozen=True)
class _Stream:
    """Hold an encoded clip.

    Attributes:
        codec: name of the decoder.
        headers: what describes the stream, apart from the packets.
        packets: (bytes, index of the frame that they show), in the decoder's order.
        shape: of the clip, (T, H, W, 3).
        coded: (height, width) of the padded frames.
    """

    codec: str
    headers: bytes | None
    packets: list[tuple[bytes, int]]
    shape: tuple[int, ...]
    coded: tuple[int, int]

    def with_packets(self, packets: list[tuple[bytes, int]]) -> "_Stream":
        """Return the same stream with other packets."""
        return _Stream(self.codec, self.headers, packets, self.shape, self.coded)

    @property
    def bytes(self) -> int:
        """Return the total size of the packets in bytes."""
        return sum(len(content) for content, _ in self.packets)


def _encode(
    clip: np.ndarray,
    encoder: str,
    fps: float,
    options: dict[str, str],
    encoder_params: Sequence[str] = (),
    quantiser: int = 0,
    rate: int = 0,
) -> _Stream:
    """Encode a clip.

    Args:
        clip: (T, H, W, 3) uint8.
        encoder: FFmpeg's name of the encoder.
        fps: frames per second.
        options: options of FFmpeg.
        encoder_params: options of libx264 or libx265 itself.
        quantiser: constant quantiser, for MPEG-1 and MPEG-2; 0: none.
        rate: bits per second; 0: none.

    Raises:
        MissingEncoder: PyAV has no such encoder.
    """
    codec = _find_encoder(encoder)

    # Pad to even sides, and to the smallest frame that the encoder handles.
    height, width = clip.shape[1:3]
    tall, wide = (max(side + side % 2, _SMALLEST.get(encoder, 16)) for side in (height, width))
    padded = np.pad(clip, ((0, 0), (0, tall - height), (0, wide - width), (0, 0)), mode="edge")

    context = codec.create("video")
    context.width = wide
    context.height = tall
    context.pix_fmt = "yuv420p"
    context.thread_count = 1  # so that every run gives the same bits
    context.framerate = Fraction(_rate(fps)).limit_denominator(1001)
    context.time_base = 1 / context.framerate
    context.flags |= Flags.global_header  # keep headers apart from the packets, as in a file
    if encoder in _PLAIN:
        params = ":".join([_PLAIN[encoder], *encoder_params])
        options = options | {f"{encoder.removeprefix('lib')}-params": params}
    context.options = options
    if quantiser:
        context.qmin = quantiser
        context.qmax = quantiser
    if rate:
        context.bit_rate = rate

    packets = _packets(context, padded)
    return _Stream(codec.canonical_name, context.extradata, packets, clip.shape, (tall, wide))


def _find_encoder(encoder: str) -> av.codec.Codec:
    """Return an encoder of PyAV; raise MissingEncoder if it has none of this name."""
    try:
        return av.codec.Codec(encoder, "w")
    except av.codec.codec.UnknownCodecError:
        raise MissingEncoder(
            f"this PyAV has no encoder {encoder}: install PyAV's wheel (pip install"
            " --force-reinstall av), which has it"
        ) from None


def _packets(context: Any, frames: np.ndarray) -> list[tuple[bytes, int]]:
    """Return the packets of padded frames, each with the index of the frame that it shows."""
    packets: list[tuple[bytes, int]] = []
    for number, frame in enumerate([*frames, None]):  # None flushes the encoder
        picture = None
        if frame is not None:
            picture = av.VideoFrame.from_ndarray(_to_yuv420(frame), format="yuv420p")
            picture.pts = number
            picture.time_base = context.time_base
        packets += [(bytes(packet), int(packet.pts or 0)) for packet in context.encode(picture)]
    return packets


def _decode(stream: _Stream) -> np.ndarray:
    """Return the clip of a stream.

    A frame that does not decode repeats the last frame that did. Frames before the first decoded
    one show the first decoded one. The clip is gray if no frame decodes.
    """
    context = av.codec.Codec(stream.codec, "r").create("video")
    context.thread_count = 1
    context.extradata = stream.headers
    context.flags |= Flags.output_corrupt  # return frames with concealed errors too

    frames: dict[int, np.ndarray] = {}
    for content, shown in [*stream.packets, (b"", -1)]:  # the last entry flushes the decoder
        if not content and shown >= 0:
            continue  # none of this packet arrived; an empty packet would end the stream
        packet = None
        if content:
            packet = av.Packet(content)
            packet.pts = shown
            packet.dts = shown
        try:
            decoded = context.decode(packet)
        except av.error.FFmpegError:  # the packet is damaged beyond concealment
            continue
        for frame in decoded:
            frames[int(frame.pts or 0)] = _to_rgb(frame.to_ndarray(format="yuv420p"), *stream.coded)

    length, height, width = stream.shape[:3]
    out = np.full(stream.shape, 128, np.uint8)
    last = min(frames, default=-1)
    for t in range(length):
        last = t if t in frames else last
        if last >= 0:
            out[t] = frames[last][:height, :width]
    return out


def _rate(fps: float) -> float:
    """Return a valid frame rate: images and folders of frames have a rate of 0."""
    return fps if fps >= 1 else 25.0


def _at_rate(clip: np.ndarray, encoder: str, divisor: int, fps: float) -> np.ndarray:
    """Return the clip after an encoder at the bit rate of H.264 at CRF 23 divided by a number.

    As in the benchmark, the average rate, the maximum rate and the buffer have the same size.
    """
    usual = _encode(clip, "libx264", fps, {"crf": "23"})
    rate = max(int(8 * usual.bytes * _rate(fps) / len(clip) / divisor), 1000)
    return _decode(
        _encode(clip, encoder, fps, {"maxrate": str(rate), "bufsize": str(rate)}, rate=rate)
    )


# ------------------------------------------------------------------ colours


def _to_yuv420(frame: np.ndarray) -> np.ndarray:
    """Convert a frame (H, W, 3) RGB to planes (3 H / 2, W) in PyAV's layout.

    Y comes first, then Cb and Cr, each averaged over blocks of 2 x 2 pixels.
    """
    rgb = to_planes(frame)
    width = rgb.shape[2]
    yuv = (_TO_YUV @ rgb.flatten(1) + _OFFSET).view_as(rgb)
    planes = torch.cat([yuv[0].flatten(), F.avg_pool2d(yuv[1:], 2).flatten()])
    return planes.round_().clamp_(0, 255).to(torch.uint8).view(-1, width).numpy()


def _to_rgb(planes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Invert `_to_yuv420`, repeating each colour sample over its 2 x 2 pixels."""
    flat = torch.from_numpy(planes).flatten().float()
    pixels = height * width
    chroma = flat[pixels : pixels + pixels // 2].view(2, height // 2, width // 2)
    chroma = chroma.repeat_interleave(2, 1).repeat_interleave(2, 2)
    yuv = torch.cat([flat[:pixels], chroma.flatten()]).view(3, -1)
    return to_uint8(from_planes((_TO_RGB @ (yuv - _OFFSET)).view(3, height, width)))
