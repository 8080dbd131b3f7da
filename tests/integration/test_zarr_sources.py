"""Zarr and N5 of other writers: their axes, offsets, data types and codecs; and what is refused, with the reason."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tensorstore
import zarr
from click.testing import CliRunner
from support.http_server import FileServer
from support.stored_volumes import write_stored
from support.volumes import coordinate_volume, write_volume

from imagery_dask import ImageryClient, to_zarr
from imagery_dask.cli.main import commands
from imagery_dask.errors import InvalidInfoError, SourceError, SourceNotFoundError
from imagery_dask.sources import normalize_path, open_volume
from imagery_dask.sources.requests.transport import Request, Transport
from imagery_dask.sources.zarr.nodes import METADATA

if TYPE_CHECKING:
    from support.buckets import S3Server

SHAPE = (40, 50, 30)  # x, y, z


@pytest.fixture(scope="module")
def data() -> Any:
    return coordinate_volume(SHAPE)


def create(folder: Path, voxels: Any, **options: Any) -> Path:
    """Write an array (in its own order of axes) as zarr."""
    chunks = options.pop("chunks", tuple(min(16, size) for size in voxels.shape))
    array = zarr.create_array(folder, shape=voxels.shape, dtype=voxels.dtype, chunks=chunks, **options)
    array[...] = voxels
    return folder


def read(path: object, mip: int = 0) -> Any:
    volume = open_volume(str(path))
    return volume.read(mip, volume.layer.mips[mip].grid, "error")[0]


@pytest.mark.parametrize("axes", ["zyx", "xyz", "yzx"])
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_axes_are_taken_by_their_names(axes: str, zarr_format: Any, data: Any, tmp_path: Path) -> None:
    own = data.transpose(["xyz".index(axis) for axis in axes])
    path = create(tmp_path / "a.zarr", own, zarr_format=zarr_format)
    np.testing.assert_array_equal(read(f"{path}#axes={axes}")[..., 0], data)
    np.testing.assert_array_equal(read(f"zarr{zarr_format}://{path}#axes={axes}")[..., 0], data)
    if zarr_format == 3:
        named = create(tmp_path / "b.zarr", own, zarr_format=3, dimension_names=list(axes))
        np.testing.assert_array_equal(read(named)[..., 0], data)


@pytest.mark.parametrize("axes", ["czyx", "zyxc", "tczyx", "xyzc"])
@pytest.mark.parametrize("chunk_channels", [1, 2, 3])
def test_channels_and_times_of_one(axes: str, chunk_channels: int, data: Any, tmp_path: Path) -> None:
    voxels = np.stack([data, data + 1, data + 2], axis=-1)  # x, y, z, c
    own = voxels[..., np.newaxis].transpose(["xyzct".index(axis) for axis in axes + ("" if "t" in axes else "t")])
    own = own if "t" in axes else own[..., 0]
    chunks = tuple({"c": chunk_channels, "t": 1}.get(axis, 16) for axis in axes)
    path = create(tmp_path / "a.zarr", own, chunks=chunks)
    np.testing.assert_array_equal(read(f"{path}#axes={axes}"), voxels)
    volume = open_volume(f"{path}#axes={axes}")
    box = volume.layer.mips[0].grid.crop((3, 4, 5), (20, 20, 20))
    np.testing.assert_array_equal(volume.read(0, box, "error")[0], voxels[3:23, 4:24, 5:25])


def test_planes_have_one_section(data: Any, tmp_path: Path) -> None:
    path = create(tmp_path / "a.zarr", data[:, :, 7].T)
    np.testing.assert_array_equal(read(path)[..., 0], data[:, :, 7:8])


@pytest.mark.parametrize(
    "dtype", ["bool", "u1", "i1", "<u2", ">u2", "<i2", ">u4", "<i4", "<u8", ">u8", ">i8", "<f4", ">f4", ">f8"]
)
def test_data_types_and_byte_orders_of_v2(dtype: str, data: Any, tmp_path: Path) -> None:
    voxels = (data % 251).astype(dtype) if dtype != ">u8" else data.astype(dtype)
    path = create(tmp_path / "a.zarr", voxels.T, zarr_format=2)
    found = read(path)[..., 0]
    assert found.dtype.isnative
    np.testing.assert_array_equal(found, voxels)


def test_big_endian_voxels_of_v3(data: Any, tmp_path: Path) -> None:
    codec = zarr.codecs.BytesCodec(endian="big")
    path = create(tmp_path / "a.zarr", data.T, serializer=codec)
    np.testing.assert_array_equal(read(path)[..., 0], data)


CODECS = [
    {"id": "blosc", "cname": "zstd", "clevel": 3, "shuffle": 1},
    {"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 2},
    {"id": "zstd", "level": 3},
    {"id": "gzip", "level": 3},
    {"id": "zlib", "level": 3},
    {"id": "lz4", "acceleration": 1},
    {"id": "bz2", "level": 1},
    {"id": "lzma", "preset": 1},
]


@pytest.mark.filterwarnings("ignore:Numcodecs codecs")
@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: "-".join(map(str, codec.values())))
def test_codecs_of_v2(codec: dict[str, Any], data: Any, tmp_path: Path) -> None:
    import numcodecs

    path = create(tmp_path / "a.zarr", data.T, zarr_format=2, compressors=numcodecs.get_codec(codec))
    np.testing.assert_array_equal(read(path)[..., 0], data)
    import zarr.codecs.numcodecs as of_v3

    names = {"blosc": of_v3.Blosc, "lz4": of_v3.LZ4, "zlib": of_v3.Zlib, "bz2": of_v3.BZ2, "lzma": of_v3.LZMA}
    if codec["id"] in names:
        options = {name: value for name, value in codec.items() if name != "id"}
        path = create(tmp_path / "b.zarr", data.T, compressors=names[codec["id"]](**options))
        np.testing.assert_array_equal(read(path)[..., 0], data)


# Of chunks that are no whole number of voxels of another data type.
FILTERS: dict[str, list[dict[str, Any]]] = {
    "delta-shuffle": [{"id": "delta", "dtype": "<u8"}, {"id": "shuffle", "elementsize": 8}],
    "delta": [{"id": "delta", "dtype": "<u8"}],
    "shuffle-delta": [{"id": "shuffle", "elementsize": 8}, {"id": "delta", "dtype": "<u8"}],
    "shuffle": [{"id": "shuffle", "elementsize": 8}],
    "astype": [{"id": "astype", "encode_dtype": "<u4", "decode_dtype": "<u8"}],
}


@pytest.mark.filterwarnings("ignore:Numcodecs codecs")
@pytest.mark.parametrize("name", list(FILTERS))
def test_filters(name: str, data: Any, tmp_path: Path) -> None:
    import numcodecs

    filters = [numcodecs.get_codec(dict(config)) for config in FILTERS[name]]
    path = create(tmp_path / "a.zarr", data.T, zarr_format=2, filters=filters, chunks=(7, 15, 13))
    np.testing.assert_array_equal(read(path)[..., 0], zarr.open_array(path, mode="r")[...].T)
    assert name == "astype" or (read(path)[..., 0] == data).all()


@pytest.mark.filterwarnings("ignore:Numcodecs codecs")
@pytest.mark.parametrize(
    "config",
    [
        {"id": "fixedscaleoffset", "offset": 0, "scale": 1, "dtype": "<u8", "astype": "<u4"},
        {"id": "astype", "encode_dtype": "<f8", "decode_dtype": "<u8"},
    ],
    ids=lambda config: config["id"],
)
def test_filters_that_make_floats_of_ids_are_refused(config: dict[str, Any], data: Any, tmp_path: Path) -> None:
    import numcodecs
    import zarr.codecs.numcodecs as of_v3

    codec = numcodecs.get_codec(dict(config))
    path = create(tmp_path / "a.zarr", (data % 1000).T, zarr_format=2, filters=[codec])
    with pytest.raises(InvalidInfoError, match=f"filter '{config['id']}' makes floats of uint64"):
        open_volume(str(path))
    kind = {"fixedscaleoffset": of_v3.FixedScaleOffset, "astype": of_v3.AsType}[config["id"]]
    options = {name: value for name, value in config.items() if name != "id"}
    zarr.create_array(tmp_path / "b.zarr", shape=SHAPE, dtype="u8", chunks=(16,) * 3, filters=[kind(**options)])
    with pytest.raises(InvalidInfoError, match=f"filter '{config['id']}' makes floats of uint64"):
        open_volume(str(tmp_path / "b.zarr"))


@pytest.mark.parametrize("compression", [{"type": name} for name in ("raw", "gzip", "bzip2", "xz", "zstd", "blosc")])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint64", "float32"])
def test_n5_of_tensorstore(compression: dict[str, Any], dtype: str, data: Any, tmp_path: Path) -> None:
    if compression["type"] == "blosc":
        compression = compression | {"cname": "lz4", "clevel": 3, "shuffle": 1}
    voxels = data.astype(dtype)
    spec = {
        "driver": "n5", "kvstore": {"driver": "file", "path": f"{tmp_path}/a.n5/"}, "create": True,
        "metadata": {
            "dimensions": SHAPE, "blockSize": [16, 16, 16], "dataType": dtype, "compression": compression,
        },
    }  # fmt: skip
    tensorstore.open(spec).result().write(voxels).result()
    np.testing.assert_array_equal(read(tmp_path / "a.n5")[..., 0], voxels)


@pytest.mark.parametrize(
    ("fill", "expected", "zarr_format"), [(7, 7, 2), (0, 0, 2), (None, 0, 2), (7, 7, 3), (0, 0, 3)]
)
def test_what_is_not_stored_is_the_fill_value(
    fill: Any, expected: int, zarr_format: Any, data: Any, tmp_path: Path
) -> None:
    path = tmp_path / "a.zarr"
    array = zarr.create_array(
        path, shape=SHAPE[::-1], dtype="u8", chunks=(16,) * 3, fill_value=fill, zarr_format=zarr_format
    )
    array[:16] = data.T[:16]
    whole = data.copy()
    whole[..., 16:] = expected
    volume = open_volume(str(path))
    found, counts = volume.read(0, volume.layer.mips[0].grid, "error")
    np.testing.assert_array_equal(found[..., 0], whole)
    assert counts.not_stored == 3 * 4
    client = ImageryClient(segmentation_source=str(path), imagery=False)
    report = to_zarr(client.segmentation_cutout([[0, 0, 0], SHAPE]), tmp_path / "out.zarr", progress=False)
    assert (report.counts.not_stored, report.counts.missing) == (12, 0)
    assert "of which 12 are not stored" in repr(report)
    # Outside of the volume nothing is filled.
    outside, _ = volume.read(0, volume.layer.mips[0].grid.crop((-1, 0, 0), (1, 1, 1)), "error")
    assert outside.item() == 0


@pytest.mark.parametrize(
    "path",
    ["{}", "file://{}", "zarr://{}", "zarr3://{}", "zarr3://file://{}", "{}|zarr3:", "file://{}/|zarr3:", "{}/|zarr:"],
)
def test_ways_to_write_a_path(path: str, data: Any, tmp_path: Path) -> None:
    folder = create(tmp_path / "a.zarr", data.T)
    np.testing.assert_array_equal(read(path.format(folder))[..., 0], data)


def test_paths_of_servers_say_their_format_by_a_name_or_a_prefix() -> None:
    assert normalize_path("s3://b/em.zarr/labels/seg") == "zarr://s3://b/em.zarr/labels/seg"
    assert normalize_path("https://h/a.n5/em/") == "n5://https://h/a.n5/em"
    assert normalize_path("gs://b/em|zarr2:") == "zarr2://gs://b/em"
    assert normalize_path("gs://b/em/|zarr3:labels/seg") == "zarr3://gs://b/em/labels/seg"
    assert normalize_path("https://h/em") == "precomputed://https://h/em"
    with pytest.raises(ValueError, match="resolution is three numbers"):
        normalize_path("zarr://gs://b/em#resolution=4,4")
    with pytest.raises(ValueError, match="'unit' is unknown"):
        normalize_path("zarr://gs://b/em#resolution=4,4,40&unit=nm")


def test_resolution_and_offset_are_given_with_the_path(data: Any, tmp_path: Path) -> None:
    folder = create(tmp_path / "a.zarr", data.T)
    client = ImageryClient(segmentation_source=f"{folder}#resolution=4,4,40&voxel_offset=100,-5,7", imagery=False)
    assert client.resolution.tolist() == [4, 4, 40]
    box = [[100, -5, 7], [140, 45, 37]]
    np.testing.assert_array_equal(client.segmentation_cutout(box).compute(), data)
    mips = open_volume(str(folder)).layer.mips
    assert (mips[0].grid.start, mips[0].grid.resolution_nm) == ((0, 0, 0), (1.0, 1.0, 1.0))


def exported(tmp_path: Path, offset: tuple[int, int, int], **options: Any) -> tuple[Any, Path]:
    """Export imagery and labels; return the client of the source and the store."""
    labels = coordinate_volume((70, 60, 20), offset)
    write_volume(tmp_path / "em", labels.astype(np.uint8), voxel_offset=offset, resolution=(4, 4, 40))
    write_volume(tmp_path / "seg", labels, voxel_offset=offset, resolution=(4, 4, 40), layer_type="segmentation")
    client = ImageryClient(image_source=str(tmp_path / "em"), segmentation_source=str(tmp_path / "seg"))
    stop = [at + n for at, n in zip(offset, labels.shape, strict=True)]
    to_zarr(client.dataset([list(offset), stop]), tmp_path / "out.zarr", **options)
    return client, tmp_path / "out.zarr"


@pytest.mark.parametrize(
    "options", [{}, {"ome_version": "0.4"}, {"chunks": (16, 16, 8), "shards": (64, 64, 16)}, {"levels": 3}], ids=str
)
def test_own_exports_are_sources(options: dict[str, Any], tmp_path: Path) -> None:
    source, out = exported(tmp_path, (16, -32, 8), **options)
    client = ImageryClient(image_source=str(out))
    assert client.segmentation_source is not None, "its labels are found"
    box = [[20, -30, 9], [61, 11, 27]]
    np.testing.assert_array_equal(client.image_cutout(box).compute(), source.image_cutout(box).compute())
    np.testing.assert_array_equal(client.segmentation_cutout(box).compute(), source.segmentation_cutout(box).compute())
    volume = open_volume(str(out))
    for mip in volume.layer.mips:
        assert not mip.refusal
        stored = zarr.open_array(out / mip.key, mode="r")[...]
        np.testing.assert_array_equal(read(out, mip.level)[..., 0], stored.T)
        assert mip.grid.start == tuple(at // 2**mip.level if n < 2 else at for n, at in enumerate((16, -32, 8)))


def test_levels_between_voxels_are_refused_when_they_are_asked_for(tmp_path: Path) -> None:
    _, out = exported(tmp_path, (17, -32, 8), levels=2)
    client = ImageryClient(image_source=str(out))
    assert client.image_cutout([[17, -32, 8], [20, -30, 9]]).compute().shape == (3, 2)
    with pytest.raises(ValueError, match=r"mip 1 .*x = 8\.5"):
        client.image_cutout([[17, -32, 8], [20, -30, 9]], mip=1)


def test_images_without_translation_as_ome_zarr_writes_them(data: Any, tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=2)
    for number, step in enumerate((1, 2, 4)):
        create(tmp_path / "a.zarr" / str(number), data.T[:, ::step, ::step], zarr_format=2)
    group.attrs["multiscales"] = [
        {
            "version": "0.4",
            "axes": [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "zyx"],
            "datasets": [
                {
                    "path": str(number),
                    "coordinateTransformations": [{"type": "scale", "scale": [0.04, 0.004 * step, 0.004 * step]}],
                }
                for number, step in enumerate((1, 2, 4))
            ],
        }
    ]
    mips = open_volume(str(tmp_path / "a.zarr")).layer.mips
    assert [mip.grid.start for mip in mips] == [(0, 0, 0)] * 3
    assert [mip.grid.resolution_nm for mip in mips] == [(4, 4, 40), (8, 8, 40), (16, 16, 40)]
    np.testing.assert_array_equal(read(tmp_path / "a.zarr", 1)[..., 0], data[::2, ::2])


def test_images_of_ngff_zarr(data: Any, tmp_path: Path) -> None:
    ngff_zarr = pytest.importorskip("ngff_zarr")
    image = ngff_zarr.to_ngff_image(
        data.astype(np.uint8).T, dims=["z", "y", "x"], scale={"z": 40.0, "y": 4.0, "x": 4.0},
        translation={"z": 0.0, "y": 0.0, "x": 0.0}, axes_units=dict.fromkeys("zyx", "nanometer"),
    )  # fmt: skip
    multiscales = ngff_zarr.to_multiscales(image, scale_factors=[{"z": 1, "y": 2, "x": 2}], chunks=16)
    ngff_zarr.to_ngff_zarr(str(tmp_path / "a.zarr"), multiscales)
    mips = open_volume(str(tmp_path / "a.zarr")).layer.mips
    assert [(mip.grid.start, mip.refusal) for mip in mips] == [((0, 0, 0), "")] * 2
    np.testing.assert_array_equal(read(tmp_path / "a.zarr")[..., 0], data.astype(np.uint8))


def test_info_shows_image_and_labels(tmp_path: Path) -> None:
    _, out = exported(tmp_path, (16, -32, 8), levels=2)
    shown = CliRunner().invoke(commands, ["info", str(out)])
    assert shown.exit_code == 0, shown.output
    assert "image, uint8, 2 mips" in shown.output
    assert "segmentation, uint64, 2 mips" in shown.output
    assert "16,-32,8" in shown.output


def test_export_from_a_server(http_server_factory: Callable[..., FileServer], tmp_path: Path) -> None:
    source, out = exported(tmp_path, (16, -32, 8))
    server = http_server_factory(tmp_path)
    client = ImageryClient(image_source=f"{server.url}/out.zarr")
    box = [[20, -30, 9], [61, 11, 27]]
    to_zarr(client.dataset(box), tmp_path / "again.zarr")
    again = ImageryClient(image_source=str(tmp_path / "again.zarr"))
    np.testing.assert_array_equal(again.segmentation_cutout(box).compute(), source.segmentation_cutout(box).compute())
    np.testing.assert_array_equal(again.image_cutout(box).compute(), source.image_cutout(box).compute())
    assert out.exists()


@pytest.mark.parametrize("ome_version", ["0.4", "0.5"])
def test_metadata_are_asked_for_together(
    ome_version: str, http_server_factory: Callable[..., FileServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client waits for a server twice: for what is there, and for the levels and labels that it names."""
    exported(tmp_path, (16, -32, 8), ome_version=ome_version, levels=2)
    server = http_server_factory(tmp_path)
    waits = list[int]()

    def waiting(transport: Transport, wanted: Iterable[Request]) -> Iterator[Any]:
        requests = list(wanted)
        waits.append(len(requests))
        return get_many(transport, requests)

    get_many = Transport.get_many
    monkeypatch.setattr(Transport, "get_many", waiting)
    ImageryClient(image_source=f"zarr://{server.url}/out.zarr", segmentation=False)
    assert len(waits) == 2
    client = ImageryClient(image_source=f"zarr://{server.url}/out.zarr")
    assert client.segmentation_source is not None
    assert len(waits) == 2 + 4, "two for the image, and two for its labels"
    assert sum(waits) == server.count(), "no file is asked for alone"


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_server_says_the_format_by_what_is_there(
    http_server_factory: Callable[..., FileServer], zarr_format: Any, data: Any, tmp_path: Path
) -> None:
    create(tmp_path / "em", data.T, zarr_format=zarr_format)
    server = http_server_factory(tmp_path)
    client = ImageryClient(segmentation_source=f"{server.url}/em", imagery=False)
    np.testing.assert_array_equal(client.segmentation_cutout([[0, 0, 0], SHAPE]).compute(), data)
    with pytest.raises(SourceNotFoundError, match=r"no info file.*Nor is it zarr or N5.*zarr\.json"):
        open_volume(f"{server.url}/nothing")


