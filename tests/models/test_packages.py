"""A package is what its digest says, and only what an administrator pinned may run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from dicomai.errors import ConfigError
from dicomai.models import model_toml, package, trust
from dicomai.models.registry import Registry, open_registry


def edit(folder: Path, old: str, new: str) -> None:
    path = folder / "model.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('sought = "Lungs"', 'saught = "Lungs"', ("saught", "no such key", "sought", "is missing")),
        ("clip = [-1000, 400]", "clip = [400, -1000]", ("preprocess.clip", "below the second")),
        ("clip = [-1000, 400]", "", ("preprocess", "either clip or clip_percentiles")),
        ("clip = [-1000, 400]", 'clip = [-1000, 400]\naxes = "HHL"', ("preprocess.axes", "HPL")),
        ('kind = "segment"', 'kind = "segmint"', ("output[0]", "segmint")),
        ('label = "Lungs"', 'label = "Lungs"\nthreshold = 1.5', ("output[0].threshold", "1.5")),
        ('sought = "Lungs"', 'sought = "x"\nweights = "../w.safetensors"', ("weights", "folder")),
        ("[16, 16, 16]", "[16, 0, 16]", ("infer.window_kji[1]", "greater than 0")),
        ('name = "lungs"', 'name = "Lungs!"', ("name", "Lungs!")),
        ("format = 1", "format = 2", ("format", "2")),
        (
            "Modality = CT",
            "Modalty = CT",
            ('input[0].when[0]: "Modalty" is no DICOM keyword; "Modality"? See PS3.6.',),
        ),
        ('["volume"]', '["mass"]', ("measure.segment[0]: input should be 'volume'",)),
        ("[[input]]", "[input]", ("input: there may be several: write [[input]],",)),
        ('when = ["Modality = CT"]', 'when = "Modality = CT"', ("input[0].when: must be a list,",)),
        ("[4.0, 4.0, 4.0]", "4.0", ("spacing_mm: must be a list, in brackets, not 4.0",)),
        ("[4.0, 4.0, 4.0]", "[4, 4, 4, 1]", ("spacing_mm: has 4 entries, and takes 3",)),
        ('{ value = "39607008", scheme = "SCT", meaning = "Lung" }', '"Lung"', ("table of keys",)),
        ('"39607008"', "39607008", ("type.value: must be text, in quotes, not 39607008",)),
        ('scheme = "SCT"', 'scheme = "SNOMED-CT"', ("category.scheme: DICOM calls this", '"SCT"')),
        (
            'kind = "segment"',
            'kind = "age"',
            ("output[0]: kind must be one of 'segment', 'detection'",),
        ),
        ('kind = "segment"', "", ("output[0]: kind is missing; add it",)),
        ('"1.0.0"', '"1.0"', ('version: must be three numbers with dots between, as "1.0.0"',)),
        ('name = "lungs"', 'name = "My_Lungs"', ("name: must be small letters, digits and hyph",)),
        ("{ channels = [4, 8] }", "[4, 8]", ("infer.arguments: must be a table of keys",)),
        ("[4, 8] }", "{ a = 4 } }", ("infer.arguments.channels: must be text, a number,",)),
        ("-instances", "-instanses", ("input[0].prefer[0]", '"instances"?')),
        ("format = 1", "format = ", ("not TOML",)),
    ],
)
def test_a_wrong_manifest_is_named_with_file_key_and_remedy(
    lungs_package: Path, old: str, new: str, words: tuple[str, ...]
) -> None:
    edit(lungs_package, old, new)
    with pytest.raises(ConfigError) as error:
        package.load(lungs_package)
    for word in (str(lungs_package / "model.toml"), *words):
        assert word in error.value.sentence
    assert not re.search(r"validation|tuple|dictionary|pattern|tag", error.value.sentence)
    lines = error.value.sentence.splitlines()
    assert len(lines) == len({each.split(": ")[0] for each in lines})


def test_a_manifest_that_was_saved_on_windows_is_read(lungs_package: Path) -> None:
    path = lungs_package / "model.toml"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))

    assert package.load(lungs_package).manifest.name == "lungs"


def test_a_manifest_in_another_encoding_is_named_with_the_remedy(lungs_package: Path) -> None:
    path = lungs_package / "model.toml"
    path.write_text(path.read_text(), encoding="utf-16")
    with pytest.raises(ConfigError, match=r"model\.toml: not UTF-8: .*Save it as UTF-8\."):
        package.load(lungs_package)


def test_a_folder_within_a_folder_is_told_of(lungs_package: Path) -> None:
    models = lungs_package.parent
    (models / "chest").mkdir()
    lungs_package.rename(models / "chest" / "lungs")
    registry = open_registry(models)
    assert (registry.lacking, "chest" in registry.names) == (("chest",), False)
    with pytest.raises(ConfigError) as error:
        registry.get("chest")
    assert str(models / "chest" / "model.toml") in error.value.sentence
    assert error.value.sentence.endswith(f"{models / 'chest' / 'lungs'} is one; take that.")


def test_the_digest_depends_on_every_file_and_on_nothing_else(lungs_package: Path) -> None:
    first = package.load(lungs_package)
    (lungs_package / "notes.txt").write_text("not part of it")
    moved = lungs_package.rename(lungs_package.parent / "elsewhere")
    assert package.load(moved).sha256 == first.sha256
    digests = {first.sha256}
    for name in ("model.toml", "CARD.md", "weights.safetensors"):
        with (moved / name).open("ab") as file:
            file.write(b"\n")
        digests.add(package.load(moved).sha256)
    assert len(digests) == 4


def test_a_package_that_changed_after_it_was_read_is_refused(lungs_package: Path) -> None:
    loaded = package.load(lungs_package)
    package.verify(loaded)
    edit(lungs_package, "4.0", "5.0")
    with pytest.raises(ConfigError, match="has changed since"):
        package.verify(loaded)


def test_a_missing_weights_file_is_named(lungs_package: Path) -> None:
    (lungs_package / "weights.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"weights\.safetensors is missing"):
        package.load(lungs_package)


@pytest.mark.parametrize("name", ["model.toml", "CARD.md", "weights.safetensors"])
def test_a_file_that_cannot_be_read_is_named(lungs_package: Path, name: str) -> None:
    (lungs_package / name).unlink()
    (lungs_package / name).mkdir()
    with pytest.raises(ConfigError, match=rf"{name} can't be read: Is a directory\. Copy"):
        open_registry(lungs_package.parent).get("lungs")


def test_only_a_pinned_digest_runs(lungs_package: Path) -> None:
    models = lungs_package.parent
    with pytest.raises(ConfigError, match="dicomai models trust lungs"):
        open_registry(models).get_trusted("lungs")
    trust.trust(models, package.load(lungs_package))
    assert open_registry(models).get_trusted("lungs").name == "lungs"
    edit(lungs_package, "4.0", "5.0")
    with pytest.raises(ConfigError, match="nobody trusted"):
        open_registry(models).get_trusted("lungs")
    trust.trust(models, package.load(lungs_package))
    assert len(trust.read_pins(models / trust.TRUSTED_NAME)["lungs"]) == 2


def test_a_wrong_pin_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "trusted.toml").write_text('lungs = ["3f"]\n')
    with pytest.raises(ConfigError, match=r"trusted\.toml, lungs"):
        open_registry(tmp_path)


def test_an_unknown_name_proposes_the_nearest(lungs_package: Path) -> None:
    registry = Registry(folders=(lungs_package.parent,), pins={})
    assert registry.names == ("lungs",)
    with pytest.raises(ConfigError) as error:
        registry.get("lung")
    assert error.value.sentence == 'no package "lung"; "lungs"? See: dicomai models'
    with pytest.raises(ConfigError, match=r'no package "../lungs"'):
        registry.get("../lungs")


def test_the_folder_bears_the_name_of_its_package(lungs_package: Path) -> None:
    lungs_package.rename(lungs_package.parent / "thorax")
    with pytest.raises(ConfigError, match="same name"):
        open_registry(lungs_package.parent).get("thorax")


def test_listing_packages_loads_no_torch() -> None:
    code = (
        "import sys, dicomai.models.registry as r; r.open_registry().names; "
        "assert not {'torch', 'scipy', 'highdicom', 'sqlalchemy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_an_answer_of_every_kind_is_read(lungs_package: Path) -> None:
    read = model_toml.read(lungs_package / "model.toml")
    (output,) = read.output
    assert output.kind == "segment"
    assert output.type.code.meaning == "Lung"
    assert package.load(lungs_package).algorithm.family.value == "123110"
