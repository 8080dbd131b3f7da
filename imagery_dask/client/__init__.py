"""The facade: `ImageryClient` has the reference's calls, each resolved once and answered with a lazy array."""

from imagery_dask.client.facade import ImageryClient

__all__ = ["ImageryClient"]
