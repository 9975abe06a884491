"""Every series of the sample folders in every form of a result, and what others say of them.

`python tests/results/every_series.py FOLDER…` prints what became of each series: nothing where all
is well, else who complains and what of. Without a folder it takes those of `DICOMAI_TEST_DATA`.
"""

from __future__ import annotations

import copy
import gzip
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import uuid
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import highdicom as hd
import numpy as np
import numpy.typing as npt
import pydicom
from pydicom import Dataset
from scipy import ndimage
from scipy.spatial import KDTree

from dicomai.dicom.codes import MILLILITRE, Code
from dicomai.dicom.dates import Instant
from dicomai.errors import DicomaiError, InputError
from dicomai.findings import (
    Algorithm,
    Classification,
    Detection,
    Findings,
    Measurement,
    PixelBox,
    Segment,
    Sphere,
)
from dicomai.imaging.geometry import Grid
from dicomai.imaging.image import SourceImagePixels, image_of
from dicomai.imaging.intake import Intake
from dicomai.imaging.series import read_object
from dicomai.imaging.volume import SourceVolume, volumes_of
from dicomai.inference.inputs import inputs_of
from dicomai.results import gate
from dicomai.results.context import ResultContext
from dicomai.results.encode import encode, written
from dicomai.results.known_class import is_known
from dicomai.routing.route import ResultObject
from dicomai.service import received
from dicomai.service.received import Reading

Source: TypeAlias = SourceVolume | SourceImagePixels

