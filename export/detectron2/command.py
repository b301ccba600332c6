"""`python -m export.detectron2 RUN_OR_BUNDLE --out model.pth`: an encoder for detectron2.

For students that are torchvision's ResNet, also below a SimKD projector. Beside `model.pth` stands
`model.yaml`, a fragment of a detectron2 config: the MoCo protocol (He et al., CVPR 2020), whose
R50-C4 rows CoCoRD's Table 8 repeats, with what torchvision's weights need, as detectron2's defaults
are made for other ones. detectron2 itself is not needed here.

The tensors carry detectron2's names without their place in a detector, as those of MoCo's own
converter do; detectron2 matches them by their ends (`matching_heuristics`), so that detectors with
a feature pyramid load the same file.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from compress import __version__
from compress.console.ending import exit_code
from compress.errors import UserError
from compress.storage.files import write_text
from compress.text import printable
from export.detectron2.config import SCHEDULES, ResNetForm, config, merge, resnet_form

_NEW = {
    "proposal_generator.rpn_head": ("conv", "objectness_logits", "anchor_deltas"),
    "roi_heads.box_predictor": ("cls_score", "bbox_pred"),
    "roi_heads.mask_head": ("deconv", "predictor"),
}
_NORM = ("weight", "bias", "running_mean", "running_var")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code: 0, 2 after a user's mistake, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="python -m export.detectron2", description=__doc__)
    parser.add_argument("origin", help="a run directory, RUN/distill/LABEL or a bundle")
    parser.add_argument("--out", type=Path, required=True, help="the .pth file to write")
    parser.add_argument("--schedule", choices=SCHEDULES, help="data and steps in the config, too")
    parser.add_argument(
        "--trust-code", action="store_true", help="run code that the student's file names"
    )
    parser.add_argument(
        "--allow-partial", action="store_true", help="accept weights that match in part"
    )
    parser.add_argument("--force", action="store_true", help="replace files that are there")
    args = parser.parse_args(arguments)
    return exit_code(lambda: _command(args))


def _command(args: argparse.Namespace) -> int:
    from compress.model_files.origins import open_origin
    from compress.models import user_code

    if args.trust_code:
        user_code.trust("*")
    out: Path = args.out
    _refuse(out, force=args.force)
    origin = open_origin(args.origin, allow_partial=args.allow_partial)
    form = write_network(out, origin.network(weights=True, seed=0), origin.name)
    content = config(form, origin.preprocessing, weights=out.name)
    if args.schedule:
        content = merge(content, SCHEDULES[args.schedule])
    write_text(out.with_suffix(".yaml"), config_text(content))
    print(printable(f"checkpoint: {out} (the {form.name} of {origin.name})"))
    print(printable(f"config: {out.with_suffix('.yaml')} (a detectron2 config merges it)"))
    print("missing when detectron2 loads it, as new layers of the detector are:")
    for name in expected_missing(mask=True):
        only = "   (Mask R-CNN only)" if ".mask_head." in name else ""
        print(f"  {name}{only}")
    return 0


def bare_name(name: str) -> str | None:
    """detectron2's name of a torchvision ResNet's tensor, such as `res2.0.shortcut.norm.bias`.

    None for what detectron2 has no place for: the classifier and batch norm's counters.
    """
    if name.startswith("fc.") or name.endswith("num_batches_tracked"):
        return None
    *modules, kind = name.split(".")
    path = ".".join(modules).replace("downsample.0", "shortcut")
    path = path.replace("downsample.1", "shortcut.norm")
    parts = [f"conv{part[2:]}.norm" if part.startswith("bn") else part for part in path.split(".")]
    if parts[0].startswith("layer"):
        parts[0] = f"res{int(parts[0].removeprefix('layer')) + 1}"
    else:
        parts.insert(0, "stem")
    return ".".join([*parts, kind])


def full_name(bare: str) -> str:
    """The tensor's name in a C4 detector, whose RoI head is the last stage."""
    return f"{'roi_heads' if bare.startswith('res5.') else 'backbone'}.{bare}"


def convert_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A torchvision ResNet's tensors under detectron2's names, values unchanged."""
    named = {bare_name(name): tensor for name, tensor in state.items()}
    return {k: v.detach().cpu().clone() for k, v in named.items() if k is not None}


def expected_missing(*, mask: bool) -> list[str]:
    """Sorted names that a C4 detector of the config has and the checkpoint does not.

    Args:
        mask: of Mask R-CNN, else of Faster R-CNN.
    """
    names = [f"roi_heads.res5.norm.{kind}" for kind in _NORM]
    for place, layers in _NEW.items():
        if mask or not place.endswith("mask_head"):
            names += [f"{place}.{layer}.{kind}" for layer in layers for kind in _NORM[:2]]
    return sorted(names)


def write_network(path: Path, network: nn.Module, name: str) -> ResNetForm:
    """Write, in one step, a checkpoint that `torch.load(weights_only=True)` and detectron2 read.

    Args:
        name: of the network, for errors.
    """
    form = resnet_form(network, name)
    content: dict[str, Any] = {
        "model": convert_names(network.state_dict()),
        "__author__": f"compress {__version__}",
        "matching_heuristics": True,
    }
    partial = path.with_name(path.name + ".partial")
    torch.save(content, partial)
    partial.replace(path)
    return form


def config_text(content: Mapping[str, Any]) -> str:
    """The config as YAML under a comment that says how to use it."""
    comment = (
        "# Merge this into detectron2's config: cfg.merge_from_file(...). The RoI head's class is\n"
        "# registered by `import eval.detection.detectron2_heads`; WEIGHTS is relative to the\n"
        "# folder that detectron2 runs in.\n"
    )
    return comment + yaml.safe_dump(dict(content), sort_keys=False, default_flow_style=None)


def _refuse(out: Path, *, force: bool) -> None:
    """Refuse, before anything is opened, a name that cannot be written."""
    if out.suffix != ".pth":
        raise UserError(f"--out {out}: detectron2 tells formats by suffix; end the name in .pth")
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: folder '{out.parent}' does not exist")
    for path in (out, out.with_suffix(".yaml")):
        if path.exists() and not force:
            raise UserError(f"{path} exists; choose another name, or replace it with --force")
