"""`inspectd demo`: from nothing to live verdicts beside the truth, on a machine without camera, GPU or network."""

from inspectd.demo.show import run_demo

__all__ = ["run_demo"]