def test_a_bucket_and_a_limit_of_requests(s3_server: S3Server, tmp_path: Path, data: Any) -> None:
    for name, options in (("chunks", {}), ("shards", {"shards": (32, 32, 32)})):
        create(tmp_path / name, data.T, **options)
        url = s3_server.upload(tmp_path / name, f"zarr-sources-{name}", "some/em")
        with s3_server.environment():
            client = ImageryClient(segmentation_source=f"zarr://{url}", imagery=False)
            whole = client.segmentation_cutout([[0, 0, 0], SHAPE])
            np.testing.assert_array_equal(whole.compute(), data)
            report = to_zarr(whole, tmp_path / f"{name}-out.zarr", progress=False, max_requests=2)
            assert (report.ok, report.counts.chunks) == (True, 3 * 4 * 2)
        np.testing.assert_array_equal(read(tmp_path / f"{name}-out.zarr")[..., 0], data)


def rewrite(file: Path, **fields: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def regular(size: int) -> dict[str, Any]:
    return {"name": "regular", "configuration": {"chunk_shape": [size] * 3}}


def shards(size: int) -> dict[str, Any]:
    return {"chunk_shape": [size] * 3, "codecs": ["bytes"], "index_codecs": ["bytes"]}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"codecs": [{"name": "bytes"}, {"name": "unheard-of"}]}, "codec 'unheard-of' has no decoder"),
        ({"codecs": [{"name": "bytes"}, {"name": "numcodecs.unheard"}]}, "codec 'unheard' has no decoder.*numcodecs"),
        ({"codecs": []}, r"its field 'codecs' is \[\], without the codec 'bytes'"),
        (
            {
                "codecs": [{"name": "sharding_indexed", "configuration": shards(8) | {"codecs": []}}],
                "chunk_grid": regular(16),
            },
            r"its field 'codecs' is \[\], without the codec 'bytes'",
        ),
        ({"data_type": "complex64"}, "data type 'complex64' is neither"),
        ({"data_type": {"name": "struct"}}, "is neither"),
        ({"chunk_grid": {"name": "rectangular", "configuration": {}}}, "chunk grid is 'rectangular'"),
        ({"shape": [0, 5, 5]}, r"its shape is \(0, 5, 5\)"),
        ({"shape": None}, "no usable"),
        ({"fill_value": 1.5}, "fill_value 1.5"),
        ({"fill_value": "18446744073709551616"}, "fill_value 18446744073709551616"),
        ({"fill_value": math.inf}, "no usable values: cannot convert float infinity"),
        ({"shape": [30, 50, 40.5]}, "40.5], which are not whole numbers"),
        ({"shape": [30, 50, math.inf]}, "no usable values: cannot convert float infinity"),
        ({"shape": [30, 50, "40"]}, "'40'], which are not whole numbers"),
        *(
            (
                {"chunk_key_encoding": {"name": name, "configuration": {"separator": separator}}},
                f"separator {separator!r}",
            )
            for name in ("default", "v2")
            for separator in (None, "", "_", "../", 1)
        ),
        ({"attributes": ["x"]}, "attributes in zarr.json .* are not a JSON object"),
        *(
            (
                {"codecs": [{"name": "sharding_indexed", "configuration": sharding}], "chunk_grid": regular(outer)},
                "whole number",
            )
            for sharding, outer in ((shards(0), 16), (shards(16), 0), (shards(16), 8), (shards(-4), 16))
        ),
    ],
)
def test_what_cannot_be_read_is_refused_when_it_is_opened(
    fields: dict[str, Any], reason: str, data: Any, tmp_path: Path
) -> None:
    path = create(tmp_path / "a.zarr", data.T)
    rewrite(path / "zarr.json", **fields)
    with pytest.raises(InvalidInfoError, match=reason):
        open_volume(str(path))


