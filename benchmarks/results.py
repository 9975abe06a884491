"""How fast results are encoded, beside plain highdicom and dcmqi's itkimage2segimage.

A CT of 300×512×512 with 1, 10 and 104 segments becomes a Segmentation; 1, 100 and 1,000 detections
become a report; the key slices become pictures; Segmentation and report pass the gate. Each figure
comes from a process of its own, from the findings in memory to the file on disk (dcmqi: from its
files). Repeat it with the command that it prints.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import highdicom as hd
import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sr.coding import Code as PydicomCode
from pydicom.uid import ExplicitVRLittleEndian

from dicomai.dicom.codes import MILLIMETRE, Code
from dicomai.dicom.dates import Instant
from dicomai.findings import (
    Algorithm,
    Detection,
    Findings,
    Measurement,
    Segment,
    SourceImage,
    Sphere,
)
from dicomai.imaging.geometry import Grid
from dicomai.results import gate
from dicomai.results.capture import encode_sc
from dicomai.results.context import ResultContext
from dicomai.results.encode import encode, written
from dicomai.results.job import Job, job_of
from dicomai.results.seg import drawn, encode_segs, images_of
from dicomai.results.sr import encode_sr

SHAPE: Final = (300, 512, 512)
# Ellipsoids side by side: how many along k, j and i.
LATTICE: Final = {1: (1, 1, 1), 10: (2, 1, 5), 104: (4, 5, 6)}
CATEGORY, TYPE = Code("91723000", "SCT", "Anatomical Structure"), Code("39607008", "SCT", "Lung")
FAMILY: Final = Code("123110", "DCM", "Artificial Intelligence")
Labels = npt.NDArray[np.uint8]


def labels(count: int) -> Labels:
    """Return a label map of ellipsoids of which no two touch."""
    out = np.zeros(SHAPE, np.uint8)
    cells = LATTICE[count]
    steps = [extent / cell for extent, cell in zip(SHAPE, cells, strict=True)]
    for number, cell in enumerate(list(np.ndindex(*cells))[:count], start=1):
        centre = [(at + 0.5) * step for at, step in zip(cell, steps, strict=True)]
        radii = [0.45 * step for step in steps]
        box = tuple(
            slice(max(0, int(c - r)), min(extent, int(c + r) + 2))
            for c, r, extent in zip(centre, radii, SHAPE, strict=True)
        )
        grid = np.ogrid[box]
        inside = sum(((g - c) / r) ** 2 for g, c, r in zip(grid, centre, radii, strict=True)) < 1
        out[box][inside] = number
    return out


def headers() -> list[Dataset]:
    """Return what the slices of a CT say."""
    out = []
    for k in range(SHAPE[0]):
        header = Dataset()
        header.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
        header.SOPInstanceUID = f"1.2.826.0.1.3680043.10.99.1.{k + 1}"
        header.StudyInstanceUID = "1.2.826.0.1.3680043.10.99"
        header.SeriesInstanceUID = "1.2.826.0.1.3680043.10.99.1"
        header.FrameOfReferenceUID = "1.2.826.0.1.3680043.10.99.2"
        header.Modality, header.SeriesNumber, header.InstanceNumber = "CT", 3, k + 1
        header.PatientName, header.PatientID = "Muster^Erika", "PID-0815"
        header.PatientBirthDate, header.PatientSex = "19600412", "F"
        header.StudyDate, header.StudyTime, header.StudyID = "20260720", "101500", "4711"
        header.AccessionNumber, header.ReferringPhysicianName = "ACC-1", ""
        header.Rows, header.Columns = SHAPE[1:]
        header.PixelSpacing, header.SliceThickness = [0.7, 0.7], 1.0
        header.ImageOrientationPatient = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
        header.ImagePositionPatient = [-180.0, -180.0, float(k)]
        header.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        out.append(header)
    return out


def job(segments: tuple[Segment, ...] = (), detections: tuple[Detection, ...] = ()) -> Job:
    """Return what the encoders work from."""
    sources = headers()
    affine = np.diag([1.0, 0.7, 0.7, 1.0])[[2, 1, 0, 3]]
    affine[:3, 3] = [-180.0, -180.0, 0.0]
    findings = Findings(
        algorithm=Algorithm(
            name="benchmark", version="1", package_sha256="0f" * 32, manufacturer="dicomai",
            intended_use="Benchmark.", not_for="Not for patients.", family=FAMILY,
        ),
        where=Grid(
            shape_kji=SHAPE,
            index_to_lps=affine,
            frame_of_reference_uid=sources[0].FrameOfReferenceUID,
            sop_instance_uids=tuple(each.SOPInstanceUID for each in sources),
        ),
        inputs=tuple(
            SourceImage(
                study_instance_uid=each.StudyInstanceUID,
                series_instance_uid=each.SeriesInstanceUID,
                sop_class_uid=each.SOPClassUID,
                sop_instance_uid=each.SOPInstanceUID,
            )
            for each in sources
        ),
        sought="ellipsoids",
        segments=segments,
        detections=detections,
    )  # fmt: skip
    image = np.full(SHAPE, -800, np.int16)
    context = ResultContext(
        created_at=Instant(1_784_628_000_123_456), software_version="0", timezone="UTC"
    )
    return job_of(findings, sources, uuid.UUID(int=7), context, image)


def masks(map_: Labels, count: int) -> tuple[Segment, ...]:
    """Return a segment for each label."""
    return tuple(
        Segment(
            label=f"S{number}", tracking_id=f"s{number}", category=CATEGORY, type=TYPE,
            mask=map_ == number,
        )
        for number in range(1, count + 1)
    )  # fmt: skip


def ours(map_: Labels, count: int, out: Path) -> Callable[[], None]:
    """Return how dicomai writes a SEG."""
    made = job(masks(map_, count))

    def run() -> None:
        (seg,) = encode_segs(made, drawn(made.findings), ("SEG", "SR"))
        out.write_bytes(written(seg.dataset))

    return run


def highdicom(map_: Labels, count: int, out: Path) -> Callable[[], None]:
    """Return how highdicom writes one from the label map."""
    images = images_of(job())
    family = PydicomCode(FAMILY.value, FAMILY.scheme, FAMILY.meaning)

    def run() -> None:
        described = [
            hd.seg.SegmentDescription(
                segment_number=number,
                segment_label=f"S{number}",
                segmented_property_category=PydicomCode(
                    CATEGORY.value, CATEGORY.scheme, CATEGORY.meaning
                ),
                segmented_property_type=PydicomCode(TYPE.value, TYPE.scheme, TYPE.meaning),
                algorithm_type="AUTOMATIC",
                algorithm_identification=hd.AlgorithmIdentificationSequence(
                    name="benchmark", family=family, version="1"
                ),
            )
            for number in range(1, count + 1)
        ]
        hd.seg.Segmentation(
            source_images=images, pixel_array=map_, segmentation_type="BINARY",
            segment_descriptions=described, series_instance_uid=hd.UID(), series_number=1,
            sop_instance_uid=hd.UID(), instance_number=1, manufacturer="x",
            manufacturer_model_name="y", software_versions="1", device_serial_number="1",
        ).save_as(out)  # fmt: skip

    return run


def report(count: int, out: Path) -> Callable[[], None]:
    """Return how a report on many balls is written."""
    found = tuple(
        Detection(
            label="Nodule", tracking_id=f"nodule {number}", finding=TYPE, probability=0.5,
            region=Sphere(centre_lps_mm=(0.0, 0.0, float(number % 300)), diameter_mm=6.0),
            measurements=(
                Measurement(name=Code("81827009", "SCT", "Diameter"), value=6.0, unit=MILLIMETRE),
            ),
        )
        for number in range(count)
    )  # fmt: skip
    made = job(detections=found)
    return lambda: out.write_bytes(written(encode_sr(made, ()))) and None


def previews(count: int, out: Path) -> Callable[[], None]:
    """Return how the pictures of key slices are made."""
    made = job(masks(labels(count), count))
    return lambda: out.write_bytes(b"".join(written(each) for each in encode_sc(made))) and None


def passing(count: int, out: Path) -> Callable[[], None]:
    """Return how Segmentation and report are checked."""
    made = job(masks(labels(count), count))
    results = encode(made.findings, made.sources, made.uuid, made.context)
    files = [written(each) for each in results]
    out.write_bytes(b"".join(files))
    return partial(gate.check, files, made.findings, made.sources)


def one(case: str, count: int, folder: Path) -> None:
    """Print what a case takes, as JSON."""
    out = folder / f"{case}.dcm"
    if case == "sr":
        run = report(count, out)
    elif case == "preview":
        run = previews(count, out)
    elif case == "gate":
        run = passing(count, out)
    else:
        run = {"dicomai": ours, "highdicom": highdicom}[case](labels(count), count, out)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, wall, cpu = _memory("VmRSS"), time.perf_counter(), time.process_time()
    run()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    more = _memory("VmHWM") - before
    print(json.dumps({"wall": wall, "cpu": cpu, "bytes": more, "size": out.stat().st_size}))


def _memory(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise KeyError(name)


def dcmqi(count: int, folder: Path) -> dict[str, float]:
    """Return what dcmqi takes, from its files to its file."""
    source = folder / "source"
    if not source.exists():
        _write_source(source)
    map_, meta = folder / f"{count}.nrrd", folder / f"{count}.json"
    vectors = "(0.7,0,0) (0,0.7,0) (0,0,1)"
    head = (
        "NRRD0004\ntype: unsigned char\ndimension: 3\nspace: left-posterior-superior\n"
        f"sizes: 512 512 {SHAPE[0]}\nspace directions: {vectors}\nkinds: domain domain domain\n"
        "endian: little\nencoding: raw\nspace origin: (-180,-180,0)\n\n"
    )
    map_.write_bytes(head.encode() + labels(count).tobytes())

    def coded(code: Code) -> dict[str, str]:
        return {"CodeValue": code.value, "CodingSchemeDesignator": code.scheme,
                "CodeMeaning": code.meaning}  # fmt: skip

    segments = [
        {"labelID": number, "SegmentLabel": f"S{number}", "SegmentAlgorithmType": "AUTOMATIC",
         "SegmentAlgorithmName": "benchmark", "recommendedDisplayRGBValue": [200, 60, 60],
         "SegmentedPropertyCategoryCodeSequence": coded(CATEGORY),
         "SegmentedPropertyTypeCodeSequence": coded(TYPE)}
        for number in range(1, count + 1)
    ]  # fmt: skip
    meta.write_text(json.dumps({"ContentCreatorName": "x", "SeriesDescription": "x",
                                "SeriesNumber": "1", "InstanceNumber": "1",
                                "segmentAttributes": [segments]}))  # fmt: skip
    program = shutil.which("itkimage2segimage", path=f"{Path(sys.executable).parent}:/usr/bin")
    assert program is not None, "pip install dcmqi"
    out = folder / "dcmqi.dcm"
    began = time.perf_counter()
    process = subprocess.Popen(
        [program, "--inputDICOMDirectory", source, "--inputImageList", map_, "--inputMetadata",
         meta, "--outputDICOM", out, "--skip", "1"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    _, status, used = os.wait4(process.pid, 0)
    assert status == 0
    return {
        "wall": time.perf_counter() - began,
        "cpu": used.ru_utime + used.ru_stime,
        "bytes": used.ru_maxrss * 1024,
        "size": out.stat().st_size,
    }


def _write_source(folder: Path) -> None:
    folder.mkdir()
    for k, header in enumerate(headers()):
        header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
        header.BitsAllocated, header.BitsStored, header.HighBit = 16, 16, 15
        header.PixelRepresentation = 1
        header.PixelData = bytes(2 * SHAPE[1] * SHAPE[2])
        header.file_meta = FileMetaDataset()
        header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        header.save_as(folder / f"{k:03}.dcm", enforce_file_format=True)


def child(case: str, count: int, folder: Path) -> dict[str, float]:
    """Measure a case in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--one", case, str(count), str(folder)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    read: dict[str, float] = json.loads(done.stdout)
    return read


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        one(asked.one[0], int(asked.one[1]), Path(asked.one[2]))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cases: list[tuple[str, str, Callable[[], dict[str, float]]]] = []
        for count in LATTICE:
            cases += [
                (f"SEG, {count}", "dicomai", partial(child, "dicomai", count, folder)),
                (f"SEG, {count}", "highdicom", partial(child, "highdicom", count, folder)),
                (f"SEG, {count}", "dcmqi", partial(dcmqi, count, folder)),
            ]
        cases += [
            (f"SR, {count}", "dicomai", partial(child, "sr", count, folder))
            for count in (1, 100, 1000)
        ]
        cases.append(("pictures, 10", "dicomai", partial(child, "preview", 10, folder)))
        cases += [
            (f"gate, {count}", "dicomai", partial(child, "gate", count, folder))
            for count in LATTICE
        ]
        measured = [[run() for _, _, run in cases] for _ in range(asked.rounds)]
    print("| what | by | processor s | s | more memory MB | object MB |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for number, (what, who, _) in enumerate(cases):
        said = [each[number] for each in measured]
        cpu, wall, more, size = (
            statistics.median(each[key] for each in said)
            for key in ("cpu", "wall", "bytes", "size")
        )
        print(
            f"| {what} | {who} | {cpu:.2f} | {wall:.2f} | {more / 1e6:,.0f} | {size / 1e6:,.1f} |"
        )
    print(f"\npython benchmarks/results.py --rounds {asked.rounds}")


if __name__ == "__main__":
    main()
