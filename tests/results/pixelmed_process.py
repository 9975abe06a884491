"""PixelMed's validators, for several files in one Java machine, which is slow to start.

Reports are for `DicomSRValidator`, anything else for `DicomInstanceValidator`.

`python pixelmed_process.py FILE…` prints what it says of each file, as JSON by file.
"""

from __future__ import annotations

import json
import sys

import jpype
import pydicom

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
    reports = jpype.JClass("com.pixelmed.validate.DicomSRValidator")()
    others = jpype.JClass("com.pixelmed.validate.DicomInstanceValidator")()
    said = {}
    for file in sys.argv[1:]:
        head = pydicom.dcmread(file, specific_tags=["Modality"], stop_before_pixels=True)
        if head.Modality == "SR":
            said[file] = str(reports.validate(file))
        else:
            read = jpype.JClass("com.pixelmed.dicom.AttributeList")()
            read.read(file)
            said[file] = str(others.validate(read))
    print(json.dumps(said))
