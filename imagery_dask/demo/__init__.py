"""A small synthetic volume, and the main job run on it."""

from imagery_dask.demo.tour import DemoResult, run_demo
from imagery_dask.demo.volume import DemoVolumes, write_demo_volumes

__all__ = ["DemoResult", "DemoVolumes", "run_demo", "write_demo_volumes"]
