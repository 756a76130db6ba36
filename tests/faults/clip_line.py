"""A line whose every picture is known: a short clip of colours, played in a loop at the speed of a camera."""

from colour_bundle import colour_bundle
from media import write_clip
from test_daemon import colour_picture, kind_of, write_config

PICTURES = 100
BOX = (40, 40, 64, 64)
VERDICTS = "verdict/line/part/"


class ClipLine:
    """The folder of one line: its bundle, its clip, its configurations."""

    def __init__(self, folder, fps=20):
        self.folder = folder
        colour_bundle(folder / "bundle")
        write_clip(
            folder / "clip.mp4",
            PICTURES,
            size=(160, 128),
            fps=fps,
            picture=colour_picture((160, 128), [0], [BOX]),
            barcode=False,
        )

    def config(self, extra="", camera=""):
        """A configuration with these sections, and these keys of the camera `line` with its region `part`."""
        cameras = [("line", "file:clip.mp4?loop=1&realtime=1", camera, {"part": BOX})]
        return write_config(self.folder, "line", cameras, extra)


def truth(message):
    """What the picture of a verdict shows."""
    return kind_of(message["frame"]["index"] % PICTURES)


def unbroken(messages):
    """Whether the verdicts of the one region are all there, in their order, from the first of these to the last."""
    seqs = [m["seq"] for m in messages]
    return seqs == list(range(seqs[0], seqs[0] + len(seqs)))
