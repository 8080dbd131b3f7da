"""The demo volume, and a client on it, for examples that run anywhere."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from imagery_dask.client import ImageryClient
from imagery_dask.testing.volume import DemoVolumes, write_demo_volumes
from imagery_dask.validate import expanded_path

__all__ = ["CENTER", "demo_volumes", "open"]

#: Centre of the demo volume: x, y, z in voxels of its imagery, 8 x 8 x 40 nm.
CENTER = (12672, 8576, 1056)
# In the name of the default folder. Raise it when the voxels of the demo volume change.
_EDITION = "1"


def open(folder: str | os.PathLike[str] | None = None, **settings: Any) -> ImageryClient:
    """Return a client on a small made-up volume, which is written at the first call.

    Parameters
    ----------
    folder : path-like, optional
        Folder of the volume. By default one in the user's cache (``XDG_CACHE_HOME``, or else ``~/.cache``).
    **settings
        Arguments of `ImageryClient`, except the two sources.

    Returns
    -------
    ImageryClient
        Imagery of 768 x 768 x 64 voxels of 8 x 8 x 40 nm around `CENTER`, uint8; a segmentation with voxels of
        16 x 16 x 40 nm, uint64; three mips of each.

    Examples
    --------
    >>> from imagery_dask import demo
    >>> client = demo.open()
    >>> client.image_cutout(demo.CENTER, image_size=(256, 256)).shape
    (256, 256)
    """
    volumes = demo_volumes(folder)
    return ImageryClient(image_source=volumes.image_source, segmentation_source=volumes.segmentation_source, **settings)


def demo_volumes(folder: str | os.PathLike[str] | None = None) -> DemoVolumes:
    """Write the demo volume, unless the folder has it already, and return its sources.

    Parameters
    ----------
    folder : path-like, optional
        As in `open`.
    """
    place = _default_folder() if folder is None else Path(expanded_path(folder)).resolve()
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        # Renamed when it is complete: another process may be doing the same.
        draft = Path(mkdtemp(prefix=f"{place.name}-", dir=place.parent))
        try:
            write_demo_volumes(draft)
            draft.chmod(0o755)
            draft.rename(place)
        except OSError:
            if not place.exists():
                raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    if not all((place / layer / "info").is_file() for layer in ("image", "segmentation")):
        raise FileExistsError(f"{place} exists and is not a demo volume. Give another folder, or remove it.")
    image, segmentation = (f"precomputed://file://{place / layer}" for layer in ("image", "segmentation"))
    return DemoVolumes(image, segmentation, CENTER)


def _default_folder() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "imagery_dask" / f"demo-{_EDITION}"
