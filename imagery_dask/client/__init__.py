"""The facade: `ImageryClient` has the reference's calls, each resolved once and answered with a lazy array.

It may import everything but the command line and the demo. Begin reading in `client.facade`: each method makes a
cutout of its arguments and returns a lazy array, pictures or an export.
"""

from typing import TYPE_CHECKING

from imagery_dask.lazy_names import lazy_names

if TYPE_CHECKING:
    from imagery_dask.client.facade import ImageryClient
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "imagery_dask.client.facade": ["ImageryClient"],
        },
    )

__all__ = [
    "ImageryClient",
]
