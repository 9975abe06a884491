"""The weights of a package, put into the network that its manifest names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, isfinite, nn

from dicomai.errors import ConfigError
from dicomai.models.package import Package


def fill(network: nn.Module, package: Package) -> None:
    """Give a network the weights of a package.

    Raises
    ------
    ConfigError
        They can't be read, are not those of a network like it, or hold numbers that are not finite.
    """
    try:
        weights = load_file(package.weights)
    except SafetensorError as error:
        raise _misfit(package, f"it is no whole safetensors file ({error})") from None
    own = network.state_dict()
    wrong = next(_misfits(own, weights), None)
    if wrong is not None:
        raise _misfit(package, wrong)
    network.load_state_dict(weights)
    # As the network has them: a file may hold types that it has not, some of a wider range.
    if not all(bool(isfinite(each).all()) for each in network.state_dict().values()):
        raise ConfigError(
            f"Model package {package.name}: {package.weights.name} holds numbers that are not "
            "finite. Take the package from its maker again.",
            subject=package.name,
        )


def _misfits(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> Iterator[str]:
    """Give what weights have that their network has not, and the other way round."""
    common = sorted(own.keys() & weights.keys())
    lacks, has_more = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    if not common and any(each.endswith(tuple(own)) for each in has_more):
        yield f"its keys begin otherwise: {has_more[0]}, not {lacks[0]}"
    if lacks:
        yield f"it lacks {_some(lacks)}"
    if has_more:
        yield f"it has {_some(has_more)} too"
    for name in common:
        # torch would take whole numbers for what they stand for, without their scale.
        if own[name].is_floating_point() and not weights[name].is_floating_point():
            yield f"{name} holds {weights[name].dtype}, and must be of floating point"
        if own[name].shape != weights[name].shape:
            found, wanted = tuple(weights[name].shape), tuple(own[name].shape)
            yield f"{name} has the shape {found}, and the network {wanted}"


def _some(names: list[str]) -> str:
    rest = len(names) - 3
    return ", ".join(names[:3]) + (f" and {rest} more" if rest > 0 else "")


def _misfit(package: Package, wrong: str) -> ConfigError:
    infer = package.manifest.infer
    return ConfigError(
        f"Model package {package.name}: {package.weights.name} does not fit network "
        f"{infer.network!r}: {wrong}. Save the state dict of the network that infer.arguments "
        "builds, by safetensors.torch.save_file, or copy the package again.",
        subject=package.name,
    )
