"""A runner that answers each other request with what it found before, for tests."""

from __future__ import annotations

import sys

from dicomai.findings import Findings
from dicomai.inference import runner
from dicomai.inference.messages import Analyse


class Confused(runner.Runner):
    """Mixes up its answers, as a defect with two requests at a time would."""

    _last: Findings | None = None

    def _analyse(self, request: Analyse) -> Findings:
        found = super()._analyse(request)
        answer, self._last = self._last or found, None if self._last else found
        return answer


if __name__ == "__main__":
    runner.Runner = Confused
    runner.main(sys.argv[1:])
