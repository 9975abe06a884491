"""PixelMed's validator of reports, for several files in one Java machine, which is slow to start.

`python pixelmed_process.py FILE…` prints what it says of each file, as JSON by file.
"""

from __future__ import annotations

import json
import sys

import jpype

JARS = ["/usr/share/java/pixelmed.jar", "/usr/share/java/*"]
XPATH_LIMITS = ("xpathExprGrpLimit", "xpathExprOpLimit", "xpathTotalOpLimit")

if __name__ == "__main__":
    jpype.startJVM(
        "-Xss16m",
        "-XX:+UseSerialGC",
        "-XX:TieredStopAtLevel=1",
        *(f"-Djdk.xml.{each}=0" for each in XPATH_LIMITS),
        classpath=JARS,
    )
    validator = jpype.JClass("com.pixelmed.validate.DicomSRValidator")()
    print(json.dumps({file: str(validator.validate(file)) for file in sys.argv[1:]}))
