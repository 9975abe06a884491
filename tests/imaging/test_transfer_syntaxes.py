"""One picture in many encodings: the values that other decoders agree on, or a sentence."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import RLELossless

from dicomai.errors import InputError
from dicomai.imaging.pixels import check_greyscale, stored_values
from dicomai.imaging.series import read_object

WITHOUT_DECODER = {
    "1.2.840.10008.1.2.4.51",
    "1.2.840.10008.1.2.4.53",
    "1.2.840.10008.1.2.4.55",
    "1.2.840.10008.1.2.4.57",
    "1.2.840.10008.1.2.4.70",
}


def test_lossless_images_have_the_values_that_all_decoders_agree_on(sample_data: Path) -> None:
    folder = sample_data / "transfer-syntaxes"
    syntaxes = set()
    for name, truth in json.loads((folder / "truth.json").read_text())["files"].items():
        if truth.get("frames") != 1 or truth["samples"] != 1 or truth["lossy"]:
            continue
        if not truth["photometric"].startswith("MONOCHROME") or "float" in truth["dtype"]:
            continue
        dataset = read_object(folder / name)
        check_greyscale(dataset)
        if truth["transfer_syntax"] in WITHOUT_DECODER:
            with pytest.raises(InputError, match=truth["transfer_syntax"].replace(".", r"\.")):
                stored_values(dataset)
            continue
        values = stored_values(dataset).astype(truth["dtype"])
        assert hashlib.sha256(values.tobytes()).hexdigest() == truth["sha256"], name
        syntaxes.add(truth["transfer_syntax"])
    assert len(syntaxes) >= 9


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ct512_jpeg-lossless-57", "(Process 14) (1.2.840.10008.1.2.4.57): no decoder for it"),
        ("ct512_jpeg-extended-51", "(1.2.840.10008.1.2.4.51): every decoder refuses it."),
        ("ct512_jpeg-spectral-53-retired", "(1.2.840.10008.1.2.4.53): no decoder for it"),
    ],
)
def test_what_nobody_here_decodes_is_said_shortly(sample_data: Path, name: str, words: str) -> None:
    dataset = read_object(sample_data / "transfer-syntaxes" / "ct512" / f"{name}.dcm")
    with pytest.raises(InputError) as error:
        stored_values(dataset)
    assert words in error.value.sentence
    assert dataset.SOPInstanceUID in error.value.sentence


@pytest.mark.parametrize("overlay", [0x0000, 0xA000])
@pytest.mark.parametrize("signed", [False, True])
def test_rle_with_something_in_its_unused_bits_gives_the_stored_values(
    signed: bool, overlay: int
) -> None:
    truth = np.arange(256).reshape(16, 16) * 7 - (900 if signed else 0)
    words = (truth.astype("<i2").view("<u2") & 0x0FFF) | overlay
    planes = [(words >> 8).astype(np.uint8).tobytes(), (words & 0xFF).astype(np.uint8).tobytes()]
    rows = [  # PS3.5 G.3: each row a literal run
        b"".join(b"\x0f" + plane[at : at + 16] for at in range(0, 256, 16)) for plane in planes
    ]
    header = struct.pack("<16L", 2, 64, 64 + len(rows[0]), *[0] * 13)
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = RLELossless
    dataset.Rows = dataset.Columns = 16
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelRepresentation = int(signed)
    dataset.PixelData = encapsulate([header + rows[0] + rows[1]])
    np.testing.assert_array_equal(stored_values(dataset), truth)
