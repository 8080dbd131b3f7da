"""`ImageryClient`: the calls of imageryclient, with lazy arrays as results."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, TypeVar

import dask.array as da
import numpy as np
from numpy.typing import ArrayLike, NDArray

from imagery_dask.arrays.guards import set_max_bytes
from imagery_dask.arrays.lazy import lazy_array, lazy_dataarray, shared_block_edges
from imagery_dask.arrays.masks import SegmentationMasks
from imagery_dask.client.browsing import BrowsesPlanes
from imagery_dask.client.cave_queries import StaleRoots, read_cave_client, version_moment
from imagery_dask.client.exports import PlansExports
from imagery_dask.client.figures import ShowsPlaces
from imagery_dask.client.objects import FindsObjects
from imagery_dask.client.parameters import describe
from imagery_dask.client.pictures import SavesPictures
from imagery_dask.client.settings import DynamicSettings, Outside, open_settings
from imagery_dask.client.summaries import SummarizesItself
from imagery_dask.client.viewing import ViewsVolumes
from imagery_dask.errors import SourceError
from imagery_dask.model.cutout import Cutout, dimensions_in, whole_layer
from imagery_dask.model.labels import Kind, LabelRequest, RootIds
from imagery_dask.model.moments import Moment, resolve_moment
from imagery_dask.sources import Missing, cloud_volume
from imagery_dask.sources.volumes.chunk_cache import set_cache_bytes

if TYPE_CHECKING:
    import xarray as xr
    from cloudvolume import CloudVolume

__all__ = ["ImageryClient"]

Data = TypeVar("Data")


class ImageryClient(
    SummarizesItself, FindsObjects, ShowsPlaces, BrowsesPlanes, SavesPictures, PlansExports, ViewsVolumes
):  # fmt: skip
    """Client for cutouts of imagery and segmentation as lazy arrays.

    Parameters
    ----------
    client : caveclient.CAVEclient, optional
        Provides the sources, the resolution and the token that are not given explicitly.
    resolution : array-like of 3 numbers, 'image' or 'segmentation', optional
        Resolution in which bounds are given, nm per voxel (x, y, z). By default that of the imagery at its first mip
        with data (of the segmentation, in a client without imagery).
    segmentation, imagery : bool
        False makes a client without that layer.
    image_source, segmentation_source : str, optional
        Volumes: precomputed, as CloudVolume's paths (``precomputed://gs://...``, ``s3://``, ``https://``, ``file://``,
        or a local folder); zarr and N5 as ``zarr://``, ``zarr2://``, ``zarr3://`` or ``n5://`` and such a path, as
        Neuroglancer's ``PATH|zarr3:``, or without format if it ends in ``.zarr`` or ``.n5`` or is on this machine.
        ``#resolution=4,4,40&voxel_offset=0,0,0&axes=zyx`` at the end says what an array does not. The only
        labels of an image of OME-Zarr are its segmentation.
    image_mip, segmentation_mip : int, optional
        Levels to read by default. The first mip with data when not given.
    auth_token : str, optional
        Token for the sources in this process. Worker processes look up their own; arrays do not contain it.
    timestamp : datetime, str or number, optional
        State of a dynamic segmentation (``graphene://``) to show: a datetime (naive means UTC), an ISO 8601 string,
        seconds since 1970, or ``"now"``, the time at which the client is made. It has no effect on a flat segmentation.
    missing : {"fill", "error"}
        Whether a storage chunk that does not exist inside the volume is filled with zeros and counted, or raises an
        error when its block is computed. Refused access always raises an error.
    version : int, optional
        Materialization version of `client`'s datastack whose timestamp is used for every cutout. By default cutouts
        have the timestamp that `client` is pinned to, or else the time at which each is made.
    stale_roots : {"error", "warn"}
        Whether `root_ids` that were not valid at a cutout's timestamp raise an error that names their successors, or
        only a warning; they then match no voxel.
    max_requests : int
        Largest number of requests in flight to the server of a dynamic segmentation, from all workers together.
    image_kind : {"image", "segmentation"}, optional
        What the voxels of `image_source` are: intensities, which are averaged in pyramids and by ``order=1``, or ids,
        which never are. By default they are ids in a layer of type "segmentation", and if they are integers of 32 bits
        or more.
    as_segmentation : bool
        True opens `segmentation_source` as a segmentation even if its info says "image".
    outside : {"error", "fill"}
        Whether a cutout that lies wholly outside of its layer raises an error or is zeros. With "error", bounds that
        are partly outside are logged once for each mip; their voxels outside are 0.
    cache_bytes : int or str, optional
        Size of the cache of decoded storage chunks of this process, which all its clients share, such as ``"1GB"``; 0
        turns it off. By default the environment variable ``IMAGERY_DASK_CACHE_BYTES``, or else 256 MiB and at most 5%
        of the machine's memory. A new client reads its volumes anew, and chunks of local files are read again when the
        files change. Exports do not use the cache.
    max_bytes : int or str, optional
        Largest result that this process computes at once from a layer or cutout, and the most that a reduction such as
        ``.mean()`` reads, such as ``"8GB"``; more is refused with a `TooLargeError`. 0 is no limit. By default the
        environment variable ``IMAGERY_DASK_MAX_BYTES``, or else a quarter of the machine's memory. Exports have no
        limit.
    lazy : bool
        False makes `image_cutout`, `segmentation_cutout`, `split_segmentation_cutout` and
        `image_and_segmentation_cutout` read at once and return numpy arrays, and a dict of bool arrays for masks, as
        imageryclient does. `image_volume`, `segmentation_volume` and `dataset` return lazy xarray objects all the same.

    Raises
    ------
    ValueError, TypeError
        When arguments contradict each other, a mip does not exist, or an image is given as segmentation.
    SourceNotFoundError, AccessRefusedError
        When a source does not exist, or this process may not read it.
    ServerError
        When a CAVE server does not answer.

    Notes
    -----
    Every method checks its arguments when it is called: invalid bounds, sizes, mips and ids raise a `ValueError` or
    `TypeError`, and outdated `root_ids` an `OutdatedRootsError`. Blocks are read when they are computed; a block that
    cannot be read raises a `SourceError`, such as `AccessRefusedError` or `MissingChunkError`.
    """

    def __init__(
        self,
        client: Any = None,
        resolution: ArrayLike | str | None = None,
        segmentation: bool = True,
        imagery: bool = True,
        image_source: str | None = None,
        segmentation_source: str | None = None,
        image_mip: int | None = None,
        segmentation_mip: int | None = None,
        auth_token: str | None = None,
        timestamp: Moment = None,
        *,
        missing: Missing = "fill",
        version: int | None = None,
        stale_roots: StaleRoots = "error",
        max_requests: int = 32,
        image_kind: Kind | None = None,
        as_segmentation: bool = False,
        outside: Outside = "error",
        cache_bytes: int | str | None = None,
        max_bytes: int | str | None = None,
        lazy: bool = True,
    ) -> None:
        if cache_bytes is not None:
            set_cache_bytes(cache_bytes)
        if max_bytes is not None:
            set_max_bytes(max_bytes)
        self._client, self._timestamp, self._lazy = client, timestamp, bool(lazy)
        self._volumes: dict[tuple[str, int], CloudVolume] = {}
        self._thumbnails = {}
        moment = None if timestamp is None else resolve_moment(timestamp)
        if version is not None:
            moment = self._moment_of(version, timestamp)
        if client is not None:
            wanted = (imagery and image_source is None, segmentation and segmentation_source is None)
            cave = read_cave_client(client, *wanted)
            image_source = image_source or cave.image_source
            segmentation_source = segmentation_source or cave.segmentation_source
            resolution = cave.resolution if resolution is None else resolution
            auth_token = auth_token or cave.token
            moment, version = (cave.moment, cave.version) if moment is None else (moment, version)
        self._image_source = image_source if imagery else None
        self._segmentation_source = segmentation_source if segmentation else None
        self._auth_token = auth_token
        sources = (self._image_source, self._segmentation_source)
        dynamic = DynamicSettings(moment, stale_roots, max_requests, version)
        self._settings = open_settings(
            *sources, (image_mip, segmentation_mip), resolution, missing, auth_token, dynamic,
            image_kind=image_kind, as_segmentation=as_segmentation, outside=outside,
            find_labels=segmentation,
        )  # fmt: skip
        if self._settings.segmentation is not None and self._settings.segmentation.path.startswith("zarr"):
            self._segmentation_source = self._settings.segmentation.path

    def __getstate__(self) -> dict[str, object]:
        """Return the state without the token, the CAVEclient and volumes, so that no token is pickled."""
        return {**self.__dict__, "_auth_token": None, "_client": None, "_volumes": {}}

    def _moment_of(self, version: int, timestamp: object) -> int:
        if self._client is None or timestamp is not None:
            raise ValueError(f"version={version!r} needs a CAVEclient (client=...) and excludes timestamp.")
        return version_moment(self._client, version)

    def _voxels(self, cutout: Cutout) -> da.Array | NDArray[Any]:
        array = lazy_array(cutout)
        return array if self._lazy else np.asarray(array.compute())  # expressions of dask have no `__array__`

    def _masks(self, cutout: Cutout, include_null_root: bool) -> SegmentationMasks | dict[int, NDArray[np.bool_]]:
        masks = SegmentationMasks(cutout, include_null_root)
        return masks if self._lazy else masks.compute()

    @property
    def image_source(self) -> str | None:
        """CloudVolume path of the imagery, or None."""
        return self._image_source

    @property
    def segmentation_source(self) -> str | None:
        """CloudVolume path of the segmentation, or None."""
        return self._segmentation_source

    @property
    def token(self) -> str | None:
        """Token for the sources in this process: as given, or that of the CAVEclient; None where there is none."""
        return self._auth_token

    @property
    def timestamp(self) -> Any:
        """State of a dynamic segmentation that cutouts show.

        As it was given to the client; for ``"now"``, `version` or a pinned CAVEclient, in seconds since 1970. A client
        without any shows the present, and returns the time of this call.
        """
        if self._timestamp is not None and not isinstance(self._timestamp, str):
            return self._timestamp
        moment = self._settings.dynamic.moment
        return time.time() if moment is None else float(moment)

    @property
    def resolution(self) -> NDArray[np.float64]:
        """Resolution in which bounds are given: nm per voxel along x, y, z."""
        return np.array(self._settings.resolution)

    @property
    def image_cv(self) -> CloudVolume:
        """`CloudVolume` of the imagery, or None in a client without imagery."""
        return self._volume(self._image_source, "image")

    @property
    def segmentation_cv(self) -> CloudVolume:
        """`CloudVolume` of the segmentation, or None in a client without segmentation."""
        return self._volume(self._segmentation_source, "segmentation")

    def _volume(self, source: str | None, layer: str) -> CloudVolume:
        """Return this client's own `CloudVolume` of a layer, whose `mip` and other attributes users set."""
        key = (layer, os.getpid())  # connections do not survive a fork
        if source is not None and key not in self._volumes:
            graph = self._settings.segmentation_layer().graph if layer == "segmentation" else None
            if graph is not None and graph.splits_supervoxels:
                raise SourceError(
                    f"CloudVolume reads the supervoxels of {source!r} as they were before any of them was split. Read "
                    "them with segmentation_cutout or segmentation_volume; for meshes, make a CloudVolume yourself."
                )
            self._volumes[key] = cloud_volume(source, self._auth_token)
        return self._volumes.get(key)

    @describe
    def image_bbox_size_from_dimensions(
        self, image_size: ArrayLike, mip: int | None = None, resolution: ArrayLike | None = None
    ) -> tuple[float, float, float]:
        """Return the `bbox_size` of an imagery cutout of `image_size` pixels.

        Parameters
        ----------
        {parameters}

        Returns
        -------
        tuple of 3 float
            Size in voxels of `resolution`.
        """
        level = self._settings.image_layer().mip(self._settings.image_mip if mip is None else mip)
        return dimensions_in(image_size, level.grid.resolution_nm, self._settings.resolution_or(resolution))

    @describe
    def segmentation_bbox_size_from_dimensions(
        self, image_size: ArrayLike, mip: int | None = None, resolution: ArrayLike | None = None
    ) -> tuple[float, float, float]:
        """Return the `bbox_size` of a segmentation cutout of `image_size` pixels.

        Parameters
        ----------
        {parameters}

        Returns
        -------
        tuple of 3 float
            Size in voxels of `resolution`.
        """
        level = self._settings.segmentation_layer().mip(self._settings.segmentation_mip if mip is None else mip)
        return dimensions_in(image_size, level.grid.resolution_nm, self._settings.resolution_or(resolution))

    @describe
    def image_cutout(
        self,
        bounds: ArrayLike,
        bbox_size: ArrayLike | None = None,
        image_size: ArrayLike | None = None,
        mip: int | None = None,
        resolution: ArrayLike | None = None,
        scale_to_bounds: bool | None = None,
        *,
        order: int = 0,
    ) -> da.Array | NDArray[Any]:
        """Return a cutout of the imagery.

        Parameters
        ----------
        {parameters}

        Returns
        -------
        dask.array.Array, or numpy.ndarray with ``lazy=False``
            Lazy array in the layer's dtype, with axes x, y, z (and channel, if the layer has several); axes of length 1
            are squeezed. Voxels outside the volume are 0; a cutout wholly outside is an error (see
            `outside` of the client).
        """
        cutout = self._settings.image_cutout(
            bounds, order, bbox_size=bbox_size, image_size=image_size, mip=mip, resolution=resolution,
            scale_to_bounds=scale_to_bounds,
        )  # fmt: skip
        return self._voxels(cutout)

    @describe
    def segmentation_cutout(
        self,
        bounds: ArrayLike,
        root_ids: RootIds = "all",
        bbox_size: ArrayLike | None = None,
        image_size: ArrayLike | None = None,
        mip: int | None = None,
        resolution: ArrayLike | None = None,
        timestamp: Moment = None,
        scale_to_bounds: bool | None = None,
        convert_to_int64: bool = True,
        *,
        stop_layer: int | None = None,
    ) -> da.Array | NDArray[Any]:
        """Return a cutout of the segmentation, with all objects or selected ones.

        Parameters
        ----------
        {parameters}

        Returns
        -------
        dask.array.Array, or numpy.ndarray with ``lazy=False``
            Lazy array of ids with axes x, y, z; axes of length 1 are squeezed. Its dtype is int64, or the layer's with
            ``convert_to_int64=False``. Voxels outside the volume are 0; a cutout wholly outside is an error (see
            `outside` of the client).
        """
        cutout = self._settings.labels_cutout(
            bounds, LabelRequest(root_ids, convert_to_int64, timestamp, stop_layer), bbox_size=bbox_size,
            image_size=image_size, mip=mip, resolution=resolution, scale_to_bounds=scale_to_bounds,
        )  # fmt: skip
        return self._voxels(cutout)

    @describe
    def split_segmentation_cutout(
        self,
        bounds: ArrayLike,
        root_ids: RootIds = "all",
        include_null_root: bool = False,
        bbox_size: ArrayLike | None = None,
        image_size: ArrayLike | None = None,
        mip: int | None = None,
        resolution: ArrayLike | None = None,
        timestamp: Moment = None,
        scale_to_bounds: bool | None = None,
        *,
        stop_layer: int | None = None,
    ) -> SegmentationMasks | dict[int, NDArray[np.bool_]]:
        """Return a cutout of the segmentation as one mask per object.

        Parameters
        ----------
        {parameters}

        Returns
        -------
        SegmentationMasks
            Mapping of root id to a lazy boolean array, True inside the object, with the axes of `segmentation_cutout`.
            Iterating, `len` and `in` read the cutout once to find the ids; a mask is read when it is computed. With
            ``lazy=False``, a dict of numpy arrays, all made by one pass over the cutout.
        """
        cutout = self._settings.labels_cutout(
            bounds, LabelRequest(root_ids, False, timestamp, stop_layer), bbox_size=bbox_size,
            image_size=image_size, mip=mip, resolution=resolution, scale_to_bounds=scale_to_bounds,
        )  # fmt: skip
        return self._masks(cutout, include_null_root)

    @describe
    def image_and_segmentation_cutout(
        self,
        bounds: ArrayLike,
        image_mip: int | None = None,
        segmentation_mip: int | None = None,
        root_ids: RootIds = "all",
        resize: bool = True,
        split_segmentations: bool = False,
        include_null_root: bool = False,
        bbox_size: ArrayLike | None = None,
        resolution: ArrayLike | None = None,
        timestamp: Moment = None,
        scale_to_bounds: bool | None = None,
        convert_to_int64: bool = True,
        *,
        order: int = 0,
        stop_layer: int | None = None,
    ) -> tuple[da.Array | NDArray[Any], da.Array | NDArray[Any] | SegmentationMasks | dict[int, NDArray[np.bool_]]]:
        """Return cutouts of imagery and segmentation, aligned voxel for voxel.

        Parameters
        ----------
        {parameters}
        split_segmentations : bool
            Return the segmentation as a mapping of masks instead of an array of ids. False by default.

        Returns
        -------
        image : dask.array.Array
            Lazy imagery, as from `image_cutout`.
        segmentation : dask.array.Array or SegmentationMasks
            Lazy ids, as from `segmentation_cutout`, or masks, as from `split_segmentation_cutout`. With ``lazy=False``,
            numpy arrays and a dict.
        """
        ids = LabelRequest(root_ids, convert_to_int64 and not split_segmentations, timestamp, stop_layer)
        image, labels = self._settings.pair(
            bounds, (image_mip, segmentation_mip), ids, resize=resize, order=order, bbox_size=bbox_size,
            resolution=resolution, scale_to_bounds=scale_to_bounds,
        )  # fmt: skip
        split = self._masks(labels, include_null_root) if split_segmentations else self._voxels(labels)
        return self._voxels(image), split

    def image_volume(self, mip: int | None = None) -> xr.DataArray:
        """Return the whole image layer as one lazy array.

        Parameters
        ----------
        mip : int, optional
            Resolution level to read. By default the client's.

        Returns
        -------
        xarray.DataArray
            Lazy array in the layer's dtype with dims x, y, z (and channel), voxel centers in nm as coordinates, and the
            source, mip, resolution and voxel offset in ``attrs``.
        """
        level = self._settings.image_mip if mip is None else mip
        cutout = whole_layer(self._settings.image_layer(), level, missing=self._settings.missing)
        return _with_accessor(lazy_dataarray(cutout, "image"))

    @describe
    def segmentation_volume(
        self,
        mip: int | None = None,
        root_ids: RootIds = "all",
        timestamp: Moment = None,
        *,
        version: int | None = None,
        stop_layer: int | None = None,
    ) -> xr.DataArray:
        """Return the whole segmentation layer as one lazy array, in its stored dtype.

        Parameters
        ----------
        {parameters}

        Returns
        -------
        xarray.DataArray
            Lazy array of ids with dims, coordinates and ``attrs`` as from `image_volume`.
        """
        if version is not None:
            timestamp = self._moment_of(version, timestamp)
        labels = LabelRequest(root_ids, False, timestamp, stop_layer, version)
        return _with_accessor(lazy_dataarray(self._settings.whole_labels(mip, labels), "segmentation"))

    @describe
    def dataset(
        self,
        bounds: ArrayLike,
        image_mip: int | None = None,
        segmentation_mip: int | None = None,
        root_ids: RootIds = "all",
        bbox_size: ArrayLike | None = None,
        resolution: ArrayLike | None = None,
        timestamp: Moment = None,
        scale_to_bounds: bool | None = False,
        convert_to_int64: bool = False,
        *,
        order: int = 0,
        stop_layer: int | None = None,
        sparse: bool = False,
    ) -> xr.Dataset:
        """Return imagery and segmentation on one grid, with coordinates in nm.

        Parameters
        ----------
        {parameters}
        scale_to_bounds : bool, optional
            False (default) returns the voxels of the finer layer, as exports do. True resamples them to `resolution`;
            None does so if no mip is given.
        sparse : bool
            Ask the graph server once for the supervoxels of `root_ids`, and read only the graph chunks that hold them;
            all others are 0. Without it this is done where it takes fewer requests. ValueError for a segmentation that
            is flat, whose graph splits supervoxels, or without `root_ids`.

        Returns
        -------
        xarray.Dataset
            Lazy variables ``image`` and ``segmentation`` with dims x, y, z, in the same blocks, and voxel centers in nm
            as coordinates. A client with one layer returns that variable only.
        """
        labels = LabelRequest(root_ids, convert_to_int64, timestamp, stop_layer, sparse=sparse)
        cutouts = self._settings.present(
            bounds, (image_mip, segmentation_mip), labels, order=order, bbox_size=bbox_size, resolution=resolution,
            scale_to_bounds=scale_to_bounds,
        )  # fmt: skip
        import xarray as xr

        blocks = shared_block_edges(list(cutouts.values()))
        return _with_accessor(
            xr.Dataset({name: lazy_dataarray(cutout, name, blocks) for name, cutout in cutouts.items()})
        )


def _with_accessor(data: Data) -> Data:
    """Return an xarray object, for which the accessor ``em`` is registered now: it imports xarray."""
    from imagery_dask.xarrays import accessor as accessor

    return data
