"""View Code Sequence (PS3.16 CID 4010, 4014) in the words of View Position.

Digital X-rays have to say their view by a code, and may leave View Position out (PS3.3 C.8.11.5);
older ones have the codes of SNOMED RT.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

from dicomai.dicom.codes import RT

_WORDS: Final = (
    ("AP", "399348003", "R-10206"),
    ("PA", "272479007", "R-10214", "R-40888"),
    ("LATERAL", "399067008", "R-102CD"),
    ("LATERAL", "30730003", "R-10222", "G-A145"),  # sagittal
    ("LL", "399173006", "R-10236"),
    ("RL", "399198007", "R-10232"),
    ("LLO", "399184004", "R-10238"),
    ("RLO", "399236003", "R-10234"),
    ("LAO", "399135007", "R-10220"),
    ("RAO", "399356000", "R-10218", "R-40985"),
    ("LPO", "399006002", "R-10212"),
    ("RPO", "399038007", "R-10210"),
    ("OBLIQUE", "399182000", "R-102C1"),
    ("OBLIQUE", "399160007", "R-10204"),  # frontal
    ("OBLIQUE", "399312000", "R-10208"),  # antero-posterior
    ("OBLIQUE", "399059000", "R-10216"),  # postero-anterior
    ("OBLIQUE", "260427002", "R-40783"),  # lateral
    ("OBLIQUE", "260426006", "R-40782"),  # medial
    ("AXIAL", "399061009", "R-10241"),
    ("AXIAL", "399004004", "R-10246"),  # oblique
    ("AXIAL", "399132005", "R-10252"),  # frontal-oblique
    ("AXIAL", "399325008", "R-10254"),  # sagittal-oblique
    ("TANGENTIAL", "399110001", "R-102C2"),
    ("CC", "399162004", "R-10242"),
    ("FB", "399196006", "R-10244"),
    ("ML", "399260004", "R-10224"),
    ("MLO", "399368009", "R-10226"),
    ("LM", "399352003", "R-10228"),
    ("LMO", "399099002", "R-10230"),
    ("SIO", "399188001", "R-102D0"),
    ("ISO", "441555000", "R-40AAA"),
    ("XCCL", "399192008", "R-1024A"),
    ("XCCM", "399101009", "R-1024B"),
)
_BY_CODE: Final = MappingProxyType({code: word for word, *codes in _WORDS for code in codes})


def view_position(value: str, scheme: str) -> str:
    """Return what View Position says of a view, or a word of its kind; "" for other codes.

    Frontal is none: it does not say whether AP or PA.
    """
    known = (scheme in RT) if "-" in value else scheme == "SCT"
    return _BY_CODE.get(value, "") if known else ""
