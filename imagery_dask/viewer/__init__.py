"""Neuroglancer: its links and states, and a server on this machine that gives it volumes.

May import everything up to `export`; knows no client. Begin with `states` (what a state says, in both of its forms),
then `links` (URLs of states), `served` (a volume as Neuroglancer reads it) and `loopback` (the server and its page);
`launch` opens it.
"""

from typing import TYPE_CHECKING

from imagery_dask.lazy_names import lazy_names

if TYPE_CHECKING:
    from imagery_dask.viewer.launch import view_data
    from imagery_dask.viewer.links import bounds_from_neuroglancer
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "imagery_dask.viewer.launch": ["view_data"],
            "imagery_dask.viewer.links": ["bounds_from_neuroglancer"],
        },
    )

__all__ = [
    "bounds_from_neuroglancer",
    "view_data",
]