@pytest.mark.parametrize("content", ["", '{"pixelResolution": [4, 4', "[]"])
def test_attributes_of_v2_that_are_cut_are_not_left_out(content: str, data: Any, tmp_path: Path) -> None:
    path = create(tmp_path / "a.zarr", data.T, zarr_format=2)
    (path / ".zattrs").write_text(content)
    with pytest.raises(InvalidInfoError, match=r"\.zattrs of .* is no JSON object"):
        open_volume(str(path))


@pytest.mark.parametrize("separator", [None, "", "_", 1])
def test_files_of_v2_without_a_known_separator_are_no_fill_values(separator: Any, data: Any, tmp_path: Path) -> None:
    path = create(tmp_path / "a.zarr", data.T, zarr_format=2)
    rewrite(path / ".zarray", dimension_separator=separator)
    with pytest.raises(InvalidInfoError, match=f"separator {separator!r}"):
        open_volume(str(path))


@pytest.mark.parametrize(
    "value", [None, True, -1, 0, 10**400, math.nan, "x", [], [[]], {}, {"a": 1}, [None], [-1, 2, 3]]
)
@pytest.mark.parametrize("kind", ["zarr2", "zarr3-shards", "n5", "precomputed"])
def test_metadata_of_any_shape_is_read_or_refused(kind: str, value: Any, data: Any, tmp_path: Path) -> None:
    """Each value in the metadata of a group and of an array is replaced, in its turn, by one of another type."""
    path = write_stored(kind, tmp_path / "em", data, (0, 0, 0))
    refused = 0
    for file in tmp_path.rglob("*"):
        if file.name not in (*METADATA, ".zattrs", "info"):
            continue
        known = file.read_text()
        for place in places_in(json.loads(known)):
            content = json.loads(known)
            functools.reduce(lambda inside, key: inside[key], place[:-1], content)[place[-1]] = value
            file.write_text(json.dumps(content))
            try:
                volume = open_volume(path, fresh=True)
                mip = volume.layer.mips[0]
                volume.read(0, mip.grid.crop(mip.grid.start, (1, 1, 1)), "error")
            except SourceError:
                refused += 1
        file.write_text(known)
    assert refused
    np.testing.assert_array_equal(open_volume(path, fresh=True).layer.mips[0].grid.shape, SHAPE)


