"""One field with known nuclei, written in many ways: each gives the same table, or a refusal that names the option."""

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image

from hpacell.arguments import make_parser
from hpacell.feed.store import read_store
from hpacell.fields.read import Field
from hpacell.options import reading_of
from hpacell.pipeline.extract import extract_fields
from hpacell.pipeline.field import ExtractSettings, cut_field
from hpacell.vocabulary import CHANNELS

SIDE, GAP, RADIUS, PIXEL = 260, 64, 14, 0.5
STEPS = (np.arange(GAP // 2, SIDE - RADIUS, GAP)).tolist()
NUCLEI = [(row, col) for row in STEPS for col in STEPS]
LEVELS = {"microtubules": 61, "protein": 90, "nucleus": 120, "er": 75}  # of an 8-bit field, inside the nuclei


def truth() -> np.ndarray:
    """(H, W, 4) uint8: sixteen discs, each channel with a level of its own; a cell around each."""
    rows, cols = np.mgrid[:SIDE, :SIDE]
    nuclei, cells = np.zeros((SIDE, SIDE), bool), np.zeros((SIDE, SIDE), bool)
    for row, col in NUCLEI:
        nuclei |= (rows - row) ** 2 + (cols - col) ** 2 <= RADIUS**2
        cells |= (rows - row) ** 2 + (cols - col) ** 2 <= 26**2
    image = np.empty((SIDE, SIDE, 4), np.uint8)
    for i, name in enumerate(CHANNELS):
        image[..., i] = np.where(nuclei if name == "nucleus" else cells, LEVELS[name], 2)
    return image


IMAGE = truth()
PLANES = np.ascontiguousarray(IMAGE.transpose(2, 0, 1))
DISC = sum(row * row + col * col <= RADIUS**2 for row in range(-RADIUS, RADIUS + 1) for col in range(-RADIUS, RADIUS + 1))
COLOURS = ("red", "green", "blue", "yellow")


@dataclass
class Way:
    """One way to store the field."""

    write: Callable[[Path], object]
    gain: float | tuple[float, ...] = 1.0  # the file's numbers, as a multiple of the 8-bit ones
    options: str = ""  # what the command is given
    refused: str = ""  # what is said without these options, as a regular expression
    tolerance: float = 1e-3  # of intensities
    pixel_um: float | None = None
    area_um2: float | None = None  # of a pixel
    channels: tuple[str, ...] = CHANNELS
    offset: float = 0.0  # what was taken away from the 8-bit numbers
    notes: tuple[str, ...] = ()


def tiff(array, name="a.tif", **options):
    return lambda folder: tifffile.imwrite(folder / name, array, **{"photometric": "minisblack", **options})


def rgb_and_alpha(array, **options):
    """As tifffile writes (4, H, W) or (H, W, 4) if nobody says what it is."""
    return tiff(array, photometric="rgb", extrasamples=[2], **options)


def four(planes=PLANES, names=COLOURS, pattern="a_{}.png", writer=None):
    def write(folder):
        for plane, name in zip(planes, names, strict=True):
            path = folder / pattern.format(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            if writer:
                writer(path, plane)
            elif path.suffix == ".tif":
                tifffile.imwrite(path, plane, photometric="minisblack")
            else:
                assert cv2.imwrite(str(path), plane)

    return write


def coloured(path, plane):
    """One stain in the colour of the Atlas."""
    rgb = np.zeros((*plane.shape, 3), np.uint8)
    lit = {"red": [0], "green": [1], "blue": [2], "yellow": [0, 1]}[path.stem.rpartition("_")[2]]
    rgb[..., lit] = plane[..., None]
    Image.fromarray(rgb).save(path, quality=97, subsampling=0) if path.suffix == ".jpg" else Image.fromarray(rgb).save(path)


def ome(array, axes="CYX", **about):
    names = {"Channel": {"Name": ["Tubulin", "Protein", "DAPI", "ER"]}} if array.shape[axes.index("C")] == 4 else {}
    return tiff(array, "a.ome.tif", metadata={"axes": axes, **names, **about})


def scenes(*arrays):
    def write(folder):
        with tifffile.TiffWriter(folder / "a.ome.tif", ome=True) as file:
            for array in arrays:
                file.write(array, photometric="minisblack", metadata={"axes": "CYX", "Channel": {"Name": list(CHANNELS)}})

    return write


def pyramid(folder):
    about = {"axes": "CYX", "Channel": {"Name": list(CHANNELS)}}
    with tifffile.TiffWriter(folder / "a.ome.tif", ome=True) as file:
        file.write(PLANES, photometric="minisblack", subifds=1, metadata=about)
        file.write(PLANES[:, ::2, ::2], photometric="minisblack", subfiletype=1)


def thumbnail(folder):
    with tifffile.TiffWriter(folder / "a.tif") as file:
        file.write(PLANES, photometric="minisblack", metadata=None)
        file.write(cv2.resize(PLANES[0], (65, 65), interpolation=cv2.INTER_AREA), photometric="minisblack", metadata=None)


def luts(*colours):
    made = []
    for colour in colours:
        lut = np.zeros((3, 256), np.uint8)
        lut[list(colour)] = np.arange(256)
        made.append(lut)
    return made


W16, F32 = np.uint16, np.float32
TWELVE = PLANES.astype(W16) * 16
STACK = np.stack([PLANES // 3, PLANES, PLANES // 2])  # Z C Y X; the middle slice is the sharp one
NAMED = "--channels microtubules,protein,nucleus,er"
HOT = TWELVE.copy()
HOT[:, 3, 3] = 65535
SUBSET = PLANES[[1, 2]]
UM = {"PhysicalSizeX": PIXEL, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": PIXEL, "PhysicalSizeYUnit": "µm"}

WAYS = {
    # ---- a file a channel
    "png": Way(four()),
    "png 12 of 16 bits": Way(four(TWELVE), gain=16),
    "tif": Way(four(pattern="a_{}.tif")),
    "tif by stain": Way(four(names=CHANNELS, pattern="a_{}.tif")),
    "upper case": Way(four(names=("RED", "GREEN", "BLUE", "YELLOW"), pattern="a_{}.PNG")),
    "coloured png": Way(four(writer=coloured)),
    "coloured jpeg": Way(four(pattern="a_{}.jpg", writer=coloured), tolerance=0.06),
    "grey jpeg": Way(four(pattern="a_{}.jpg", writer=lambda path, plane: Image.fromarray(plane).save(path, quality=97)), tolerance=0.04),
    "bmp": Way(four(pattern="a_{}.bmp")),
    "pgm": Way(four(pattern="a_{}.pgm")),
    "8 and 16 bits": Way(four([PLANES[0], TWELVE[1], PLANES[2], TWELVE[3]]), gain=(1, 16, 1, 16)),
    "real numbers beside whole": Way(four([*PLANES[:2], PLANES[2] / F32(255), PLANES[3]], pattern="a_{}.tif"), gain=(1, 1, 1 / 255, 1)),
    "a folder a channel": Way(four(pattern="{}/a.png"), options="--pattern {channel}/{field_id}.png"),
    "words of one's own": Way(four(names=("w1", "w2", "w3", "w4"), pattern="a_{}.png"), options="--channels w1=microtubules,w2=protein,w3=nucleus,w4=er --pattern {field_id}_{channel}.png"),
    "channel first": Way(four(names=("C1", "C2", "C3", "C4"), pattern="{}-my a.png"), options="--channels C1=microtubules,C2=protein,C3=nucleus,C4=er --pattern {channel}-{field_id}.png"),
    # ---- TIFF: pages, axes, orders
    "pages": Way(tiff(PLANES)),
    "pages without metadata": Way(tiff(PLANES, metadata=None)),
    "pages zlib": Way(tiff(PLANES, compression="zlib")),
    "pages lzw tiles": Way(tiff(PLANES, compression="lzw", tile=(64, 64))),
    "bigtiff big-endian": Way(tiff(TWELVE, bigtiff=True, byteorder=">"), gain=16),
    "rows columns channels": Way(tiff(IMAGE)),
    "rows columns channels contig": Way(tiff(IMAGE, planarconfig="contig")),
    "rgb and alpha planar": Way(rgb_and_alpha(PLANES, planarconfig="separate"), options=NAMED, refused="calls alpha although its values vary"),
    "rgb and alpha contig": Way(rgb_and_alpha(IMAGE, planarconfig="contig"), options=NAMED, refused="calls alpha although its values vary"),
    "rgb and alpha of 16 bits": Way(rgb_and_alpha(TWELVE, planarconfig="separate"), gain=16, options=NAMED, refused="calls alpha although its values vary"),
    "another order": Way(tiff(PLANES[[3, 1, 0, 2]]), options="--channels er,protein,microtubules,nucleus", channels=("er", "protein", "microtubules", "nucleus")),
    "white is zero": Way(four([255 - plane for plane in PLANES], pattern="a_{}.tif", writer=lambda path, plane: tifffile.imwrite(path, plane, photometric="miniswhite"))),
    "uint32": Way(tiff(TWELVE.astype(np.uint32)), gain=16),
    "int16": Way(tiff(TWELVE.astype(np.int16)), gain=16),
    "int32 below zero": Way(tiff(PLANES.astype(np.int32) - 7), offset=7),
    "float32": Way(tiff(PLANES.astype(F32)), gain=1),
    "float64 of 0 to 1": Way(tiff(PLANES / 255), gain=1 / 255),
    "float16": Way(tiff(PLANES.astype(np.float16)), gain=1),
    "12 bits with a hot pixel": Way(tiff(HOT), gain=16),
    "not a number outside": Way(tiff(np.where(np.arange(SIDE) < 3, np.nan, PLANES).astype(F32)), notes=("values that are no finite numbers",)),
    "jpeg in tiff": Way(four(pattern="a_{}.tif", writer=lambda path, plane: tifffile.imwrite(path, plane, photometric="minisblack", compression="jpeg", compressionargs={"level": 97})), tolerance=0.04),
    "thumbnail behind": Way(thumbnail, notes=("smaller images in the file",)),
    # ---- ImageJ
    "imagej channels": Way(tiff(PLANES, imagej=True, metadata={"axes": "CYX"})),
    "imagej slices that are channels": Way(tiff(TWELVE, imagej=True, metadata={"axes": "ZYX"}), gain=16, options=NAMED, notes=("4 slices read as the channels",)),
    "imagej frames that are channels": Way(tiff(PLANES, imagej=True, metadata={"axes": "TYX"}), options=NAMED, refused="4 moments in time"),
    "imagej frames by axes": Way(tiff(PLANES, imagej=True, metadata={"axes": "TYX"}), options="--axes CYX", refused="--axes CYX"),
    "imagej slices by axes": Way(tiff(PLANES, imagej=True, metadata={"axes": "ZYX"}), options="--axes CYX"),
    "imagej lookup tables": Way(tiff(PLANES, imagej=True, metadata={"axes": "CYX", "LUTs": luts([0], [1], [2], [0, 1]), "mode": "composite"})),
    "imagej labels": Way(tiff(PLANES[[2, 3, 0, 1]], imagej=True, metadata={"axes": "CYX", "Labels": ["DAPI", "ER", "Tubulin", "protein"]}), channels=("nucleus", "er", "microtubules", "protein")),
    "imagej micrometres": Way(tiff(PLANES, imagej=True, resolution=(2, 2), metadata={"axes": "CYX", "unit": "um"}), pixel_um=PIXEL),
    "imagej oblong": Way(tiff(PLANES, imagej=True, resolution=(2, 1), metadata={"axes": "CYX", "unit": "micron"}), area_um2=0.5, notes=("pixels are not square",)),
    "imagej float": Way(tiff(TWELVE.astype(F32), imagej=True, metadata={"axes": "CYX", "min": 0.0, "max": 4096.0}), gain=16),
    "imagej hyperstack max": Way(tiff(STACK, imagej=True, metadata={"axes": "ZCYX"}), notes=("brightest of 3 focus slices",)),
    "imagej hyperstack mid": Way(tiff(STACK, imagej=True, metadata={"axes": "ZCYX"}), options="--z mid", notes=("slice 1 of 3",)),
    "imagej hyperstack by number": Way(tiff(STACK, imagej=True, metadata={"axes": "ZCYX"}), options="--z 1"),
    # ---- OME
    "ome": Way(ome(PLANES)),
    "ome 16 bits": Way(ome(TWELVE, SignificantBits=12), gain=16),
    "ome other order of axes": Way(ome(np.moveaxis(STACK, 0, 1), "CZYX"), notes=("brightest of 3 focus slices",)),
    "ome micrometres": Way(ome(PLANES, **UM), pixel_um=PIXEL),
    "ome nanometres": Way(ome(PLANES, PhysicalSizeX=500.0, PhysicalSizeXUnit="nm", PhysicalSizeY=500.0, PhysicalSizeYUnit="nm"), pixel_um=PIXEL),
    "ome oblong": Way(ome(PLANES, **(UM | {"PhysicalSizeY": 1.0})), area_um2=0.5, notes=("pixels are not square",)),
    "ome impossible size": Way(ome(PLANES, PhysicalSizeX=1.0, PhysicalSizeXUnit="mm", PhysicalSizeY=1.0, PhysicalSizeYUnit="mm"), notes=("cannot be right",)),
    "ome one moment": Way(ome(PLANES[None, :, None], "TCZYX")),
    "ome other order of channels": Way(tiff(PLANES[[2, 3, 0, 1]], "a.ome.tif", metadata={"axes": "CYX", "Channel": {"Name": ["Hoechst 33342", "Calreticulin (er)", "alpha-tubulin", "antibody"]}}), channels=("nucleus", "er", "microtubules", "protein")),
    "ome unknown names": Way(tiff(PLANES, "a.ome.tif", metadata={"axes": "CYX", "Channel": {"Name": ["Phalloidin", "Mito", "Draq", "ConA"]}}), options=NAMED, refused="--channels"),
    "ome two scenes": Way(scenes(PLANES[:, :120, :120][:, ::-1], PLANES), options="--scene 1", refused=r"2 images \(0: 120 x 120; 1: 260 x 260\).*--scene 0"),
    "ome two scenes of one size": Way(scenes(PLANES[:, ::-1, ::-1] // 2, PLANES), options="--scene 1", refused="--scene 0"),
    "ome pyramid": Way(pyramid, notes=("smaller images in the file",)),
    # ---- plain tags
    "centimetres": Way(tiff(PLANES, resolution=(20_000, 20_000), resolutionunit="CENTIMETER"), pixel_um=PIXEL),
    "inches": Way(tiff(PLANES, resolution=(50_800, 50_800), resolutionunit="INCH"), pixel_um=PIXEL),
    "screen resolution": Way(tiff(PLANES, resolution=(72, 72), resolutionunit="INCH")),
    "centimetres oblong": Way(tiff(PLANES, resolution=(20_000, 10_000), resolutionunit="CENTIMETER"), area_um2=0.5, notes=("pixels are not square",)),
    # ---- colours
    "rgb png": Way(lambda folder: Image.fromarray(IMAGE[..., :3]).save(folder / "a.png"), channels=CHANNELS[:3]),
    "rgb tiff": Way(lambda folder: tifffile.imwrite(folder / "a.tif", IMAGE[..., :3], photometric="rgb"), channels=CHANNELS[:3]),
    "rgb and opaque alpha": Way(lambda folder: Image.fromarray(np.dstack([IMAGE[..., :3], np.full((SIDE, SIDE), 255, np.uint8)])).save(folder / "a.png"), channels=CHANNELS[:3], notes=("alpha left out",)),
    "rgba png of four channels": Way(lambda folder: Image.fromarray(IMAGE).save(folder / "a.png"), options=NAMED, refused="calls alpha although its values vary"),
    "nucleus of rgb": Way(lambda folder: Image.fromarray(IMAGE[..., :3]).save(folder / "a.png"), options="--channels nucleus", channels=("nucleus",)),
    "two of rgb": Way(lambda folder: Image.fromarray(IMAGE[..., :3]).save(folder / "a.png"), options="--channels nucleus,protein", channels=("nucleus", "protein")),
    "blue picture": Way(lambda folder: Image.fromarray(np.dstack([0 * PLANES[2], 0 * PLANES[2], PLANES[2]])).save(folder / "a.png"), channels=("nucleus",)),
    # ---- some channels
    "two pages": Way(tiff(SUBSET), options="--channels protein,nucleus", refused="--channels", channels=("protein", "nucleus")),
    "nucleus alone": Way(tiff(PLANES[2]), channels=("nucleus",)),
    "nucleus of ome": Way(ome(PLANES), options="--channels nucleus", channels=("nucleus",)),
    "packed 12 bits": Way(four(TWELVE, pattern="a_{}.tif", writer=lambda path, plane: write_packed(path, plane)), gain=16),
}  # fmt: skip


def write_packed(path, plane):
    """A TIFF of 12 bits a sample, two samples in three bytes."""
    import imagecodecs

    data = imagecodecs.packints_encode(plane.ravel(), 12) if hasattr(imagecodecs, "packints_encode") else None
    if data is None or imagecodecs.packints_decode(data, np.uint16, 12, runlen=plane.size).tolist() != plane.ravel().tolist():
        pairs = plane.reshape(-1, 2).astype(np.uint32)
        joined = pairs[:, 0] << 12 | pairs[:, 1]
        data = np.stack([joined >> 16, joined >> 8 & 255, joined & 255], axis=1).astype(np.uint8).tobytes()
    rows, cols = plane.shape
    entries = [(256, 4, cols), (257, 4, rows), (258, 3, 12), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1), (278, 4, rows), (279, 4, len(data))]
    ifd = len(entries).to_bytes(2, "little")
    for tag, kind, value in entries:
        ifd += tag.to_bytes(2, "little") + kind.to_bytes(2, "little") + (1).to_bytes(4, "little") + value.to_bytes(4, "little")
    data += b"\0" * (len(data) % 2)
    path.write_bytes(b"II*\0" + (8 + len(data)).to_bytes(4, "little") + data + ifd + b"\0\0\0\0")


def options_of(text: str, folder: Path) -> dict:
    """What the command line makes of options."""
    parsed = make_parser().parse_args(["extract", str(folder), "--out", "x", *shlex.split(text)])
    return {"pattern": parsed.pattern, "channels": parsed.channels, **reading_of(parsed)}


SETTINGS = ExtractSettings(method="classical", crop_size=64)


def table_of(folder: Path, out: Path, options: str):
    report = extract_fields(folder, out, settings=SETTINGS, workers=1, **options_of(options, folder))
    return report, read_store(out)


@cache
def reference(channels: tuple[str, ...]) -> pd.DataFrame:
    """The table of the field as it is in memory, checked against what is known."""
    image = np.ascontiguousarray(IMAGE[..., [CHANNELS.index(name) for name in channels]])
    table = cut_field(Field("a", image, channels), SETTINGS).cells
    assert len(table) == len(NUCLEI)
    nuclei = table["cell_area"] if channels == ("nucleus",) else table["nucleus_area"]
    assert (nuclei / DISC).between(0.97, 1.03).all()
    assert all((table[f"{name}_intensity_max"] == LEVELS[name]).all() for name in channels)
    if channels == ("nucleus",):
        places = table[["centroid_row", "centroid_col"]].round().astype(int).to_numpy().tolist()
        assert sorted(map(tuple, places)) == sorted(NUCLEI)
    return table


def check_table(way: Way, report, store) -> None:
    assert report.quarantine.empty and store.channels == way.channels
    table, known = store.index, reference(way.channels)
    gains = dict(zip(CHANNELS, way.gain, strict=True)) if isinstance(way.gain, tuple) else dict.fromkeys(CHANNELS, way.gain)
    assert len(table) == len(known)
    for column in ("cell_area", *(() if way.channels == ("nucleus",) else ("nucleus_area",))):
        np.testing.assert_allclose(table[column], known[column], rtol=0.01 + way.tolerance, err_msg=column)
    for name in way.channels:
        for what in ("mean", "max") if way.tolerance < 0.01 else ("mean",):  # JPEG rings at edges
            measured = table[f"{name}_intensity_{what}"].to_numpy() / gains[name] + way.offset
            np.testing.assert_allclose(measured, known[f"{name}_intensity_{what}"], rtol=5e-3 + way.tolerance, err_msg=f"{name} {what}")
    area_um2 = way.area_um2 or (way.pixel_um**2 if way.pixel_um else None)
    if area_um2 is None:
        assert table["cell_area_um2"].isna().all()
    else:
        np.testing.assert_allclose((table["cell_area_um2"] / table["cell_area"]).astype(float), area_um2, rtol=1e-4)
    shown = " ".join(report.notes)
    assert all(note in shown for note in way.notes), shown


@pytest.mark.parametrize("name", WAYS)
def test_the_same_table_or_a_refusal_that_names_the_option(tmp_path, name):
    way, folder = WAYS[name], tmp_path / "fields"
    folder.mkdir()
    way.write(folder)
    if way.refused:
        try:
            report, _ = table_of(folder, tmp_path / "refused", "")
            said = " ".join(report.quarantine["reason"])
        except ValueError as error:
            said = str(error)
        assert re.search(way.refused, said) and "--" in said, said
    report, store = table_of(folder, tmp_path / "store", way.options)
    check_table(way, report, store)


def test_there_are_at_least_sixty_ways():
    assert len(WAYS) >= 60


ALIKE = ("png", "pages", "ome 16 bits", "packed 12 bits", "imagej float", "float64 of 0 to 1", "png 12 of 16 bits", "12 bits with a hot pixel", "uint32", "int16")


def test_crops_are_alike_however_the_field_is_stored(tmp_path):
    """The network sees the same, so it answers the same."""
    seen = {}
    for name in ALIKE:
        folder = tmp_path / name.replace(" ", "_")
        folder.mkdir()
        WAYS[name].write(folder)
        _, store = table_of(folder, tmp_path / f"{folder.name}_store", WAYS[name].options)
        seen[name] = store.crops(np.arange(len(store))).astype(int)
    for name, crops in seen.items():
        assert np.abs(crops - seen[ALIKE[0]]).max() <= 1, name
