"""What is installed from a wheel works without the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_db_upgrade_init_and_config_check_work_from_an_installed_wheel(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("dicomai", "config", "migrations"):
        shutil.copytree(
            ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "wheel", *offline, "-w", tmp_path, source], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    installed = tmp_path / "installed"
    subprocess.run([*pip, "install", *offline, "--target", installed, wheel], check=True)

    folder = tmp_path / "service"

    def dicomai(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "dicomai", *arguments],
            env={**os.environ, "PYTHONPATH": str(installed)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = subprocess.run(
        [sys.executable, "-P", "-c", "import dicomai; print(dicomai.__file__)"],
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert where.stdout.startswith(str(installed))
    dicomai("init", str(folder))
    (folder / "dicomai.db").unlink()
    config = str(folder / "dicomai.toml")
    assert "up to date" in dicomai("db", "upgrade", "--config", config)
    assert "No study was received yet." in dicomai("status", "--config", config)
    assert "is right" in dicomai("config", "check", "--config", config)
    assert "chest-ct-lungs" in dicomai("models")
