"""What is trusted can run, and one broken package hides no other."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from safetensors.torch import save_file
from sqlalchemy import Engine

from dicomai.models.runtimes.networks import build
from dicomai.models.trust import TRUSTED_NAME
from tests.cli.conftest import Dicomai
from tests.models.conftest import write_package


@pytest.fixture
def lungs(service: Engine, tmp_path: Path) -> Path:
    """The folder of a package that a service has, and nobody trusts yet."""
    del service
    return write_package(tmp_path / "models")


def cut_off(weights: Path) -> None:
    weights.write_bytes(weights.read_bytes()[:300])


def of_another_network(weights: Path) -> None:
    save_file(build("unet3d", {"channels": (2, 2)}).state_dict(), weights)


@pytest.mark.parametrize("broken", [cut_off, of_another_network])
def test_a_package_that_cannot_run_is_not_trusted(
    lungs: Path, dicomai: Dicomai, broken: object
) -> None:
    assert callable(broken)
    broken(lungs / "weights.safetensors")
    answer = dicomai("models", "trust", "lungs")
    assert answer.code == 3
    assert "weights.safetensors does not fit network 'unet3d'" in answer.err
    assert not (lungs.parent / TRUSTED_NAME).exists()
    assert not dicomai("models", "show", "lungs", "--json").json["trusted"]


def test_a_package_that_can_run_is_trusted(lungs: Path, dicomai: Dicomai) -> None:
    answer = dicomai("models", "trust", "lungs")
    assert answer.code == 0, answer.err
    assert "lungs 1.0.0 may run now." in answer.out
    assert dicomai("models", "show", "lungs", "--json").json["trusted"]


def test_what_root_s_command_makes_belongs_to_the_service(
    lungs: Path, dicomai: Dicomai, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = (tmp_path.stat().st_uid, tmp_path.stat().st_gid)
    given = {}

    def fchown(descriptor: int, uid: int, gid: int) -> None:
        given[Path(f"/proc/self/fd/{descriptor}").readlink().name] = (uid, gid)

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "fchown", fchown)
    assert dicomai("models", "trust", "lungs").code == 0
    assert dicomai("pause", "model", "lungs").code == 0
    assert given == {"audit.jsonl": owner, f".{TRUSTED_NAME}.new": owner}
    assert len((tmp_path / "audit.jsonl").read_text().splitlines()) == 2


def test_root_that_may_give_nothing_away_has_its_commands_all_the_same(
    lungs: Path, dicomai: Dicomai, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fchown(_descriptor: int, _uid: int, _gid: int) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "fchown", fchown)
    answer = dicomai("models", "trust", "lungs")
    assert answer.code == 0, answer.err
    assert "models trust" in (tmp_path / "audit.jsonl").read_text()


def test_root_gives_away_nothing_that_a_link_in_the_data_folder_names(
    lungs: Path, dicomai: Dicomai, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []

    def fchown(descriptor: int, _uid: int, _gid: int) -> None:
        given.append(Path(f"/proc/self/fd/{descriptor}").readlink())

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    theirs = elsewhere / "shadow"
    theirs.write_text("root")
    (lungs.parent / f".{TRUSTED_NAME}.new").symlink_to(theirs)
    (tmp_path / "audit.jsonl").symlink_to(elsewhere / "audit.jsonl")  # not there yet
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "fchown", fchown)
    assert dicomai("models", "trust", "lungs").code == 0
    assert theirs.read_text() == "root"
    assert [each.parent for each in given] == [lungs.parent]
    assert "models trust" in (elsewhere / "audit.jsonl").read_text()


def test_a_package_that_cannot_be_read_hides_no_other(lungs: Path, dicomai: Dicomai) -> None:
    (lungs / "CARD.md").unlink()
    (lungs / "CARD.md").mkdir()
    answer = dicomai("models", "--json")
    assert answer.code == 0, answer.err
    listed = {each["name"]: each for each in answer.json}
    assert "CARD.md can't be read" in listed["lungs"]["error"]
    assert listed["chest-ct-lungs"]["version"] == "1.0.0"


def test_a_folder_without_a_manifest_is_listed_with_what_it_lacks(
    lungs: Path, dicomai: Dicomai
) -> None:
    (lungs.parent / "chest").mkdir()
    lungs.rename(lungs.parent / "chest" / "lungs")
    (listed,) = (each for each in dicomai("models", "--json").json if each["name"] == "chest")
    assert "is missing: a model package is a folder with a model.toml" in listed["error"]
    assert "chest/lungs is one; take that." in dicomai("models", "trust", "chest").err


def test_a_path_that_is_no_package_is_told_what_one_is(lungs: Path, dicomai: Dicomai) -> None:
    archive = lungs.with_suffix(".zip")
    archive.write_bytes(b"PK")
    for given in (archive, lungs.parent):
        answer = dicomai("run", given, lungs, "--out", lungs / "out")
        assert answer.code == 3
        assert f"{given}/model.toml is missing: a model package is a folder" in answer.err


def test_a_model_that_was_named_by_its_folder_is_looked_at_there(
    tmp_path: Path, dicomai: Dicomai
) -> None:
    package = write_package(tmp_path / "mine")
    assert dicomai("phantom", "xray", tmp_path / "images").code == 0
    answer = dicomai("run", package, tmp_path / "images", "--out", tmp_path / "out")
    assert f"What the model wants: {package}/model.toml." in "".join(answer.out.splitlines())


@pytest.mark.parametrize("device", ["meta", "vulkan", "gpu", "cuda:x", "cpu:0"])
def test_only_a_device_that_models_run_on_is_taken(
    lungs: Path, dicomai: Dicomai, device: str
) -> None:
    answer = dicomai("run", "lungs", lungs, "--out", lungs / "out", "--device", device)
    assert answer.code == 2
    assert f"'{device}' is no device for models" in answer.err
