"""Body Part Examined (PS3.16 Annex L): which a body has once, and which are limbs."""

from __future__ import annotations

from typing import Final

UNPAIRED: Final = frozenset(
    {
        *("ABDOMEN", "ABDOMENPELVIS", "AORTA", "BACK", "BLADDER", "BRAIN", "CEREBELLUM", "CERVIX"),
        *("CHEST", "CHESTABDOMEN", "CHESTABDPELVIS", "CIRCLEOFWILLIS", "COCCYX", "COLON"),
        *("CORONARYARTERY", "CSPINE", "CTSPINE", "DUODENUM", "ESOPHAGUS", "FACE", "GALLBLADDER"),
        *("HEAD", "HEADNECK", "HEART", "ILEUM", "JAW", "JEJUNUM", "LARYNX", "LIVER", "LSPINE"),
        *("LSSPINE", "MAXILLA", "MEDIASTINUM", "MOUTH", "NECK", "NECKCHEST", "NECKCHESTABDOMEN"),
        *("NECKCHESTABDPELV", "NOSE", "PANCREAS", "PELVIS", "PENIS", "PHARYNX", "PROSTATE"),
        *("RECTUM", "SCALP", "SKULL", "SPINE", "SPLEEN", "SSPINE", "STERNUM", "STOMACH"),
        *("THYMUS", "THYROID", "TLSPINE", "TONGUE", "TRACHEA", "TSPINE", "UTERUS", "VAGINA"),
        *("VULVA", "WHOLEBODY"),
    }
)
"""Of what is not here, a body may have two; so may what a modality calls by a name of its own."""

LIMBS: Final = frozenset(
    {
        *("ANKLE", "ARM", "CALCANEUS", "ELBOW", "EXTREMITY", "FEMUR", "FIBULA", "FINGER", "FOOT"),
        *("FOREARM", "HAND", "HUMERUS", "KNEE", "LEG", "LOWERLEG", "LOWERLIMB", "PATELLA"),
        *("RADIUS", "RADIUSULNA", "SESAMOID", "THIGH", "THUMB", "TIBIA", "TIBIAFIBULA", "TOE"),
        *("ULNA", "UPPERARM", "UPPERLIMB", "WRIST"),
    }
)
"""These, or parts of them, are not hung as they are on a standing body: a hand has its fingers
up."""