def places_in(content: Any) -> list[tuple[Any, ...]]:
    """Return where values are in JSON, as keys and numbers from the outside in."""
    keys = content if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ()
    return [place for key in keys for place in [(key,), *((key, *inside) for inside in places_in(content[key]))]]


def test_axes_that_are_no_space_are_refused(data: Any, tmp_path: Path) -> None:
    path = create(tmp_path / "a.zarr", data.T, dimension_names=["t", "y", "x"])
    with pytest.raises(InvalidInfoError, match="axis 't' has 30 positions"):
        open_volume(str(path))
    path = create(tmp_path / "b.zarr", data.T, dimension_names=["u", "v", "w"])
    assert open_volume(str(path)).layer.mips[0].grid.shape == SHAPE  # names that say nothing


@pytest.mark.parametrize("form", ["{}", "n5://{}", "{}/"])
def test_a_group_of_n5_without_attributes_has_its_levels(form: str, tmp_path: Path) -> None:
    shape, group = (20, 12, 9), tmp_path / "ids.n5"
    voxels = np.random.default_rng(5).integers(2**62, 2**63, shape, np.uint64) * np.uint64(2)
    for level in range(2):
        place = {"driver": "file", "path": f"{group}/s{level}/"}
        metadata = {"dataType": "uint64", "dimensions": shape, "blockSize": [8, 8, 8], "compression": {"type": "raw"}}
        spec = {"driver": "n5", "kvstore": place, "metadata": metadata, "create": True}
        tensorstore.open(spec).result().write(voxels + np.uint64(level)).result()
        attributes = json.loads((group / f"s{level}" / "attributes.json").read_text())
        size = {"pixelResolution": {"dimensions": [4, 4, 40], "unit": "nm"}}
        size["downsamplingFactors"] = [2**level, 2**level, 1]
        (group / f"s{level}" / "attributes.json").write_text(json.dumps(attributes | size))
    volume = open_volume(form.format(group))
    assert [mip.grid.resolution_nm for mip in volume.layer.mips] == [(4, 4, 40), (8, 8, 40)]
    for level, mip in enumerate(volume.layer.mips):
        stored, _ = volume.read(level, mip.grid, "error")
        np.testing.assert_array_equal(stored[..., 0], voxels + np.uint64(level))
    (group / "s0" / "attributes.json").unlink()
    with pytest.raises(SourceNotFoundError, match="There is no"):
        open_volume(form.format(group), fresh=True)


def test_a_place_without_a_volume_says_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceNotFoundError, match=r"zarr\.json, \.zarray, \.zgroup"):
        open_volume(f"zarr://{tmp_path}/empty")
    with pytest.raises(SourceNotFoundError, match="N5 volume .* attributes.json"):
        open_volume(f"n5://{tmp_path}/empty")
    zarr.open_group(tmp_path / "group.zarr", mode="w")
    with pytest.raises(InvalidInfoError, match="group without multiscale metadata"):
        open_volume(str(tmp_path / "group.zarr"))


def test_ids_in_a_volume_that_says_image_are_a_segmentation_with_a_note(
    data: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_volume(tmp_path / "ids", data, layer_type="image")
    client = ImageryClient(segmentation_source=path, imagery=False)
    np.testing.assert_array_equal(client.segmentation_cutout([[0, 0, 0], SHAPE]).compute(), data)
    assert "says 'image', and its voxels are uint64: they are taken for ids" in caplog.text
    write_volume(tmp_path / "grey", data.astype(np.uint8), layer_type="image")
    with pytest.raises(ValueError, match="as_segmentation=True"):
        ImageryClient(segmentation_source=str(tmp_path / "grey"), imagery=False)
