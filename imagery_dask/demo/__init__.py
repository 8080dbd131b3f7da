"""A small synthetic volume, and an export of it.

It uses the package as a user does, so it may import everything but the command line. Begin with `demo.opening`, which
gives examples a client on the volume; `demo.tour` exports a region of it, and `demo.cave_tour` one of a dynamic
segmentation from a local CAVE server, which `demo.cave` offers.
"""

from typing import TYPE_CHECKING

from imagery_dask.lazy_names import lazy_names

if TYPE_CHECKING:
    from imagery_dask.demo.cave_tour import CaveDemoResult, run_cave_demo
    from imagery_dask.demo.opening import CENTER, demo_volumes, open
    from imagery_dask.demo.tour import DemoResult, run_demo
    from imagery_dask.testing.volume import DemoVolumes, write_demo_volumes
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "imagery_dask.demo.cave_tour": ["CaveDemoResult", "run_cave_demo"],
            "imagery_dask.demo.opening": ["CENTER", "demo_volumes", "open"],
            "imagery_dask.demo.tour": ["DemoResult", "run_demo"],
            "imagery_dask.testing.volume": ["DemoVolumes", "write_demo_volumes"],
        },
    )

__all__ = [
    "CENTER",
    "CaveDemoResult",
    "DemoResult",
    "DemoVolumes",
    "demo_volumes",
    "open",
    "run_cave_demo",
    "run_demo",
    "write_demo_volumes",
]
