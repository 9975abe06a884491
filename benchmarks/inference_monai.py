"""The same network led by MONAI: `python inference_monai.py PACKAGE OUT DEVICE`, folders on stdin.

For each folder that it reads it runs LoadImaged, Spacingd, ScaleIntensityRanged,
SlidingWindowInferer, Invertd and a threshold, writes the mask of each output to OUT, and prints a
line of JSON with seconds. "ready" comes first.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from dicomai.models import package as packages
from dicomai.models.manifest import Manifest
from dicomai.models.runtimes.devices import has_bfloat16
from dicomai.models.runtimes.networks import build, for_host

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from monai.data import MetaTensor, PydicomReader
    from monai.inferers import SlidingWindowInferer
    from monai.transforms import (
        Compose,
        EnsureChannelFirstd,
        Invertd,
        LoadImaged,
        ScaleIntensityRanged,
        Spacingd,
    )


def chain(manifest: Manifest) -> Compose:
    """Return the way of an input from its files to the network."""
    preprocess = manifest.preprocess
    assert preprocess.clip is not None
    low, high = preprocess.clip
    steps = [
        LoadImaged("image", reader=PydicomReader(swap_ij=True)),
        EnsureChannelFirstd("image"),
    ]
    if preprocess.spacing_mm is not None:
        steps.append(Spacingd("image", pixdim=preprocess.spacing_mm[::-1], mode="bilinear"))
    steps.append(ScaleIntensityRanged("image", low, high, 0.0, 1.0, clip=True))
    return Compose(steps)


def main() -> None:
    """Answer until stdin ends."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    package = packages.load(Path(sys.argv[1]))
    out, device = Path(sys.argv[2]), torch.device(sys.argv[3])
    manifest, infer = package.manifest, package.manifest.infer
    network = build(infer.network, infer.arguments).eval()
    network.load_state_dict(load_file(package.weights))
    network = for_host(network) if device.type == "cpu" else network.to(device)
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # as we have it
    before = chain(manifest)
    back = Invertd("pred", before, orig_keys="image", nearest_interp=False, to_tensor=True)
    assert infer.window_kji is not None
    inferer = SlidingWindowInferer(
        roi_size=infer.window_kji[::-1],
        sw_batch_size=infer.batch,
        overlap=infer.overlap,
        mode=infer.blend,
        sw_device=device,
        device=device,
    )
    half = infer.precision == "bfloat16" and has_bfloat16(device)

    def probabilities(inputs: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=half):
            shown = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
            answer = network(shown.to(memory_format=torch.channels_last_3d)).float()
        return torch.sigmoid(answer)

    print("ready", flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        with torch.inference_mode():
            item = before({"image": line.strip()})
            loaded = time.perf_counter()
            item["pred"] = inferer(item["image"][None], probabilities)[0]
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            inferred = time.perf_counter()
            mask = (back(item)["pred"] >= 0.5).cpu().numpy()
        done = time.perf_counter()
        for channel, each in enumerate(mask):  # (I, J, K) as MONAI has it
            np.save(out / f"{channel}.npy", np.packbits(each.transpose(2, 1, 0)))
        seconds = {
            "load and preprocess": loaded - start,
            "infer": inferred - loaded,
            "postprocess": done - inferred,
        }
        print(json.dumps(seconds), flush=True)


if __name__ == "__main__":
    main()