FORMS: tuple[ResultObject, ...] = (
    "SEG",
    "SR",
    "SC",
    "KO",
    "PR",
    "PM",
    "RTSTRUCT",
    "PDF",
    "SR:ENHANCED",
    "SR:TEXT",
)
LABELS: tuple[ResultObject, ...] = ("SEG:LABELMAP", "SR")
"""Apart from the others: those of Debian's programs that are asked about these don't know them."""
SEG = "1.2.840.10008.5.1.4.1.1.66.4"
COMPREHENSIVE_3D_SR = "1.2.840.10008.5.1.4.1.1.88.34"
EXPLAINED = (
    "GeneralSeriesModule/Laterality",
    "PatientOrientation: Incorrect value multiplicity - got 2 but expected 1-1",
    "Illegal character(s)",
    "not found in context group 100",
    "DerivationImageMacro/DerivationImageSequence/: SharedFunctionalGroupsSequence/Item[1]/",
)
"""What PixelMed finds wrong wrongly, see docs/air.md."""
BODY = Code("38266002", "SCT", "Entire body")
STRUCTURE = Code("123037004", "SCT", "Body structure")
VOLUME = Code("118565006", "SCT", "Volume")
CONTEXT = ResultContext(
    created_at=Instant(1_784_628_000_123_456), software_version="0.1.0", timezone="UTC"
)
ALGORITHM = Algorithm(
    name="echo",
    version="1.0.0",
    package_sha256="a" * 64,
    manufacturer="ACME",
    intended_use="Tests.",
    not_for="Not for patients.",
    family=Code("123110", "DCM", "Artificial Intelligence"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What became of the results on one series.

    `refused` says why there are none; `complaints` what others found, each with its name.
    """

    name: str
    refused: str = ""
    complaints: tuple[str, ...] = ()


def sets(data: Path) -> dict[str, Path]:
    """Return every folder and archive of DICOM, by its name."""
    found = {"ct-chest-lidc": data / "ct-chest-lidc" / "LIDC-IDRI-0001.tar.xz"}
    for parent in ("modalities", "mr-hippocampus/dicom", "ibsi-digital-phantom/dicom",
                   "transfer-syntaxes", "odd", "odd/made"):  # fmt: skip
        for path in sorted((data / parent).iterdir()):
            if (path.is_dir() and path.name != "made") or path.name.endswith(".tar.xz"):
                found[f"{parent}/{path.name}"] = path
    return found


def unpacked(path: Path, to: Path) -> Path:
    """Return the folder of a set."""
    if not path.name.endswith(".tar.xz"):
        return path
    with tarfile.open(path) as archive:
        archive.extractall(to, filter="data")
    return to


def sources(folder: Path) -> Iterator[tuple[str, Source]]:
    """Yield what the engine makes of each series: its volumes, else its images.

    A slice that stands alone stands for three, and one whose frame of reference anonymising took
    away gets one: it is the rest of its header that is of interest.
    """
    for name, datasets in series_of(folder):
        for each in datasets:
            each.setdefault("FrameOfReferenceUID", "1.2.3")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pydicom, about values that break their rules
            yield from ((f"{name} {n}", each) for n, each in enumerate(_sources(datasets)))


def _sources(datasets: list[Dataset]) -> Iterator[Source]:
    slices = _three(datasets[0]) if len(datasets) == 1 else datasets
    try:
        yield from volumes_of(slices, Intake(uneven_mm=100.0))
    except DicomaiError:
        for each in datasets:
            try:
                yield image_of(each, Intake(colour=each.get("SamplesPerPixel") == 3))
            except DicomaiError:
                continue


def _three(dataset: Dataset) -> list[Dataset]:
    position = dataset.get("ImagePositionPatient") or ()
    directions = dataset.get("ImageOrientationPatient") or ()
    if "PerFrameFunctionalGroupsSequence" in dataset or (len(position), len(directions)) != (3, 6):
        return [dataset]
    out = []
    for k in range(3):
        each = copy.deepcopy(dataset)
        each.SOPInstanceUID = f"{dataset.SOPInstanceUID}.{k}"[-64:].lstrip(".0")
        row, column = np.array(directions, float).reshape(2, 3)
        moved = np.array(position, float) + 2.0 * k * np.cross(row, column)
        each.ImagePositionPatient = [f"{value:.8g}" for value in moved]
        out.append(each)
    return out


def series_of(folder: Path) -> Iterator[tuple[str, list[Dataset]]]:
    """Yield the objects of each series under a folder that can be read."""
    found: dict[tuple[str, str], list[Dataset]] = {}
    seen: set[str] = set()
    names: dict[tuple[str, str], str] = {}
    files = [folder] if folder.is_file() else folder.rglob("*")
    for path in sorted(each for each in files if each.is_file()):
        try:
            received.read_object(path, Reading())
            dataset = read_object(path)
        except InputError:
            continue  # it goes to the quarantine
        if str(dataset.get("SOPInstanceUID")) in seen or "PixelData" not in dataset:
            continue
        seen.add(str(dataset.SOPInstanceUID))
        key = (str(dataset.get("StudyInstanceUID")), str(dataset.get("SeriesInstanceUID")))
        found.setdefault(key, []).append(dataset)
        names.setdefault(key, path.name)
    for key, datasets in found.items():
        yield names[key], datasets


def findings_of(source: Source) -> Findings:
    """Return the echo of an outline: the largest part that is bright, its middle, a yes."""
    values = source.voxels if isinstance(source, SourceVolume) else source.grey[None]
    width = max(3, max(values.shape) // 12)  # or the outline follows the noise
    smooth = ndimage.uniform_filter(values.astype(np.float32), (1, width, width))
    labels, count = ndimage.label(smooth > smooth.mean())
    mask = labels == 1 + np.bincount(labels.ravel())[1:].argmax() if count else labels == 0
    indices = np.argwhere(mask)
    middle = indices[len(indices) // 2]
    volume = Measurement(name=VOLUME, value=12.5, unit=MILLILITRE)
    isa = isinstance(source, SourceVolume)
    segment = Segment(
        label="Outline",
        tracking_id="outline",
        category=STRUCTURE,
        type=BODY,
        mask=mask,
        probability=np.full(len(indices), 0.75, np.float32),
        measurements=(volume,) if isa else (),
    )
    if isinstance(source, SourceVolume):
        x, y, z = source.grid.lps_mm(middle)
        region: Sphere | PixelBox = Sphere(
            centre_lps_mm=(float(x), float(y), float(z)), diameter_mm=4.0
        )
    else:
        last = (float(middle[1]), float(middle[2]))
        region = PixelBox(
            sop_instance_uid=source.plane.sop_instance_uid, first_ji=last, last_ji=last
        )
    spot = Detection(label="Spot", tracking_id="spot", finding=BODY, region=region, probability=0.5)
    yes = Classification(
        label="Body", tracking_id="body", finding=BODY, present=True, probability=0.9, threshold=0.5
    )
    return Findings(
        algorithm=ALGORITHM,
        where=source.grid if isinstance(source, SourceVolume) else source.plane,
        inputs=inputs_of(source.headers),
        sought="the outline",
        segments=(segment,),
        detections=(spot,),
        classifications=(yes,),
        warnings=source.warnings,
    )


def results(
    source: Source, findings: Findings, forms: tuple[ResultObject, ...] = FORMS
) -> list[bytes]:
    """Return the checked results in these forms."""
    image = source.voxels if isinstance(source, SourceVolume) else source.grey
    made = encode(findings, source.headers, uuid.UUID(int=7), CONTEXT, forms, image)
    files = [written(each) for each in made]
    gate.check(files, findings, source.headers, wanted=forms)
    return files


def complaints(source: Source, findings: Findings, files: list[bytes], folder: Path) -> list[str]:
    """Return what other software finds in results, and what it reads otherwise."""
    paths = []
    for number, raw in enumerate(files):
        paths.append(folder / f"{number}.dcm")
        paths[-1].write_bytes(raw)
    heads = [pydicom.dcmread(io.BytesIO(raw)) for raw in files]
    images = folder / "source.dcm"
    said = list(_dciodvfy(source, heads, paths, images))
    said += [f"dcentvfy: {line}" for line in _errors("dcentvfy", *paths)]
    for head, path in zip(heads, paths, strict=True):
        dump = _run("dcmdump", path)
        said += [f"dcmdump: {line}" for line in dump.splitlines() if line[:3] in ("E: ", "W: ")]
        if head.Modality in ("SR", "KO"):
            dump = _run("dsrdump", path)
            said += [f"dsrdump: {line}" for line in dump.splitlines() if line[:3] == "E: "]
        if head.SOPClassUID == COMPREHENSIVE_3D_SR:
            if is_known(source.headers[0]):  # it reads no group with an image of another class
                said += _tid1500reader(findings, path, folder)
            hd.sr.srread(path)
        if head.SOPClassUID == SEG:
            said += _masks(source, findings, path)
    labels = folder / "labels.dcm"
    labels.write_bytes(results(source, findings, LABELS)[0])
    said += _masks(source, findings, labels)
    where = findings.where
    # What dcmqi writes has no shear, and one distance: it refuses the slices of a tilted gantry.
    if isinstance(where, Grid) and not where.slice_steps and max(map(abs, where.tilt_ji)) < 1e-3:
        for path in (paths[0], labels):
            said += _segimage2itkimage(findings, path, folder / path.stem)
    return said


def _dciodvfy(
    source: Source, heads: Sequence[Dataset], paths: Sequence[Path], images: Path
) -> Iterator[str]:
    """Yield the errors that the first source image lacks."""
    copied = copy.deepcopy(source.headers[0])
    for tag in [each.tag for each in copied if each.tag.group == 0]:
        del copied[tag]  # pydicom writes none
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        copied.save_as(images)
    had = {_bare(line) for line in _errors("dciodvfy", "-new", images)}
    for head, path in zip(heads, paths, strict=True):
        for line in _errors("dciodvfy", "-new", path):
            if _bare(line) not in had:
                yield f"dciodvfy, {head.SOPClassUID.name}: {line}"


def _bare(line: str) -> str:
    """Return an error without where it stands: a study attribute is the same in any object."""
    return re.sub(r"^Error - (?:<[^>]*> - )?", "", line)


def _errors(*command: str | Path) -> list[str]:
    return [line for line in _run(*command).splitlines() if line.startswith("Error")]


def _run(*command: str | Path) -> str:
    program = shutil.which(str(command[0])) or str(Path(sys.executable).parent / command[0])
    done = subprocess.run(
        [program, *command[1:]], capture_output=True, text=True, errors="replace", timeout=300,
        check=False,
    )  # fmt: skip
    return done.stdout + done.stderr


def _tid1500reader(findings: Findings, path: Path, folder: Path) -> Iterator[str]:
    out = folder / "report.json"
    out.unlink(missing_ok=True)
    said = _run("tid1500reader", "--inputDICOM", path, "--outputMetadata", out)
    if not out.exists():
        yield f"tid1500reader: {said.strip().splitlines()[-1:]}"
        return
    read = json.loads(out.read_text()).get("Measurements", ())
    groups = {each["TrackingIdentifier"] for each in read}
    # It reads groups that refer to a segment or image region, or have a number.
    if not groups <= {"outline", "spot", "body"} or "outline" not in groups:
        yield f"tid1500reader: it reads {sorted(groups)}"


def _masks(source: Source, findings: Findings, path: Path) -> Iterator[str]:
    """Read a Segmentation with highdicom, voxel for voxel."""
    seg = hd.seg.segread(path)
    (segment,) = findings.segments
    if isinstance(findings.where, Grid) and findings.where.frame_numbers:
        return  # the other tests read these by their frames
    where = findings.where
    uids = where.sop_instance_uids if isinstance(where, Grid) else (where.sop_instance_uid,)
    read = seg.get_pixels_by_source_instance(
        list(uids), segment_numbers=[1], assert_missing_frames_are_empty=True,
        ignore_spatial_locations=True,
    )  # fmt: skip
    if not np.array_equal(read[..., 0] > 0, segment.mask):
        yield f"highdicom: other voxels in {path.name}"


def _segimage2itkimage(findings: Findings, path: Path, folder: Path) -> Iterator[str]:
    folder.mkdir()
    said = _run(
        "segimage2itkimage", "--inputDICOM", path, "--outputDirectory", folder, "-t", "nrrd"
    )  # fmt: skip
    found = sorted(folder.glob("*.nrrd"))
    if len(found) != 1:
        yield f"segimage2itkimage: {said.strip().splitlines()[-1:]}"
        return
    voxels, affine = nrrd(found[0])
    k, j, i = np.nonzero(voxels)
    theirs = np.column_stack([i, j, k, np.ones(len(i))]) @ affine.T
    (segment,) = findings.segments
    where = findings.where
    assert isinstance(where, Grid)
    ours = where.lps_mm(np.argwhere(segment.mask))
    if len(theirs) != len(ours):
        yield f"segimage2itkimage: {len(theirs)} voxels of {len(ours)}"
    elif KDTree(theirs[:, :3]).query(ours)[0].max() > 0.01:
        yield "segimage2itkimage: voxels lie elsewhere"


def nrrd(path: Path) -> tuple[npt.NDArray[np.integer], npt.NDArray[np.float64]]:
    """Return the voxels, by (k, j, i) of the file, and the affine of (i, j, k) to LPS mm."""
    head, _, body = path.read_bytes().partition(b"\n\n")
    said = dict(line.split(": ", 1) for line in head.decode().splitlines() if ": " in line[:24])
    assert (said["encoding"], said["space"]) == ("gzip", "left-posterior-superior")
    kinds = {"short": "<i2", "unsigned short": "<u2", "unsigned char": "u1"}
    sizes = [int(each) for each in said["sizes"].split()]
    voxels = np.frombuffer(gzip.decompress(body), kinds[said["type"]]).reshape(sizes[::-1])
    vectors = [
        [float(part) for part in each.strip("()").split(",")]
        for each in [*said["space directions"].split(), said["space origin"]]
    ]
    affine = np.eye(4)
    affine[:3] = np.array(vectors).T
    return voxels, affine


def main(folders: list[Path]) -> None:
    """Print what became of each series."""
    data = Path(os.environ.get("DICOMAI_TEST_DATA", "../shared/data"))
    wanted = {str(each): each for each in folders} or sets(data)
    reports: dict[str, Path] = {}
    with tempfile.TemporaryDirectory() as there:
        kept = Path(os.environ.get("KEEP", there))
        for number, (name, path) in enumerate(wanted.items()):
            folder = unpacked(path, Path(there) / f"set-{number}")
            for count, (title, source) in enumerate(sources(folder)):
                said = one(f"{name}: {title}", source, kept / f"{number}-{count}", reports)
                print(said.name, said.refused or "; ".join(said.complaints) or "well", flush=True)
        for name, line in pixelmed(reports):
            print("PixelMed", name, line, flush=True)


def one(name: str, source: Source, folder: Path, reports: dict[str, Path]) -> Said:
    """Return what became of one series; note its report for PixelMed."""
    folder.mkdir(parents=True)
    findings = findings_of(source)
    try:
        files = results(source, findings)
    except DicomaiError as error:
        refused = "" if isinstance(error, gate.GateError) else error.sentence
        return Said(
            name=name, refused=refused, complaints=() if refused else (f"gate: {error.sentence}",)
        )
    except Exception as defect:  # noqa: BLE001  # one series shall not hide the others
        return Said(name=name, complaints=(f"defect: {type(defect).__name__}: {defect}",))
    try:
        heard = complaints(source, findings, files, folder)
    except Exception as defect:  # noqa: BLE001  # the same
        heard = [f"defect: {type(defect).__name__}: {defect}"]
    said = Said(name=name, complaints=tuple(heard))
    # PixelMed takes the first template for all groups: volumetric or planar, without the yes.
    alone = replace(findings, classifications=())
    (report,) = encode(alone, source.headers, uuid.UUID(int=8), CONTEXT)[-1:]
    (folder / "alone.dcm").write_bytes(written(report))
    reports[f"{name}, report"] = folder / "alone.dcm"
    reports[f"{name}, SEG"] = folder / "0.dcm"
    return said


def pixelmed(reports: dict[str, Path]) -> Iterator[tuple[str, str]]:
    """Yield the errors that PixelMed finds in files."""
    java = shutil.which("java")
    if java is None or not reports:
        return
    program = Path(__file__).with_name("pixelmed_process.py")
    done = subprocess.run(
        [sys.executable, program, *reports.values()],
        capture_output=True, text=True, check=True, timeout=1800,
        env={**os.environ, "JAVA_HOME": str(Path(java).resolve().parents[1])},
    )  # fmt: skip
    said = json.loads(done.stdout.splitlines()[-1])
    for name, path in reports.items():
        wanted = "Root Template Validation Complete" if name.endswith("report") else "IOD valid"
        if wanted not in said[str(path)]:
            yield name, f"it came to no end: {said[str(path)][-200:]}"
        for line in said[str(path)].splitlines():
            if line.startswith("Error") and not any(each in line for each in EXPLAINED):
                yield name, line


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # of pydicom, about values that break their rules
    main([Path(each) for each in sys.argv[1:]])
