"""A small synthetic volume, and the main job run on it."""

from imagery_dask.demo.cave_tour import CaveDemoResult, run_cave_demo
from imagery_dask.demo.tour import DemoResult, run_demo
from imagery_dask.testing.volume import DemoVolumes, write_demo_volumes

__all__ = ["CaveDemoResult", "DemoResult", "DemoVolumes", "run_cave_demo", "run_demo", "write_demo_volumes"]
