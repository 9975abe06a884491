"""What all encoders of one analysis work from: findings, headers of the images, time and side."""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileMetaDataset

from dicomai.dicom import dates
from dicomai.dicom.transfer_syntax import LOSSY
from dicomai.errors import InputError
from dicomai.findings import Findings
from dicomai.imaging.attributes import text
from dicomai.imaging.frame import frames_of, header_of_only_frame
from dicomai.imaging.geometry import Grid
from dicomai.results import uids
from dicomai.results.context import ResultContext
from dicomai.results.source import Carried, carried, sides_of


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Job:
    """What both encoders work from.

    Attributes
    ----------
    findings
        What to encode.
    sources
        Headers of the source images, by slice.
    uuid
        Of the job; every UID of its results comes from it.
    context
        Who encodes, and when.
    carried
        What goes from the source into its results.
    image
        The voxels (K, J, I) or pixels (J, I) that the model saw; None where no object shows them.
    side
        That every slice says it shows; empty where they differ or don't say. Kept, for hundreds of
        results may have it, and each would read all frames.
    """

    findings: Findings
    sources: tuple[Dataset, ...]
    uuid: uuid.UUID
    context: ResultContext
    carried: Carried
    image: npt.NDArray[np.generic] | None = None
    side: str = ""

    def slices(self) -> tuple[Dataset, ...]:
        """Return a header for each slice of the grid, by k, or that of the projection image.

        A frame of an enhanced object is laid out like an image of its own, with its
        ReferencedFrameNumber.

        Raises
        ------
        InputError
            The findings lie on an image that is no source, or on those of several series.
        """
        where = self.findings.where
        by_uid = {str(source.SOPInstanceUID): source for source in self.sources}
        named = where.sop_instance_uids if isinstance(where, Grid) else (where.sop_instance_uid,)
        missing = [each for each in named if each not in by_uid]
        depth = where.shape_kji[0] if isinstance(where, Grid) else 1
        if missing or len(named) != depth:
            raise InputError(
                f"encode: {self.findings.algorithm.name} looked at {depth} slices, but "
                f"{len(missing) or 'some'} of them have no source image. Analyse the series again.",
                subject=missing[0] if missing else "",
            )
        series = {text(by_uid[each], "SeriesInstanceUID") for each in named}
        if len(series) > 1:  # a result says of one that it was derived from it
            raise InputError(
                f"encode: {self.findings.algorithm.name} looked at slices of {len(series)} series "
                f"({', '.join(sorted(series)[:2])}) as one volume, and a result lies on those of "
                "one. Analyse each series by itself.",
                subject=min(series),
            )
        if not isinstance(where, Grid) or not where.frame_numbers:
            return tuple(by_uid[each] for each in named)
        frames = {uid: [each.header for each in frames_of(by_uid[uid])] for uid in set(named)}
        return tuple(
            frames[uid][number - 1] if number else by_uid[uid]
            for uid, number in zip(named, where.frame_numbers, strict=True)
        )

    @property
    def compressed_with_loss(self) -> Dataset | None:
        """A source image that was once compressed with loss (PS3.3 C.7.6.1.1.5), if there is."""
        return next(
            (
                each
                for each in self.sources
                if text(each, "LossyImageCompression") == "01" or came_with_loss(each)
            ),
            None,
        )

    @property
    def date_and_time(self) -> tuple[str, str]:
        """Date and time of the results, at their offset from UTC."""
        return dates.da_and_tm(self.context.created_at, self.offset)

    @property
    def offset(self) -> str:
        """Timezone Offset From UTC of the results."""
        study = self.carried.dataset
        return dates.utc_offset(
            str(self.sources[0].get("TimezoneOffsetFromUTC") or ""),
            self.context.timezone,
            str(study.StudyDate or ""),
            str(study.StudyTime or ""),
        )

    @property
    def device_uid(self) -> str:
        """Device UID of the model."""
        return uids.device_uid(self.findings.algorithm.package_sha256)

    def series_number(self, kind: uids.Kind) -> int:
        """Return the Series Number of the results of one kind."""
        number = text(self.sources[0], "SeriesNumber")
        known = re.fullmatch(r"[+-]?[0-9]{1,11}", number) is not None
        return uids.series_number(int(number) if known else None, kind)


def job_of(
    findings: Findings,
    sources: Sequence[Dataset],
    job: uuid.UUID,
    context: ResultContext,
    image: npt.NDArray[np.generic] | None = None,
) -> Job:
    """Return what the encoders work from, or say why these sources give no result."""
    if not sources:
        raise InputError("encode: there is no source image, so no patient to write a result for.")
    made = Job(
        findings=findings,
        sources=tuple(sources),
        uuid=job,
        context=context,
        carried=carried(sources[0], context.charset_default),
        image=image,
    )
    return replace(made, side=_side(made))


def _side(job: Job) -> str:
    """Return the side that every slice says it shows, its object or its frame; else ""."""
    objects = {str(each.SOPInstanceUID): sides_of(each) for each in job.sources}
    frames = map(header_of_only_frame, job.slices())
    said = {objects[str(each.SOPInstanceUID)] | sides_of(each) for each in frames}
    sides = said.pop() if len(said) == 1 else frozenset()
    return next(iter(sides)) if len(sides) == 1 else ""


def came_with_loss(image: Dataset) -> bool:
    """Tell whether an image is compressed with loss as it came, whatever it says of that."""
    meta = getattr(image, "file_meta", None) or FileMetaDataset()
    return meta.get("TransferSyntaxUID") in LOSSY
