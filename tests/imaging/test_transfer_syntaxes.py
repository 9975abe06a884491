"""One picture in many encodings: the values that other decoders agree on, or a sentence."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

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
