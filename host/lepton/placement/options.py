"""What can be asked of placement."""

from dataclasses import dataclass, field

from lepton.compiler.command_lists import CommandLists
from lepton.frontend.trace import Inputs
from lepton.placement.cost import CostModel


@dataclass(frozen=True, kw_only=True)
class OffloadOptions:
    """How a model is offloaded."""

    layers: bool | None = None
    """Whole layers run on the device where that is possible (None), have to (True), or Linear layers one by one do
    (False)."""
    strict: bool = False
    """Raise if a Linear layer has to stay on the host; where whole layers are wanted, if anything that multiplies
    has to."""
    skip: tuple[str, ...] = ()
    """Patterns of module names that stay on the host, like ``*.lm_head``. They rule whole layers out."""
    inputs: Inputs | None = None
    """Example inputs, positional or by keyword, for modules that are not from transformers: without a trial run no
    layers are fused. They rule whole layers out."""
    cost: CostModel = field(default_factory=CostModel)
    """Decides which Linear layers are worth offloading."""
    context: int | None = None
    """With whole layers: most tokens of a sequence; None for what the model needs and the memory has room for."""
    sequences: int | None = None
    """With whole layers: how many sequences have a cache; None for as many as there is memory for."""
    lists: CommandLists | None = None
    """Command lists that were saved with the model."""
