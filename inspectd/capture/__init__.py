"""Where frames come from: one source a file, and the camera that supervises it."""
