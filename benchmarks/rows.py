"""What is measured: sections of rows, each with its data and the programs that do the same with it.

The first program of a row is ours, and the last is its floor, where it has one: the least that any program must do,
which is decoding, downsampling and encoding the same bytes in one plain loop on one core.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.environments import OURS

FLOOR = "floor"
US = "imagery_dask"


@dataclass(frozen=True)
class Program:
    """One way to do what a row measures.

    Attributes
    ----------
    name : str
        Name in the tables.
    call : str
        Module and function of this package, which is called with the arguments of the data and of the row.
    environment : str
        The environment of a peer.
    options : mapping
        Further arguments.
    data : str or None
        A data set that it reads from local files in place of the row's.
    """

    name: str
    call: str
    environment: str = OURS
    options: Mapping[str, Any] = field(default_factory=dict)
    data: str | None = None


@dataclass(frozen=True)
class Row:
    """One thing that is measured.

    Attributes
    ----------
    name, title : str
        Name on the command line, and in the tables.
    data : str
        The data set (`benchmarks.data`).
    programs : tuple of Program
        Ours first.
    options, small : mapping
        Arguments of all programs, and those that small data changes.
    server : str or None
        ``nginx``, ``slow`` (which waits `latency_s` before each answer), ``cave`` or ``bucket``; None reads local
        files.
    output : str or None
        What programs write: ``zarr``, ``precomputed`` or ``png``.
    limits : mapping
        Largest counts of our program, computed from facts of the data.
    in_quick : bool
        Whether a quick run of all rows has it; those that start clusters take too long.
    repeats : int or None
        The most timed runs, for rows of many minutes.
    goals : mapping
        By name of another program, the most CPU time that ours may take, as a multiple of that program's.
    """

    name: str
    title: str
    data: str
    programs: tuple[Program, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    small: Mapping[str, Any] = field(default_factory=dict)
    server: str | None = None
    latency_s: float = 0.02
    output: str | None = None
    limits: Mapping[str, Callable[[dict[str, Any]], float]] = field(default_factory=dict)
    in_quick: bool = True
    repeats: int | None = None
    goals: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Section:
    """Rows of one table.

    With `process`, times are those of a process from its start to its end, with its imports. Else they are those of
    the work, without imports; the CPU time of the whole process is a column of its own.
    """

    title: str
    text: str
    rows: tuple[Row, ...]
    process: bool = False


# --------------------------------------------------------------------------- cutouts

INFO_BYTES = 4096  # more than any info of the data


def _readers(what: str, *names: str) -> tuple[Program, ...]:
    """Return the programs of a task that all readers do."""
    known = {
        "CloudVolume": Program("CloudVolume", f"programs.peer_cloudvolume:{what}", "cloudvolume"),
        "tensorstore": Program("tensorstore", f"programs.peer_tensorstore:{what}", "tensorstore"),
        "imageryclient": Program("imageryclient", f"programs.peer_imageryclient:{what}", "imageryclient"),
    }
    return (Program(US, f"programs.reads:{what}"), *(known[name] for name in names or known))


CUTOUTS = {
    "jpeg": ("jpeg, 64 x 64 x 64", "image-jpeg", "image-jpeg"),
    "raw": ("raw", "image-raw", "image-raw"),
    "gzip": ("raw, gzip", "image-gzip", "image-gzip"),
    "labels": ("labels: compressed_segmentation, gzip", "labels-gzip", "labels-gzip"),
    "small": ("raw, small chunks of 64 x 64 x 16", "image-thin", "image-thin"),
    "large": ("raw, 256 planes in large chunks of 128 x 128 x 128", "image-large", "image-large"),
    "sharded-labels": ("labels in shards, gzip", "labels-sharded", "labels-gzip"),
    "sharded-raw": ("raw in shards", "image-sharded", "image-raw"),
}


# imageryclient reads by CloudVolume, and its imports take longer than a row does.
OF_IMAGERYCLIENT = ("jpeg", "labels")


def _cutout(name: str, server: str | None, title: str, data: str, twin: str, latency_s: float = 0.02) -> Row:
    sharded = "sharded" in data
    limits: dict[str, Callable[[dict[str, Any]], float]] = {}
    if server:
        # A request for the info and one for each chunk or shard.
        limits["requests"] = lambda facts: 1 + facts["files" if sharded else "chunks"]
        limits["bytes"] = lambda facts: facts["stored"] + INFO_BYTES
    floor = Program(FLOOR, "programs.floors:cutout", data=twin)
    place = (server or "local") if latency_s == 0.02 else f"{1000 * latency_s:.0f}ms"
    readers = () if name in OF_IMAGERYCLIENT and place == "nginx" else ("CloudVolume", "tensorstore")
    return Row(
        f"cutout-{name}-{place}", title, data, (*_readers("cutout", *readers), floor),
        server=server, latency_s=latency_s, limits=limits, in_quick=place == "slow", goals={"tensorstore": 1.0},
    )  # fmt: skip


STORES = {
    "image": ("zarr v3: blosc, 64 x 64 x 64", "zarr-image"),
    "labels": ("zarr v3: ids, zstd", "zarr-labels"),
    "image-shards": ("zarr v3: blosc in shards", "zarr-image-sharded"),
    "labels-shards": ("zarr v3: ids, zstd, in shards", "zarr-labels-sharded"),
}


def _store(name: str, server: str | None) -> Row:
    title, data = STORES[name]
    limits: dict[str, Callable[[dict[str, Any]], float]] = {}
    if server:
        # The metadata of the group, the array and its labels, in a request each, as is each chunk or shard.
        limits["requests"] = lambda facts: 3 + facts["files"]
    return Row(
        f"store-{name}-{server or 'local'}", title, data,
        (
            Program(US, "programs.reads:store"),
            Program("tensorstore", "programs.peer_tensorstore:store", "tensorstore"),
        ),
        server=server, limits=limits, in_quick=server == "slow", goals={"tensorstore": 1.0},
    )  # fmt: skip


def _store_again(name: str) -> Row:
    """Return a row of an export from zarr to zarr of the same codec, chunks and shards."""
    _, data = STORES[name]
    shard = [256, 256, 64] if "shards" in name else None
    return Row(
        f"store-again-{name}", f"{name.replace('-', ' in ')}, from zarr to zarr", data,
        (
            Program(US, "programs.exports:zarr_again"),
            Program("tensorstore", "programs.peer_tensorstore:zarr_again", "tensorstore"),
        ),
        options={"chunk": 64, "levels": 1, "shard": shard}, output="zarr", limits=CHUNKS_READ,
        goals={"tensorstore": 1.0},
    )  # fmt: skip


# Compressed files that are not shards are read from a disk by CloudVolume only.
OF_DISKS = ("jpeg", "raw", "small", "large", "sharded-labels", "sharded-raw")
LOCAL = {name: CUTOUTS[name] for name in OF_DISKS} | {"labels": ("labels", "labels", "labels")}
FAR = {name: CUTOUTS[name] for name in ("jpeg", "small")}

# --------------------------------------------------------------------------- browsing

BROWSED = {
    "planes": ("50 neighbouring planes", [[0, z] for z in range(50)], [[0, z] for z in range(16)], 0),
    "moved": ("a plane, and one a tenth to the right", [[0, 0], [51, 0]], [[0, 0], [51, 0]], 1),
    "again": ("a plane 50 times", [[0, 0]] * 50, [[0, 0]] * 2, 0),
}


def _browsed(name: str, title: str, positions: list[list[int]], small: list[list[int]], further: int) -> Row:
    """Return a row that may request each chunk once: of `further` more columns, too, after a move."""

    def chunks(facts: dict[str, Any]) -> float:
        deep = -(-(1 + max(z for _, z in (small if facts["across"] < 8 else positions))) // 16)
        return deep * facts["across"] * (facts["across"] + further) + 1

    return Row(
        f"browse-{name}", title, "browsing", _readers("browse", "CloudVolume", "tensorstore"),
        options={"positions": positions}, small={"positions": small}, server="slow", limits={"requests": chunks},
    )  # fmt: skip


# --------------------------------------------------------------------------- exports

CHUNKS_READ = {"chunks read": lambda facts: facts["chunks"]}
SMALL_CHUNKS = {"chunk": 64, "shard": None}
TENSORSTORE = Program("tensorstore", "programs.peer_tensorstore:zarr", "tensorstore")
DASK = Program("dask + zarr", "programs.peer_dask_zarr:zarr", "dask-zarr")
NGFF = Program("ngff-zarr", "programs.peer_ngff_zarr:zarr", "ngff-zarr")
ZARR_FLOOR = Program(FLOOR, "programs.floors:zarr")


def _zarr(
    name: str, title: str, data: str, peers: tuple[Program, ...], chunk: int, levels: int = 1, shard: Any = None,
    call: str = "zarr", in_quick: bool = True,
) -> Row:  # fmt: skip
    return Row(
        f"zarr-{name}", title, data, (Program(US, f"programs.exports:{call}"), *peers, ZARR_FLOOR),
        options={"chunk": chunk, "levels": levels, "shard": shard},
        small=SMALL_CHUNKS | {"shard": [128, 128, 64] if shard else None}, output="zarr", limits=CHUNKS_READ,
        in_quick=in_quick,
        goals={} if call == "cluster" else {FLOOR: 1.15} | ({"tensorstore": 1.0} if TENSORSTORE in peers else {}),
    )  # fmt: skip


def _precomputed(name: str, title: str, levels: int, call: str = "precomputed", **options: Any) -> Row:
    return Row(
        f"precomputed-{name}", title, "labels-deep",
        (
            Program(US, f"programs.exports:{call}"),
            Program("igneous", f"programs.peer_igneous:{call}", "igneous"),
            Program(FLOOR, f"programs.floors:{call}"),
        ),
        options={"levels": levels}, output="precomputed", limits=CHUNKS_READ, **options,
    )  # fmt: skip


# Of 1,024 chunks.
SHARDING = {"preshift_bits": 10, "minishard_bits": 0, "shard_bits": 10, "minishard_index_encoding": "gzip"}


def _copied(name: str, data: str, encoding: str | None, is_lossless: bool = True) -> Row:
    """Return a row of an export whose chunks are those of its source; pictures that are decoded are others."""
    options = {"levels": 1, "encoding": encoding}
    ours = "programs.exports:precomputed"
    decoded = Program("decoded", ours, options={"copy": "never"})
    return Row(
        f"precomputed-copied-{name}", f"{name}, precomputed, chunks of the source copied", data,
        (
            Program(US, ours, options={"copy": "exact"}),
            *([decoded] if is_lossless else []),
            Program("cp -r", "programs.exports:copied_by_cp"),
        ),
        options=options, output="precomputed", goals={"decoded": 0.2} if is_lossless else {},
    )  # fmt: skip


def _sharded(name: str, title: str, data: str, levels: int) -> Row:
    call = "programs.exports:precomputed_small_chunks"
    return Row(
        f"precomputed-shards-{name}", title, data,
        (Program(US, call, options={"sharding": SHARDING}), Program("without shards", call)),
        options={"levels": levels}, output="precomputed",
        # A 500th of the 8,194 files without shards, and metadata.
        limits=CHUNKS_READ | {"files": lambda _: 16 + 2 * levels}, goals={"without shards": 1.2},
    )  # fmt: skip


IMAGE_SHARD, LABEL_SHARD = [512, 512, 128], [256, 256, 64]
ON_CLUSTER = (Program("dask + zarr", "programs.peer_dask_zarr:cluster", "dask-zarr"),)
EXPORTS = (
    _zarr("raw", "raw, level 0", "image-raw-deep", (TENSORSTORE, DASK), 128),
    _zarr("labels", "labels, level 0", "labels-deep", (TENSORSTORE, DASK), 64),
    _zarr("raw-shards", "raw, level 0 in shards", "image-raw-deep", (TENSORSTORE, DASK), 128, 1, IMAGE_SHARD),
    _zarr("labels-shards", "labels, level 0 in shards", "labels-deep", (TENSORSTORE,), 64, 1, LABEL_SHARD),
    _zarr("jpeg-shards", "jpeg, level 0 in shards", "image-jpeg-deep", (TENSORSTORE,), 128, 1, IMAGE_SHARD),
    _zarr("raw-levels", "raw, three levels", "image-raw-deep", (TENSORSTORE, DASK, NGFF), 128, 3),
    _zarr("labels-levels", "labels, three levels", "labels-deep", (TENSORSTORE, NGFF), 64, 3),
    _zarr("raw-levels-shards", "raw, three levels in shards", "image-raw-deep", (TENSORSTORE,), 128, 3, IMAGE_SHARD),
    _zarr("labels-levels-shards", "labels, three levels in shards", "labels-deep", (TENSORSTORE,), 64, 3, LABEL_SHARD),
    _precomputed(
        "labels", "labels, precomputed, three mips", 3, small={"levels": 2}, goals={"igneous": 1.0, FLOOR: 1.15}
    ),
    _precomputed(
        "labels-copy", "labels, precomputed, level 0 alone, whose files igneous copies", 1, goals={FLOOR: 1.15}
    ),
    _precomputed(
        "labels-mips", "labels, precomputed, two mips without level 0", 3, "precomputed_mips", small={"levels": 2},
        goals={"igneous": 1.0},
    ),
    _copied("raw", "image-raw-deep", "raw"),
    _copied("jpeg", "image-jpeg-deep", "jpeg", is_lossless=False),
    _copied("labels", "labels-deep", None),
    _sharded("raw", "raw, precomputed in shards, level 0 in chunks of 32 x 32 x 32", "image-raw-deep", 1),
    _sharded("raw-mips", "raw, precomputed in shards, three mips", "image-raw-deep", 3),
    Row(
        "png", "128 slices of raw imagery as PNG", "image-raw",
        (
            Program(US, "programs.exports:png"),
            Program("imageryclient", "programs.peer_imageryclient:png", "imageryclient"),
        ),
        output="png", limits=CHUNKS_READ,
    ),
)  # fmt: skip

SMALL_EXPORTS = (
    Row(
        "small-python", "a box of 256 x 256 x 32, from Python", "small",
        (
            Program(US, "programs.commands:small"),
            Program("CloudVolume + zarr", "programs.peer_zarr:small", "dask-zarr"),
        ),
        output="zarr",
    ),
    Row(
        "small-command", "the same, from the command line", "small",
        (
            Program(US, "programs.commands:small_command"),
            Program("CloudVolume + zarr", "programs.peer_zarr:small", "dask-zarr"),
        ),
        output="zarr", in_quick=False,
    ),
)  # fmt: skip

# --------------------------------------------------------------------------- clusters


def _scaled(workers: int, threads: int, **options: Any) -> Program:
    name = f"{workers} x {threads}"
    given = {"workers": workers, "threads": threads, **options}
    return Program(name, "programs.exports:cluster", options=given)


LAYOUT = {"chunk": 128, "shard": None, "levels": 1, "block_mib": 16}
CLUSTERS = (
    _zarr("cluster-raw", "raw, level 0, two workers", "image-raw-deep", ON_CLUSTER, 128, 1, None, "cluster", False),
    _zarr("cluster-levels", "raw, three levels in shards", "image-raw-deep", (), 128, 3, IMAGE_SHARD, "cluster", False),
    _zarr("cluster-labels", "labels, three levels in shards", "labels-deep", (), 64, 3, LABEL_SHARD, "cluster", False),
    Row(
        "cluster-slow", "raw of 2 GiB, a server that waits 1 s", "image-far",
        tuple(_scaled(count, 1) for count in (1, 2, 4, 8)),
        options=LAYOUT, server="slow", latency_s=1.0, output="zarr", in_quick=False, repeats=1,
    ),
    Row(
        "cluster-slow-threads", "raw of 256 MiB, a server that waits 0.25 s", "image-raw-deep",
        tuple(_scaled(*how) for how in ((1, 1), (1, 2), (1, 4), (2, 1), (2, 2), (4, 1))),
        options=LAYOUT, server="slow", latency_s=0.25, output="zarr", in_quick=False,
    ),
    Row(
        "planned-threads", "jpeg of 256 MiB, a server that waits 0.25 s, threads of one process", "image-jpeg-deep",
        (
            Program(US, "programs.exports:planned"),
            Program("a thread for each of two cores", "programs.exports:zarr"),
        ),
        options=LAYOUT | {"block_mib": 4}, server="slow", latency_s=0.25, output="zarr", in_quick=False,
    ),
    Row(
        "planned-threads-local", "jpeg of 256 MiB on a local disk, threads of one process", "image-jpeg-deep",
        (
            Program(US, "programs.exports:planned"),
            Program("a thread for each of two cores", "programs.exports:zarr"),
        ),
        options=LAYOUT | {"block_mib": 4}, output="zarr", in_quick=False,
    ),
    Row(
        "cluster-jpeg-threads", "jpeg of 256 MiB on a local disk", "image-jpeg-deep",
        tuple(_scaled(*how) for how in ((1, 1), (1, 2), (1, 4), (2, 1), (2, 2), (4, 1))),
        options=LAYOUT, output="zarr", in_quick=False,
    ),
    Row(
        "cluster-cpu", "raw of 1 GiB on a local disk", "image-cpu", (_scaled(1, 1), _scaled(2, 1)),
        options=LAYOUT, output="zarr", in_quick=False,
    ),
    Row(
        "cluster-overhead", "128 blocks of 2 MiB, `cluster='local'`, with the start of its workers", "image-raw-deep",
        (Program(US, "programs.exports:zarr", options={"cluster": "local", "block_mib": 2}),),
        options={"chunk": 128, "shard": None, "levels": 1}, output="zarr", in_quick=False,
    ),
    Row(
        "cluster-plane", "a plane of 32,768 x 32,768 as PNG tiles of 4,096", "nothing",
        (Program(US, "programs.exports:png_plane"),),
        options={"side": 32_768, "tile": 4096}, small={"side": 256, "tile": 128}, output="png", in_quick=False,
    ),
    Row(
        "cluster-maximum", "the largest voxel of a cutout, two workers", "image-jpeg",
        (
            Program(US, "programs.exports:maximum"),
            Program("CloudVolume", "programs.peer_cloudvolume:maximum", "cloudvolume"),
        ),
        in_quick=False,
    ),
)  # fmt: skip

# --------------------------------------------------------------------------- processes


def _process(name: str, title: str, function: str, data: str = "nothing", in_quick: bool = True, **options: Any) -> Row:
    programs = (Program(US, f"programs.commands:{function}", options=options),)
    return Row(f"process-{name}", title, data, programs, in_quick=in_quick)


def _imports(name: str, *modules: str, environment: str = OURS) -> Program:
    return Program(name, "programs.commands:load", environment, {"modules": modules})


PROCESSES = (
    Row(
        "process-import", "import", "nothing",
        (
            _imports(US, "imagery_dask"),
            _imports("click, rich", "click", "rich"),
            _imports("dask.array", "dask.array"),
            _imports("CloudVolume", "cloudvolume", environment="cloudvolume"),
            _imports("tensorstore", "tensorstore", environment="tensorstore"),
            _imports("imageryclient", "imageryclient", environment="imageryclient"),
            _imports("igneous", "igneous", environment="igneous"),
        ),
        in_quick=False,
    ),
    _process("client", "`from imagery_dask import ImageryClient`", "names"),
    _process("help", "`imagery-dask --help`", "cli", arguments=["--help"]),
    _process("version", "`imagery-dask --version`", "cli", arguments=["--version"]),
    _process("export-help", "`imagery-dask export zarr --help`", "cli", arguments=["export", "zarr", "--help"]),
    _process("completion", "shell completion", "completion", in_quick=False),
    _process("status", "`imagery-dask status`", "status", "small"),
    _process("status-million", "the same, of an export of 10^6 blocks", "status", "receipts"),
    _process("verify", "`imagery-dask verify --workers 1`", "verify", "small", in_quick=False),
    Row(
        "process-plane", "first plane of a local volume", "small",
        (Program(US, "programs.commands:first_plane"),),
    ),
    Row(
        "petabyte", "a petabyte: open it, read a plane of 512 x 512", "petabyte",
        _readers("petabyte", "CloudVolume", "tensorstore"),
        limits={"graph bytes": lambda facts: 20_000, "chunks read": lambda facts: facts["chunks"]},
    ),
)  # fmt: skip

# --------------------------------------------------------------------------- runs of many blocks

MILLION, FEW = {"blocks": 1_000_000}, {"blocks": 1000}
RUNS = (
    Row("runs-plan", "planning 10^6 blocks", "nothing", (Program(US, "programs.runs:plan"),), MILLION, FEW,
        limits={"plan bytes": lambda facts: 10_000}),
    Row("runs-resume", "the same command on a complete export of 10^6 blocks", "receipts",
        (Program(US, "programs.runs:resume"),)),
)  # fmt: skip
BLOCKS = (
    Row("blocks-none", "10^4 blocks without work, two workers", "nothing",
        (Program(US, "programs.runs:no_blocks"), Program("dask's futures", "programs.runs:futures")),
        {"blocks": 10_000}, FEW, in_quick=False),
    Row("blocks-million", "10^6 blocks without work, two workers", "nothing",
        (Program(US, "programs.runs:no_blocks"),), MILLION, FEW, in_quick=False, repeats=1),
    *(
        Row(f"blocks-{name}", f"receipts, hashes, disk: {title}", data, (Program(US, "programs.runs:costs"),),
            {"shard": shard}, {"shard": None}, output="zarr", in_quick=name == "image-chunks")
        for name, title, data, shard in (
            ("image-shards", "image, shards", "image-raw-deep", [256, 256, 256]),
            ("image-chunks", "image, chunks", "image-raw-deep", None),
            ("labels-shards", "labels, shards", "labels-deep", [128, 128, 128]),
            ("labels-chunks", "labels, chunks", "labels-deep", None),
        )
    ),
)  # fmt: skip

# --------------------------------------------------------------------------- 10^7 blocks, a thousand workers


def _thousand(name: str, title: str, large: Mapping[str, Any], **options: Any) -> Row:
    """Return a row of many workers; small data has two."""
    few = {"blocks": 200, "workers": 2, "threads": 2, "processes": 1, "seconds": 0.0, "idle_s": 0.1}
    programs = (Program(US, "programs.runs:thousand"),)
    return Row(
        f"scale-{name}",
        title,
        "nothing",
        programs,
        {"processes": 2, **large, **options},
        few,
        in_quick=False,
        repeats=1,
    )


SCALE = (
    Row("scale-window", "10^6 blocks of 2 s on 1,000 threads, in simulated time", "nothing",
        (Program(US, "programs.runs:window"),), {"blocks": 1_000_000, "threads": 1000, "seconds": 2.0},
        {"blocks": 100_000, "threads": 100}, limits={"tasks": lambda facts: 30_000}),
    Row("scale-window-10-million", "10^7 blocks of 2 s on 1,000 threads, in simulated time", "nothing",
        (Program(US, "programs.runs:window"),), {"blocks": 10_000_000, "threads": 1000, "seconds": 2.0},
        {"blocks": 100_000, "threads": 100}, in_quick=False, repeats=1),
    _thousand("threads", "10^5 blocks of 0.5 s on 1,000 threads of 8 workers",
              {"workers": 8, "threads": 125}, blocks=100_000, seconds=0.5, idle_s=10.0),
    _thousand("blocks", "10^6 blocks without work on 1,000 threads of 8 workers",
              {"workers": 8, "threads": 125}, blocks=1_000_000, seconds=0.0, idle_s=1.0),
    _thousand("workers", "1,000 workers: joining, heartbeats, 10^5 blocks without work",
              {"workers": 1000, "threads": 1}, blocks=100_000, seconds=0.0, idle_s=60.0),
    Row("scale-status", "`imagery-dask status` of 10^7 blocks of 1,000 processes", "receipts-many",
        (Program(US, "programs.commands:status"),), in_quick=False),
    Row("scale-resume", "the same command on a complete export of 10^7 blocks", "receipts-many",
        (Program(US, "programs.runs:resume"),), in_quick=False),
    Row("scale-shards", "objects of 32 kB into a bucket on this machine, from one process", "nothing",
        (Program(US, "programs.objects:shards"), Program("the server's limit", "programs.objects:requests")),
        {"objects": 8000, "side": 32, "threads": 16}, {"objects": 64}, server="bucket", in_quick=False),
    Row("scale-receipts", "receipts of 10^4 blocks in a bucket, tasks of 100 blocks", "nothing",
        (Program(US, "programs.objects:receipts"),), {"blocks": 10_000, "of_task": 100}, {"blocks": 200},
        server="bucket", limits={"requests": lambda facts: 100}),
)  # fmt: skip

# --------------------------------------------------------------------------- roots


MOMENT = 1_704_153_600  # a day after the graph began


def _roots(name: str, title: str, function: str, limits: Any, peer: bool = True, **options: Any) -> Row:
    """Return a row with a moment of its own, whose roots no process has looked up for another row."""
    options["moment"] = MOMENT + sum(map(ord, name))
    programs = [Program(US, f"programs.roots:{function}")]
    if peer:
        programs.append(Program("imageryclient", f"programs.peer_imageryclient:{function}", "imageryclient"))
    if function == "objects":
        fewer = {"threads": 2, "moment": MOMENT}
        programs.append(Program("imagery_dask, 2 threads", "programs.roots:objects", options=fewer))
    output = "png" if function == "files" else None
    return Row(f"roots-{name}", title, "roots", tuple(programs), options, server="cave", output=output, limits=limits)


def _remapped(count: int) -> Row:
    programs = (Program(US, "programs.roots:remap"),)
    title = f"distinct ids and their replacement, {count:,} ids in 16 MiB"
    return Row(f"roots-remap-{count}", title, "nothing", programs, {"count": count, "side": 256}, {"side": 64})


A_CALL_A_BLOCK = {"lookups": lambda facts: facts["blocks"]}
ROOTS = (
    _roots("all", "all objects of 2^20 supervoxels", "objects",
           A_CALL_A_BLOCK | {"ids sent": lambda facts: 1.02 * facts["supervoxels"]}),
    _roots("list", "1,000 objects of them", "listed", A_CALL_A_BLOCK, peer=False, roots=1000),
    _roots("sizes", "ids and voxel counts of 512 x 256 x 2", "sizes", A_CALL_A_BLOCK),
    _roots("masks", "their masks", "masks", A_CALL_A_BLOCK),
    _roots("files", "their masks as PNG files", "files", A_CALL_A_BLOCK),
    _remapped(200),
    _remapped(20_000),
)  # fmt: skip

# --------------------------------------------------------------------------- versions

STORED, LIVE = "stored root ids", "server"
VERSIONS = (
    Row("versions-plane", "a plane of a version", "versions",
        (Program(US, "programs.versions:plane"), Program(STORED, "programs.versions:stored_plane"),
         Program(LIVE, "programs.versions:live_plane")),
        server="cave", limits={"requests": lambda facts: 0}, goals={STORED: 1.3}),
    Row("versions-kept", "the plane again and its neighbours, whose chunks are kept", "versions",
        (Program(US, "programs.versions:kept_planes"), Program(STORED, "programs.versions:stored_kept_planes")),
        goals={STORED: 1.3}),
    Row("versions-add", "a further version, 1% of whose objects were edited", "versions",
        (Program(US, "programs.versions:added"), Program("exported again", "programs.versions:exported")),
        server="cave",
        limits={"ids sent": lambda facts: 0.03 * facts["supervoxels"],
                "bytes of the table": lambda facts: 0.03 * facts["copy"]},
        goals={"exported again": 0.05}),
    Row("versions-follow", "a copy becomes the version in which one of 4,096 objects was split", "versions",
        (Program(US, "programs.versions:followed"), Program("written anew", "programs.versions:anew")),
        server="cave", output="zarr", limits={"requests": lambda facts: 0}),
    Row("versions-many", "a block of 10^8 supervoxels, one of 100 versions", "versions-many",
        (Program(US, "programs.versions:block_of_many"), Program(STORED, "programs.versions:stored_block")),
        limits={"lookups": lambda facts: 0}),
)  # fmt: skip

# --------------------------------------------------------------------------- pictures and codecs

STYLES: dict[str, dict[str, Any]] = {
    "filled": {},
    "outlines within": {"outline": True, "side": "in", "merge_outline": False},
    "outlines around": {"outline": True, "merge_outline": False},
    "outlines around, merged": {"outline": True},
}
PAGES = {
    "1000": "1,000 cells",
    "5000": "5,000 cells",
    "5000-gaps": "5,000 cells with gaps",
    "50000": "50,000 cells",
}
OVERLAYS = (
    *(
        Row(f"overlay-{page}", f"{title}, 4096 x 4096", f"page-{page}",
            tuple(Program(name, "programs.pictures:large", options={"style": style}) for name, style in STYLES.items()),
            in_quick=page == "1000")
        for page, title in PAGES.items()
    ),
    *(
        Row(f"overlay-{number}-style", f"100 cells, 1024 x 1024: {name}", "page-100",
            (Program(US, "programs.pictures:overlay"),
             Program("imageryclient", "programs.peer_imageryclient:overlay", "imageryclient")),
            {"style": style}, in_quick=number == 0)
        for number, (name, style) in enumerate(STYLES.items())
    ),
)  # fmt: skip
CODECS = (
    "blosc zstd 1, shuffle",
    "blosc zstd 1, no shuffle",
    "blosc zstd 1, bit shuffle",
    "zstd 1",
    "zstd 3",
    "gzip 1",
)
KINDS = {
    "uint8": "image, uint8",
    "uint16": "image, uint16",
    "float32": "image, float32",
    "ids": "bodies, uint64",
    "uint32": "bodies, uint32, numbered from 0",
    "mask": "mask, uint8",
}
PIPELINES = (("zarrs", "zarrs.ZarrsCodecPipeline"), ("zarr", "zarr.core.codec_pipeline.BatchedCodecPipeline"))
CODEC_ROWS = (
    *(
        Row(f"codec-{kind}", title, "microscopy",
            tuple(Program(codec, "programs.codecs:measure", options={"codec": codec}) for codec in CODECS),
            {"kind": kind}, in_quick=kind == "ids")
        for kind, title in KINDS.items()
    ),
    *(
        Row(f"codec-pipeline-{kind}", f"{KINDS[kind]}: pipelines of zarr", "microscopy",
            tuple(Program(name, "programs.codecs:pipeline", options={"path": path}) for name, path in PIPELINES),
            {"kind": kind})
        for kind in ("uint8", "ids")
    ),
)  # fmt: skip

# --------------------------------------------------------------------------- downsampling


def _pooled(name: str, title: str, dtype: str, step: list[int], labels: bool, order: str, alone: bool = True) -> Row:
    """Return a row of blocks in memory; tinybrain alone has no right means of some types."""
    floor = (Program(FLOOR, "programs.pooling:alone"),) if alone else ()
    return Row(
        f"downsample-{name}", title, "nothing", (Program(US, "programs.pooling:ours"), *floor),
        {"dtype": dtype, "step": step, "labels": labels, "order": order, "side": 256}, {"side": 64},
        goals={FLOOR: 1.15},
    )  # fmt: skip


POOLED = (
    _pooled("image", "uint8, x and y", "uint8", [2, 2, 1], False, "F"),
    _pooled("image-c", "uint8 in C order, x and y", "uint8", [2, 2, 1], False, "C"),
    _pooled("labels", "uint64 ids, x and y", "uint64", [2, 2, 1], True, "F"),
    _pooled("labels-cubes", "uint64 ids, x, y and z", "uint64", [2, 2, 2], True, "F"),
    _pooled("int16", "int16, x and y", "int16", [2, 2, 1], False, "F", alone=False),
    _pooled("axis", "uint8, z", "uint8", [1, 1, 2], False, "F", alone=False),
)

# --------------------------------------------------------------------------- all

SECTIONS = (
    Section(
        "Cutouts over HTTP",
        "A volume as one array, from nginx on this machine: images of 1024 x 1024 x 128 voxels, labels of "
        "512 x 512 x 128 uint64, in chunks of 64 x 64 x 64.",
        tuple(_cutout(name, "nginx", *kind) for name, kind in CUTOUTS.items()),
    ),
    Section(
        "Cutouts over HTTP, 20 ms",
        "The same from a server that answers after 20 ms.",
        tuple(_cutout(name, "slow", *kind) for name, kind in CUTOUTS.items()),
    ),
    Section(
        "Cutouts over HTTP, 100 and 250 ms",
        "The same from a server that is far away.",
        tuple(_cutout(name, "slow", *kind, latency_s) for latency_s in (0.1, 0.25) for name, kind in FAR.items()),
    ),
    Section(
        "Cutouts of local files",
        "The same from files that are not compressed further, which all programs can read.",
        tuple(_cutout(name, None, *kind) for name, kind in LOCAL.items()),
    ),
    Section(
        "Cutouts of zarr",
        "An image of OME-Zarr as one array, from local files, and from a server that answers after 20 ms: images of "
        "1024 x 1024 x 128 voxels, labels of 512 x 512 x 128 uint64; shards hold 16 chunks.",
        (*(_store(name, server) for server in (None, "slow") for name in STORES), *map(_store_again, STORES)),
    ),
    Section(
        "Browsing",
        "Planes of 512 x 512 of jpeg imagery in chunks of 64 x 64 x 16, from a server that answers after 20 ms. Every "
        "program begins with an empty cache of 256 MiB.",
        tuple(_browsed(name, *what) for name, what in BROWSED.items()),
    ),
    Section(
        "Exports",
        "Images of 1024 x 1024 x 256 and labels of 512 x 512 x 256 uint64 from local files, with two threads or "
        "processes: chunks of 128 x 128 x 128 with blosc zstd 1, or of 64 x 64 x 64 with zstd 1 for labels.",
        EXPORTS,
    ),
    Section("Small exports", "Processes, with the start of Python and its imports.", SMALL_EXPORTS, process=True),
    Section(
        "Clusters",
        "Exports on two worker processes of one thread, or N of M threads (N x M), without their start. CPU time is "
        "that of driver and workers.",
        CLUSTERS,
    ),
    Section("Processes", "Processes, with the start of Python and its imports.", PROCESSES, process=True),
    Section("Exports of a million blocks", "The calls, without imports.", RUNS),
    Section(
        "Costs of blocks",
        "CPU time of driver and scheduler, which are one process, for blocks without work; and shares in the time of "
        "exports on two threads.",
        BLOCKS,
    ),
    Section(
        "Ten million blocks, a thousand workers",
        "What is simulated, and what it says of 10^8 blocks, is told in "
        "[Ten million blocks](explanation/scale.md). CPU time is that of driver and scheduler, which are one process.",
        SCALE,
    ),
    Section(
        "Root lookups",
        "A local CAVE server, another process, waits 20 ms at each call; the region has 64 blocks of 16 MiB, which are "
        "the graph's chunks.",
        ROOTS,
    ),
    Section(
        "Versions",
        "Version stores of 2^20 irregular supervoxels of 512 voxels; the server waits 20 ms at each call.",
        VERSIONS,
    ),
    Section("Overlays", "A fifth of the cells belong to large objects; outlines are 10 pixels wide.", OVERLAYS),
    Section(
        "Downsampling",
        "One block of 256 x 256 x 64 voxels in memory, one thread; the floor is tinybrain alone.",
        POOLED,
    ),
    Section(
        "Codecs",
        "One thread, chunks of the default shapes. FIB-25, where it is there: an image of 250 x 250 x 250 voxels, and "
        "its ids, to which 2^60 is added; else the generator's volume. Times are those of encoding and decoding.",
        CODEC_ROWS,
    ),
)
