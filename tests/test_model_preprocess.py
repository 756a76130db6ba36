"""Crops against libswscale's own conversion of the whole frame, and against the standards' formulas in float64."""

import itertools
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace, Interpolation
from hypothesis import given
from hypothesis import strategies as st
from properties import examples

from inspectd.frame import Box, Frame
from inspectd.model.preprocess import Preprocessor, PreprocessSpec, preprocess_picture

SPEC = PreprocessSpec()
LIMIT = 2.0  # of 255, mean absolute difference: what the project promises against libswscale
NEAR = 1.0  # against exact arithmetic
YUV = ("yuv420p", "nv12", "yuv422p", "yuyv422")
COLOURS = list(itertools.product(("bt601", "bt709"), (False, True)))
BOXES = {
    "shrunk": Box(100, 60, 800, 640),
    "shrunk, odd offset": Box(101, 61, 800, 640),
    "shrunk, odd offset and size": Box(33, 77, 563, 501),
    "twice the network": Box(64, 32, 448, 448),
    "luma shrinks, chroma grows": Box(11, 9, 300, 301),
    "enlarged": Box(5, 7, 101, 99),
    "one axis grows": Box(3, 1, 600, 150),
    "as it is": Box(7, 8, 224, 224),
}
# ITU-R BT.601-7 2.5.1, BT.709-6 3.2: luma weights of red and blue
LUMA = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722)}


