"""Fuzz a target with libFuzzer, which looks for inputs that reach new code.

``pip install dicomai[fuzz]``, then
``python tests/fuzz/with_atheris.py TARGET [-max_total_time=600] [FOLDER...]``. What it finds it
writes as ``crash-*``; mended, it belongs into ``corpus/TARGET``, where the suite tries it for ever.
"""

from __future__ import annotations

import sys

import atheris
import structlog

with atheris.instrument_imports(include=["dicomai", "pynetdicom"]):
    from fuzz_targets import TARGETS

from fuzz_material import CORPUS


def main() -> None:
    name, *options = sys.argv[1:]
    # Each refusal is a line, and there are millions.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    folders = [option for option in options if not option.startswith("-")] or [str(CORPUS / name)]
    flags = [option for option in options if option.startswith("-")]
    # A thread that hangs, and memory without bound, are findings too.
    limits = ["-timeout=30", "-rss_limit_mb=1024", "-max_len=65536"]
    atheris.Setup([sys.argv[0], *limits, *flags, *folders], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
