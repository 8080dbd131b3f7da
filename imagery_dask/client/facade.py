"""`ImageryClient`: the reference's calls, as lazy arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
from numpy.typing import ArrayLike, NDArray

from imagery_dask.arrays.lazy import lazy_array, lazy_dataarray
from imagery_dask.arrays.masks import SegmentationMasks
from imagery_dask.client.cave import StaleRoots, read_cave_client, version_moment
from imagery_dask.client.exports import PlansExports
from imagery_dask.client.objects import FindsObjects
from imagery_dask.client.parameters import describe
from imagery_dask.client.pictures import SavesPictures
from imagery_dask.client.settings import DynamicSettings, open_settings
from imagery_dask.model.cutout import dimensions_in, whole_layer
from imagery_dask.model.labels import LabelRequest, RootIds
from imagery_dask.model.moments import Moment, describe_moment, resolve_moment
from imagery_dask.sources import Missing, cloud_volume

if TYPE_CHECKING:
    import xarray as xr
    from cloudvolume import CloudVolume

__all__ = ["ImageryClient"]


class ImageryClient(FindsObjects, SavesPictures, PlansExports):
    """Cutouts of imagery and segmentation as lazy arrays.

    Parameters
    ----------
    client : caveclient.CAVEclient, optional
        Gives the sources, the resolution and the token that are not given explicitly.
    resolution : array-like of 3 numbers, 'image' or 'segmentation', optional
        Resolution in which bounds are given, nm per voxel. By default that of the imagery at its first mip with data
        (of the segmentation, in a client without imagery).
    segmentation, imagery : bool
        False makes a client without that layer.
    image_source, segmentation_source : str, optional
        CloudVolume paths: ``precomputed://gs://...``, ``s3://``, ``https://``, ``file://``, or a local folder.
    image_mip, segmentation_mip : int, optional
        Levels to read by default. The first with data when not given.
    auth_token : str, optional
        Token for the sources in this process. Worker processes find their own; none is stored in arrays.
    timestamp : datetime, str or number, optional
        Moment of a dynamic segmentation (``graphene://``): a datetime (naive means UTC), ISO 8601 text, seconds since
        1970, or ``"now"``, the moment at which the client is made. A flat segmentation has only one state.
    missing : {"fill", "error"}
        What a storage chunk that does not exist inside the volume becomes: zeros, which are counted, or an error when
        the block is read. Refused access is an error always.
    version : int, optional
        Materialization version of `client`'s datastack: its moment is that of every cutout. By default a client that is
        pinned to a version or timestamp pins the cutouts; otherwise each has the moment at which it is made.
    stale_roots : {"error", "warn"}
        What listed `root_ids` do that were no root ids at the moment of a cutout: fail, with their successors named, or
        warn and match nothing.
    max_requests : int
        Requests that a whole cluster has at a dynamic segmentation's server at once.

    Raises
    ------
    ValueError, TypeError
        For arguments that contradict each other, a mip that does not exist, an image given as segmentation.
    SourceNotFoundError, AccessRefusedError
        For a source that does not exist, or that this process may not read.
    ServerError
        When a CAVE server does not answer.
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
    ) -> None:
        self._client = client
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
            *sources, (image_mip, segmentation_mip), resolution, missing, auth_token, dynamic
        )

    def __getstate__(self) -> dict[str, object]:
        """Leave the token and the CAVEclient, which has one too, in this process."""
        return {**self.__dict__, "_auth_token": None, "_client": None}

    def __repr__(self) -> str:
        moment = self._settings.dynamic.moment
        pinned = "" if moment is None else f", timestamp={describe_moment(moment)!r}"
        return (
            f"ImageryClient(image_source={self._image_source!r}, segmentation_source={self._segmentation_source!r}, "
            f"resolution={self._settings.resolution}{pinned})"
        )

    def _moment_of(self, version: int, timestamp: object) -> int:
        if self._client is None or timestamp is not None:
            raise ValueError(f"version={version!r} needs a CAVEclient (client=...), and no timestamp beside it.")
        return version_moment(self._client, version)

    @property
    def image_source(self) -> str | None:
        """CloudVolume path of the imagery, or None."""
        return self._image_source

    @property
    def segmentation_source(self) -> str | None:
        """CloudVolume path of the segmentation, or None."""
        return self._segmentation_source

    @property
    def resolution(self) -> NDArray[np.float64]:
        """Resolution in which bounds are given: nm per voxel along x, y, z."""
        return np.array(self._settings.resolution)

    @property
    def image_cv(self) -> CloudVolume:
        """`CloudVolume` of the imagery, or None in a client without imagery."""
        return self._image_source and cloud_volume(self._image_source, self._auth_token)

    @property
    def segmentation_cv(self) -> CloudVolume:
        """`CloudVolume` of the segmentation, or None in a client without segmentation."""
        return self._segmentation_source and cloud_volume(self._segmentation_source, self._auth_token)

    @describe
    def image_bbox_size_from_dimensions(
        self, image_size: ArrayLike, mip: int | None = None, resolution: ArrayLike | None = None
    ) -> tuple[float, float, float]:
        """Size for `bbox_size` that gives an imagery cutout of so many pixels.

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
        """Size for `bbox_size` that gives a segmentation cutout of so many pixels.

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
    ) -> da.Array:
        """Cut imagery.

        Parameters
        ----------
        {parameters}

        Returns
        -------
        dask.array.Array
            Lazy; axes x, y, z (and channels, where there are several) without those of length 1, in the layer's dtype.
            Voxels outside the volume are 0.
        """
        cutout = self._settings.image_cutout(
            bounds, order, bbox_size=bbox_size, image_size=image_size, mip=mip, resolution=resolution,
            scale_to_bounds=scale_to_bounds,
        )  # fmt: skip
        return lazy_array(cutout)

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
    ) -> da.Array:
        """Cut segmentation, for some objects or all.

        Parameters
        ----------
        {parameters}

        Returns
        -------
        dask.array.Array
            Lazy; the id at each voxel, axes x, y, z without those of length 1.
        """
        cutout = self._settings.labels_cutout(
            bounds, LabelRequest(root_ids, convert_to_int64, timestamp, stop_layer), bbox_size=bbox_size,
            image_size=image_size, mip=mip, resolution=resolution, scale_to_bounds=scale_to_bounds,
        )  # fmt: skip
        return lazy_array(cutout)

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
    ) -> SegmentationMasks:
        """Cut segmentation into one mask per object.

        Parameters
        ----------
        {parameters}

        Returns
        -------
        SegmentationMasks
            Mapping root id -> lazy boolean mask, True where the object is. Masks cost no read until they are computed;
            the ids are found when somebody iterates.
        """
        cutout = self._settings.labels_cutout(
            bounds, LabelRequest(root_ids, False, timestamp, stop_layer), bbox_size=bbox_size,
            image_size=image_size, mip=mip, resolution=resolution, scale_to_bounds=scale_to_bounds,
        )  # fmt: skip
        return SegmentationMasks(cutout, include_null_root)

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
    ) -> tuple[da.Array, da.Array | SegmentationMasks]:
        """Cut imagery and segmentation, aligned voxel for voxel.

        Parameters
        ----------
        {parameters}
        split_segmentations : bool
            Give the segmentation as a mapping of masks rather than an array of ids. False by default.

        Returns
        -------
        image : dask.array.Array
            Lazy imagery.
        segmentation : dask.array.Array or SegmentationMasks
            Lazy ids, or masks.
        """
        ids = LabelRequest(root_ids, convert_to_int64 and not split_segmentations, timestamp, stop_layer)
        image, labels = self._settings.pair(
            bounds, (image_mip, segmentation_mip), ids, resize=resize, order=order, bbox_size=bbox_size,
            resolution=resolution, scale_to_bounds=scale_to_bounds,
        )  # fmt: skip
        split = SegmentationMasks(labels, include_null_root) if split_segmentations else lazy_array(labels)
        return lazy_array(image), split

    def image_volume(self, mip: int | None = None) -> xr.DataArray:
        """Whole image layer as one lazy array.

        Parameters
        ----------
        mip : int, optional
            Resolution level. The client's default when not given.

        Returns
        -------
        xarray.DataArray
            Dims x, y, z (and channel), coordinates of voxel centres in nm, attrs with the source, mip, resolution and
            voxel offset.
        """
        level = self._settings.image_mip if mip is None else mip
        cutout = whole_layer(self._settings.image_layer(), level, missing=self._settings.missing)
        return lazy_dataarray(cutout, "image")

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
        """Whole segmentation layer as one lazy array, in its stored dtype.

        Parameters
        ----------
        {parameters}

        Returns
        -------
        xarray.DataArray
            As `image_volume`.
        """
        if version is not None:
            timestamp = self._moment_of(version, timestamp)
        labels = LabelRequest(root_ids, False, timestamp, stop_layer, version)
        return lazy_dataarray(self._settings.whole_labels(mip, labels), "segmentation")

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
        scale_to_bounds: bool | None = None,
        convert_to_int64: bool = False,
        *,
        order: int = 0,
        stop_layer: int | None = None,
    ) -> xr.Dataset:
        """Imagery and segmentation on one grid, with coordinates in nm.

        Parameters
        ----------
        {parameters}

        Returns
        -------
        xarray.Dataset
            Lazy variables ``image`` and ``segmentation`` with dims x, y, z; the one of them that the client has, in a
            client with one layer.
        """
        cutouts = self._settings.present(
            bounds, (image_mip, segmentation_mip), LabelRequest(root_ids, convert_to_int64, timestamp, stop_layer),
            order=order, bbox_size=bbox_size, resolution=resolution, scale_to_bounds=scale_to_bounds,
        )  # fmt: skip
        import xarray as xr

        return xr.Dataset({name: lazy_dataarray(cutout, name) for name, cutout in cutouts.items()})
