"""Line-side visual inspection: from a camera to a defect verdict."""

__version__ = "0.1.0"
