"""xarray objects: the accessor ``em`` with what xarray lacks for volumes, and exports that are opened again.

May import everything up to `viewer`; knows no client. Begin with `accessor`, which registers ``em`` when it is
imported: by the client when it makes an xarray object, and by `opened` when it opens an export.
"""

from typing import TYPE_CHECKING

from imagery_dask.lazy_names import lazy_names

if TYPE_CHECKING:
    from imagery_dask.xarrays.opened import open_export
else:
    __getattr__, __dir__ = lazy_names(__name__, {"imagery_dask.xarrays.opened": ["open_export"]})

__all__ = ["open_export"]
