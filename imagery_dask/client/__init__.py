"""The client: `ImageryClient` has the calls of imageryclient and returns lazy arrays.

This folder may import every folder except `cli`, `demo` and `testing`. Begin reading in `facade`: each method resolves
its arguments to a cutout and returns a lazy array, or writes picture files.
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
