"""MobileOne S0 ... S4 (arXiv 2206.04040, Table 2): pairs of depthwise and pointwise blocks."""

from functools import partial

from repvgg_jax.blocks.base import Block
from repvgg_jax.errors import UsageError
from repvgg_jax.nets._chain import Chain
from repvgg_jax.nets._checks import check_positive
from repvgg_jax.nets._spec import BlockSpec

SE_PAIRS = 5  # pairs of the second-to-last stage with squeeze-and-excite, if the net uses it


class MobileOne(Chain):
    """An ungrouped stem, followed by stages of pairs: depthwise kxk, ReLU, pointwise 1x1, ReLU.

    Attributes in addition to those of `Chain`:
      depths: number of pairs in each stage; the stem is one block.
      se_reduction: if given, squeeze-and-excite with channels // se_reduction hidden units precedes
        the ReLUs of the last stage and of the last five pairs of the stage before it.
    """

    block: str = "mobileone"
    se_reduction: int | None = None

    def plan(self) -> tuple[BlockSpec, ...]:
        """Returns the specs: the stem, `stage1_block0_depthwise`, `stage1_block0_pointwise`, ..."""
        plan: list[BlockSpec] = []
        for spec in self.single_blocks():
            spec = spec._replace(se_hidden=self._se_hidden(spec, spec.features))
            if not plan:
                plan.append(spec)
                continue
            depthwise = spec.part("depthwise", features=spec.inputs, groups=spec.inputs)
            hidden = self._se_hidden(spec, spec.inputs)
            plan.append(depthwise._replace(se_hidden=hidden))
            plan.append(spec.part("pointwise", kernel_size=1, strides=1))
        return tuple(plan)

    def make_block(self, spec: BlockSpec) -> Block:
        """Returns the block of a spec; the stem has one kxk branch, as in the authors' code."""
        block = super().make_block(spec)
        return block.clone(copies=1) if self.block == "mobileone" and not spec.role else block

    def check_fields(self) -> None:
        """Raises UsageError if a field of this class is invalid."""
        super().check_fields()
        check_positive("se_reduction", self.se_reduction)
        if self.se_reduction and min(self.widths[-2:]) < self.se_reduction:
            raise UsageError(
                f"se_reduction={self.se_reduction}: must not exceed the last two entries of widths="
                f"{self.widths}"
            )

    def _se_hidden(self, spec: BlockSpec, channels: int) -> int:
        """Returns the hidden units of a block's squeeze-and-excite layer; 0 for no such layer."""
        last = len(self.depths) - 1
        first_pair = self.depths[spec.stage] - SE_PAIRS if spec.stage == last - 1 else 0
        late = spec.stage >= last - 1 and spec.index >= first_pair
        return channels // self.se_reduction if self.se_reduction and late else 0


_STAGES = partial(MobileOne, depths=(1, 2, 8, 10, 1))
_ONE_COPY = partial(_STAGES, block_options=(("copies", 1),))

VARIANTS = {
    "mobileone_s0": partial(_STAGES, widths=(48, 48, 128, 256, 1024)),
    "mobileone_s1": partial(_ONE_COPY, widths=(64, 96, 192, 512, 1280)),
    "mobileone_s2": partial(_ONE_COPY, widths=(64, 96, 256, 640, 2048)),
    "mobileone_s3": partial(_ONE_COPY, widths=(64, 128, 320, 768, 2048)),
    "mobileone_s4": partial(_ONE_COPY, widths=(64, 192, 448, 896, 2048), se_reduction=16),
}
