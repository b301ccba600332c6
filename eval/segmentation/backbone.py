"""The encoder as segmentation uses it: output stride 8, a second map for the auxiliary loss."""

from typing import Any, cast

from torch import Tensor, fx, nn

from compress.errors import UserError
from compress.model_files.artifacts import Encoder
from compress.models.segmentation.dilation import dilate
from compress.taps import MapSpec, TapSpecs, map_node


def auxiliary_map(taps: TapSpecs) -> MapSpec | None:
    """The last stage that is finer than the last map; None where there is none."""
    last = taps.last_map
    finer = [s for s in taps.stages if last and s.stride < last.stride and s.side == "output"]
    return finer[-1] if finer else None


class SegmentationBackbone(nn.Module):
    """Normalised images (N, 3, H, W) -> the last map and the auxiliary map (None without one).

    Shares the encoder's parameters. Frozen, it stays in eval mode and takes no gradient, so
    neither its weights nor its batch-norm statistics move.
    """

    def __init__(self, encoder: Encoder, auxiliary: MapSpec | None, *, frozen: bool) -> None:
        super().__init__()
        self.output_stride = dilate(encoder.body, encoder.stride)
        self.channels = encoder.channels
        self.body = encoder.body
        if auxiliary is not None:
            self.body = with_map(cast(fx.GraphModule, encoder.body), auxiliary)
        self.frozen = frozen
        if frozen:
            self.requires_grad_(False)
            self.train(False)

    def train(self, mode: bool = True) -> "SegmentationBackbone":
        """Set the mode; a frozen encoder stays in eval mode."""
        super().train(mode and not self.frozen)
        return self

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """See the class."""
        maps: Any = self.body(images)
        return maps if isinstance(maps, tuple) else (maps, None)


def with_map(body: fx.GraphModule, spec: MapSpec) -> fx.GraphModule:
    """The same network, sharing its parameters, that gives (last map, another map)."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    last = graph.graph_copy(body.graph, copies)
    inside = [n for n in copies if spec.path in n.meta.get("nn_module_stack", {})]
    if not inside:
        raise UserError(f"the encoder has no part '{spec.path}' for the auxiliary loss")
    graph.output((last, map_node(graph, copies[inside[-1]], spec)))
    return fx.GraphModule(body, graph, class_name="Encoder")