def natural(height, width):
    """Coloured texture whose spectrum falls as in photographs, with shapes, edges and a thin scratch."""
    rng = np.random.default_rng(7)
    k = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
    k[0, 0] = 1

    def texture(exponent):
        x = np.fft.ifft2(np.fft.fft2(rng.standard_normal((height, width))) / k**exponent).real
        return (x - x.mean()) / x.std()

    light = texture(1.1) * 45 + 128
    rgb = np.stack([light + texture(1.5) * 25, light, light + texture(1.5) * 25], axis=-1)
    cv2.circle(rgb, (width // 2, height // 2), height // 4, (200, 40, 30), -1)
    cv2.rectangle(rgb, (width // 8, height // 8), (width // 3, height // 2), (20, 60, 220), 5)
    cv2.line(rgb, (0, 0), (width, height), (250, 250, 240), 2)
    return rgb.clip(0, 255).astype(np.uint8)


def saturated(height, width, cell):
    """A checker of pure colours."""
    colours = np.array(list(itertools.product((0, 255), repeat=3)), np.uint8)
    i, j = np.arange(height)[:, None] // cell, np.arange(width) // cell
    return colours[(3 * i + 5 * j + i * j) % 8]


PICTURES = {"natural": natural(720, 1280), "saturated": saturated(720, 1280, 40)}


def encode(rgb, pixel_format, matrix="bt601", full_range=True):
    """A frame of that layout from RGB, by the formulas of the standards."""
    height, width = rgb.shape[:2]
    red, blue = LUMA[matrix]
    pixels = rgb.astype(np.float64)
    y = pixels @ (red, 1 - red - blue, blue)
    u, v = (pixels[..., 2] - y) / (2 * (1 - blue)), (pixels[..., 0] - y) / (2 * (1 - red))
    if not full_range:
        y, u, v = y * 219 / 255 + 16, u * 224 / 255, v * 224 / 255
    rows = 2 if pixel_format in ("yuv420p", "nv12") else 1

    def quantised(plane):
        return plane.round().clip(0, 255).astype(np.uint8)

    def subsampled(plane):
        even = np.pad(plane, ((0, -height % rows), (0, width % 2)), "edge")
        return quantised(even.reshape(even.shape[0] // rows, rows, -1, 2).mean(axis=(1, 3)) + 128)

    y, u, v = quantised(y), subsampled(u), subsampled(v)
    planes = {
        "yuv420p": lambda: (y, u, v),
        "yuv422p": lambda: (y, u, v),
        "nv12": lambda: (y, np.stack([u, v], axis=-1)),
        "yuyv422": lambda: (np.stack([y[:, ::2], u, y[:, 1::2], v], axis=-1),),
        "gray": lambda: (y,),
        "rgb24": lambda: (rgb,),
        "bgr24": lambda: (rgb[..., ::-1].copy(),),
    }[pixel_format]()
    return make_frame(pixel_format, width, height, planes, matrix, full_range)


def make_frame(pixel_format, width, height, planes, matrix, full_range):
    return Frame(pixel_format, width, height, tuple(planes), matrix, full_range, 0.0, 0.0, "arrival")


def padded(frame):
    """The same frame with rows longer than the picture, as decoders make them, and no memory shared."""
    planes = []
    for plane in frame.planes:
        wide = np.full((plane.shape[0], plane.shape[1] + 24, *plane.shape[2:]), 77, np.uint8)
        wide[:, : plane.shape[1]] = plane
        planes.append(wide[:, : plane.shape[1]])
    return make_frame(frame.format, frame.width, frame.height, planes, frame.matrix, frame.full_range)


def swscale(frame, interpolation=None):
    """The whole frame by libswscale: uint8 RGB [H, W, 3]."""
    picture = av.VideoFrame(frame.width, frame.height, frame.format)
    for target, plane in zip(picture.planes, frame.planes, strict=True):
        rows = np.asarray(memoryview(target)).reshape(-1, target.line_size)
        flat = plane.reshape(plane.shape[0], -1)
        rows[: flat.shape[0], : flat.shape[1]] = flat
    colours = {"bt601": Colorspace.ITU601, "bt709": Colorspace.ITU709}[frame.matrix]
    source = ColorRange.JPEG if frame.full_range else ColorRange.MPEG
    return picture.reformat(
        format="rgb24",
        src_colorspace=colours,
        dst_colorspace=colours,
        src_color_range=source,
        dst_color_range=ColorRange.JPEG,
        interpolation=interpolation,
    ).to_ndarray()


def exact(frame):
    """The whole frame by the formulas, chroma repeated over the pixels that share it: float64 RGB [H, W, 3]."""
    if frame.format == "yuyv422":
        quads = frame.planes[0].astype(np.float64)
        y, u, v = quads[..., ::2].reshape(frame.height, -1), quads[..., 1], quads[..., 3]
    elif frame.format == "nv12":
        y, u, v = frame.planes[0], frame.planes[1][..., 0], frame.planes[1][..., 1]
    else:
        y, u, v = frame.planes

    def repeated(plane):
        rows = 2 if frame.format in ("yuv420p", "nv12") else 1
        return plane.astype(np.float64).repeat(rows, axis=0).repeat(2, axis=1)[: frame.height, : frame.width] - 128

    y, u, v = y.astype(np.float64), repeated(u), repeated(v)
    if not frame.full_range:
        y, u, v = (y - 16) * 255 / 219, u * 255 / 224, v * 255 / 224
    red, blue = LUMA[frame.matrix]
    r, b = y + 2 * (1 - red) * v, y + 2 * (1 - blue) * u
    return np.stack([r, (y - red * r - blue * b) / (1 - red - blue), b], axis=-1).clip(0, 255)


def resized(rgb, box, spec=SPEC):
    """Crop and resize with OpenCV, each axis by itself: INTER_AREA where it shrinks, INTER_LINEAR where it grows."""
    crop = rgb[box.y : box.y + box.height, box.x : box.x + box.width]
    small = (min(box.width, spec.width), min(box.height, spec.height))
    crop = cv2.resize(crop, small, interpolation=cv2.INTER_AREA)
    return cv2.resize(crop, (spec.width, spec.height), interpolation=cv2.INTER_LINEAR).astype(np.float64)


def preprocess(frame, box, spec=SPEC):
    out = np.full((spec.height, spec.width, 3), 99, np.uint8)
    Preprocessor(spec)(frame, box, out)
    return out


def difference(a, b):
    return np.abs(a.astype(np.float64) - b).mean()


@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize(("matrix", "full_range"), COLOURS)
@pytest.mark.parametrize("pixel_format", YUV)
def test_yuv_crops_match_libswscale_and_the_standards_formulas(pixel_format, matrix, full_range, picture):
    frame = encode(PICTURES[picture], pixel_format, matrix, full_range)
    # Where pure colours meet, libswscale must repeat chroma in nv12 too, as it does unasked in yuv420p.
    by_swscale = swscale(frame, Interpolation.POINT if picture == "saturated" else None)
    by_formula = exact(frame)
    for name, box in BOXES.items():
        out = preprocess(padded(frame), box)
        assert difference(out, resized(by_swscale, box)) <= LIMIT, name
        assert difference(out, resized(by_formula, box)) <= NEAR, name


@pytest.mark.parametrize("pixel_format", YUV)
def test_no_pixel_strays_where_chroma_edges_are_sharp(pixel_format):
    """A shift of chroma by half a sample, or of luma by one, would show as a large difference somewhere."""
    frame = encode(PICTURES["saturated"], pixel_format, "bt709", full_range=True)
    for name, box in BOXES.items():
        strays = np.abs(preprocess(frame, box) - resized(exact(frame), box)).max()
        # Edges may clip before or after the average; a shift would be off by half of 255.
        assert strays < 40, name


@pytest.mark.parametrize("pixel_format", ["yuv420p", "nv12", "yuv422p"])
def test_frames_of_odd_size_keep_their_last_row_and_column(pixel_format):
    frame = encode(natural(479, 641), pixel_format, "bt601", full_range=False)
    for box in (Box(0, 0, 641, 479), Box(1, 3, 640, 476), Box(540, 380, 101, 99)):
        out = preprocess(padded(frame), box)
        assert difference(out, resized(swscale(frame), box)) <= LIMIT
        assert difference(out, resized(exact(frame), box)) <= NEAR


@pytest.mark.parametrize("full_range", [True, False])
def test_gray_honours_its_range(full_range):
    frame = encode(PICTURES["natural"], "gray", "bt601", full_range)
    luma = frame.planes[0].astype(np.float64)
    luma = luma if full_range else (luma - 16) * 255 / 219
    for box in BOXES.values():
        out = preprocess(padded(frame), box)
        assert (out[..., 0] == out[..., 1]).all() and (out[..., 0] == out[..., 2]).all()  # noqa: PT018 - one fact
        assert difference(out[..., 0], resized(luma.clip(0, 255), box)) <= NEAR


@pytest.mark.parametrize("pixel_format", ["rgb24", "bgr24"])
def test_rgb_and_bgr_come_out_as_rgb(pixel_format):
    frame = encode(PICTURES["natural"], pixel_format)
    for box in BOXES.values():
        assert difference(preprocess(padded(frame), box), resized(PICTURES["natural"], box)) <= NEAR


@pytest.mark.parametrize(("matrix", "full_range"), COLOURS)
def test_decoded_h264_matches_libswscale(matrix, full_range, tmp_path):
    """A real stream, tagged with its matrix and range, through encoder and decoder."""
    rgb = PICTURES["natural"]
    spaces = {"bt601": Colorspace.SMPTE170M, "bt709": Colorspace.ITU709}
    with av.open(tmp_path / "clip.mp4", "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"crf": "20", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = rgb.shape[1], rgb.shape[0], "yuv420p"
        stream.codec_context.time_base = Fraction(1, 30)
        stream.codec_context.colorspace = spaces[matrix]
        stream.codec_context.color_range = ColorRange.JPEG if full_range else ColorRange.MPEG
        made = encode(rgb, "yuv420p", matrix, full_range)
        picture = av.VideoFrame(made.width, made.height, "yuv420p")
        for target, plane in zip(picture.planes, made.planes, strict=True):
            rows = np.asarray(memoryview(target)).reshape(-1, target.line_size)
            rows[: plane.shape[0], : plane.shape[1]] = plane
        picture.colorspace, picture.color_range = stream.codec_context.colorspace, stream.codec_context.color_range
        container.mux([*stream.encode(picture), *stream.encode(None)])
    with av.open(tmp_path / "clip.mp4") as container:
        decoded = next(container.decode(video=0))
    assert decoded.colorspace == spaces[matrix]
    assert decoded.color_range == (ColorRange.JPEG if full_range else ColorRange.MPEG)
    planes = []
    for index, plane in enumerate(decoded.planes):
        height, width = (rgb.shape[0], rgb.shape[1]) if index == 0 else (rgb.shape[0] // 2, rgb.shape[1] // 2)
        planes.append(np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[:height, :width])
    frame = make_frame("yuv420p", rgb.shape[1], rgb.shape[0], planes, matrix, full_range)
    by_swscale = decoded.reformat(format="rgb24", dst_color_range=ColorRange.JPEG).to_ndarray()  # by the tags alone
    for name, box in BOXES.items():
        out = preprocess(frame, box)
        assert difference(out, resized(by_swscale, box)) <= LIMIT, name
        assert difference(out, resized(exact(frame), box)) <= NEAR, name


def test_a_picture_from_a_folder_and_the_same_picture_from_a_camera_look_the_same():
    """Training and the line: RGB and gray pictures go the way of frames."""
    rgb = np.ascontiguousarray(PICTURES["natural"][60:700, 101:901])
    out = preprocess(encode(PICTURES["natural"], "rgb24"), Box(101, 60, 800, 640))
    assert (preprocess_picture(rgb, SPEC) == out).all()
    gray = encode(PICTURES["natural"], "gray").planes[0]
    box = Box(0, 0, gray.shape[1], gray.shape[0])
    assert (preprocess_picture(gray, SPEC) == preprocess(encode(PICTURES["natural"], "gray"), box)).all()
    by_video = preprocess(encode(PICTURES["natural"], "yuv420p", "bt709", full_range=False), Box(101, 60, 800, 640))
    assert difference(by_video, out) <= LIMIT


def test_a_picture_turned_or_mirrored_in_memory_is_read_in_its_order():
    mirrored = PICTURES["natural"][:, ::-1]
    assert (preprocess_picture(mirrored, SPEC) == preprocess_picture(mirrored.copy(), SPEC)).all()


@pytest.mark.parametrize("pixel_format", [*YUV, "gray", "rgb24", "bgr24"])
def test_scratch_memory_does_not_leak_from_one_crop_into_the_next(pixel_format):
    """One preprocessor serves boxes of any size in any order as fresh ones would."""
    frame = encode(PICTURES["saturated"], pixel_format, "bt709", full_range=False)
    shared = Preprocessor(SPEC)
    for box in [*BOXES.values(), *reversed(BOXES.values())]:
        out = np.empty((SPEC.height, SPEC.width, 3), np.uint8)
        shared(frame, box, out)
        assert (out == preprocess(frame, box)).all()


def test_flat_pictures_stay_flat_at_any_size():
    """The weights of every output pixel sum to one: no level is lost or gained, white stays white."""
    for level in (0, 1, 128, 254, 255):
        for width, height in ((17, 5000), (224, 224), (225, 223), (999, 31)):
            picture = np.full((height, width, 3), level, np.uint8)
            assert (preprocess_picture(picture, SPEC) == level).all()


@examples(60)
@given(st.data())
def test_any_box_of_any_frame_is_near_exact_arithmetic(data):
    """Offsets, sizes and network sizes at random, in noise, where every misplaced pixel counts."""
    width, height = data.draw(st.integers(8, 90)), data.draw(st.integers(8, 90))
    pixel_format = data.draw(st.sampled_from(["yuv420p", "nv12", "yuv422p", "yuyv422"]))
    width += width % 2 if pixel_format == "yuyv422" else 0
    x, y = data.draw(st.integers(0, width - 2)), data.draw(st.integers(0, height - 2))
    box = Box(x, y, data.draw(st.integers(1, width - x)), data.draw(st.integers(1, height - y)))
    spec = PreprocessSpec(width=data.draw(st.integers(16, 48)), height=data.draw(st.integers(16, 48)))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    shades = rng.integers(90, 166, (height, width, 3), dtype=np.uint8)  # so that nothing clips
    frame = encode(shades, pixel_format, data.draw(st.sampled_from(["bt601", "bt709"])), full_range=True)
    worst = np.abs(preprocess(frame, box, spec) - resized(exact(frame), box, spec)).max()
    assert worst < 6  # each plane is rounded twice, and blue takes 1.86 of a level of U


def test_a_very_large_picture_is_averaged_whole():
    """Each of 313 source pixels counts for the one that they become."""
    rng = np.random.default_rng(3)
    picture = rng.integers(0, 256, (5008, 64), dtype=np.uint8)
    out = preprocess_picture(picture, PreprocessSpec(width=16, height=16))
    means = picture.reshape(16, 313, 16, 4).astype(np.float64).mean(axis=(1, 3))
    assert np.abs(out[..., 0] - means).max() <= 1.01


def test_a_box_outside_the_frame_is_refused_and_nothing_is_written():
    frame = encode(PICTURES["natural"], "yuv420p")
    for box in (Box(600, 0, 700, 100), Box(-1, 0, 100, 100), Box(0, 621, 100, 100), Box(0, 0, 0, 10)):
        out = np.full((224, 224, 3), 99, np.uint8)
        with pytest.raises(ValueError, match="does not fit a frame of 1280x720"):
            Preprocessor(SPEC)(frame, box, out)
        assert (out == 99).all()


def test_planes_smaller_than_the_frame_claims_are_refused():
    """A slice would silently be smaller, and a smaller region be judged for the whole."""
    whole = encode(PICTURES["natural"], "yuv420p")
    for index in range(3):
        planes = list(whole.planes)
        planes[index] = planes[index][:-40]
        frame = make_frame("yuv420p", 1280, 720, planes, "bt601", full_range=True)
        with pytest.raises(ValueError, match="too small"):
            preprocess(frame, Box(0, 0, 1280, 720))


@pytest.mark.parametrize(
    "out",
    [
        np.empty((224, 224), np.uint8),
        np.empty((225, 224, 3), np.uint8),
        np.empty((224, 224, 3), np.float32),
        np.empty((224, 448, 3), np.uint8)[:, ::2],
    ],
)
def test_a_destination_of_another_shape_is_refused(out):
    """OpenCV would allocate another one and leave the engine's memory as it was: an old part judged anew."""
    with pytest.raises(ValueError, match="expected contiguous uint8"):
        Preprocessor(SPEC)(encode(PICTURES["natural"], "gray"), Box(0, 0, 500, 500), out)


def test_the_engines_slot_is_written_in_place():
    pool = np.zeros((3, 224, 224, 3), np.uint8)
    Preprocessor(SPEC)(encode(PICTURES["natural"], "yuv420p"), Box(0, 0, 720, 720), pool[1])
    assert pool[1].any()
    assert not pool[0].any()
    assert not pool[2].any()
