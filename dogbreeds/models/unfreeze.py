"""Unfreeze policies: which part of the backbone trains.

A policy turns the blocks of a backbone into a plan, before anything is computed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dogbreeds.core.errors import UserError
from dogbreeds.core.spec import Spec, boolean, integer, one_of, texts

if TYPE_CHECKING:
    from dogbreeds.models.blocks import Block


@dataclass(frozen=True)
class Plan:
    """What trains.

    Attributes:
        cut: number of blocks, counted from the input, whose output is cached; all of them if only the head trains.
        stages: names of the layers that train, one set per stage. Each stage contains the one before.
        every_epochs: length of each stage but the last, in epochs.
        batchnorm: `frozen`, `affine` or `trainable`.
        drop_connect: whether dropout within the backbone is active in training.
        summary: description of the layers that train, for messages.
        num_requested: number of layers that the user asked for; more than train if whole blocks hold fewer.
        depth: for each layer above the cut, the number of blocks from it to the head; 1 is the top block. Learning
            rates may shrink with it.
    """

    cut: int
    stages: tuple[frozenset[str], ...]
    every_epochs: int
    batchnorm: str
    drop_connect: bool
    summary: str
    num_requested: int
    depth: dict[str, int]

    @property
    def num_layers(self) -> int:
        """Number of layers that train in the last stage."""
        return len(self.stages[-1])

    def layers_at(self, epoch: int) -> frozenset[str]:
        """Return the names of the layers that train in an epoch, counted from 0."""
        return self.stages[min(epoch // self.every_epochs, len(self.stages) - 1)]


@dataclass(frozen=True, kw_only=True)
class Unfreeze(Spec):
    """Base class of the policies. By itself it trains no block.

    Attributes:
        batchnorm: in the blocks that train: `frozen`, `affine` (statistics fixed, gamma and beta train) or
            `trainable`.
        drop_connect: `on` or `off`: dropout within the backbone in training.
    """

    group = "unfreeze"
    batchnorm: str = one_of("frozen", "affine", "trainable")
    drop_connect: str = one_of("off", "on")

    def plan(self, blocks: "Sequence[Block]") -> Plan:
        """Choose the layers that train.

        Args:
            blocks: of the backbone, in order of computation.

        Raises:
            UserError: if the backbone does not have the requested blocks or layers.
        """
        return self._plan(blocks, len(blocks))

    def _plan(
        self,
        blocks: "Sequence[Block]",
        cut: int,
        stages: tuple[frozenset[str], ...] = (),
        summary: str = "",
        num_requested: int = 0,
        every_epochs: int = 1,
    ) -> Plan:
        """Build a plan with this cut. All layers above it train, unless `stages` are given."""
        stages = stages or (_layer_names(blocks[cut:]),)
        return Plan(
            cut=cut,
            stages=stages,
            every_epochs=every_epochs,
            batchnorm=self.batchnorm,
            drop_connect=self.drop_connect == "on",
            summary=summary or _describe(blocks[cut:]),
            num_requested=num_requested or len(stages[-1]),
            depth={
                layer.name: len(blocks) - index
                for index, block in enumerate(blocks[cut:], cut)
                for layer in block.layers
            },
        )


@dataclass(frozen=True, kw_only=True)
class Nothing(Unfreeze):
    """The backbone is frozen; only the head trains."""


@dataclass(frozen=True, kw_only=True)
class All(Unfreeze):
    """The whole backbone trains. Decoded images are cached, but no features."""

    def plan(self, blocks: "Sequence[Block]") -> Plan:
        return self._plan(blocks, 0)


@dataclass(frozen=True, kw_only=True)
class LastN(Unfreeze):
    """The last `layers` layers train, as Keras counts them, rounded down to whole blocks.

    Attributes:
        layers: number of layers.
        exact: whether to train exactly so many, even if that splits a block.
    """

    layers: int = integer(at_least=1, example=20)
    exact: bool = boolean()

    def plan(self, blocks: "Sequence[Block]") -> Plan:
        total = sum(len(block.layers) for block in blocks)
        if self.layers > total:
            raise UserError(
                f"unfreeze.layers was {self.layers}. The backbone has {total} layers. Type unfreeze.layers=20, or"
                " unfreeze=all for all of them."
            )
        cut, in_whole_blocks = len(blocks), 0
        while cut and in_whole_blocks + len(blocks[cut - 1].layers) <= self.layers:
            cut -= 1
            in_whole_blocks += len(blocks[cut].layers)
        if in_whole_blocks == self.layers:
            return self._plan(blocks, cut)
        if self.exact:
            return self._split_block(blocks, cut, self.layers - in_whole_blocks)
        split = blocks[cut - 1]
        if cut == len(blocks):
            raise UserError(
                f"unfreeze.layers was {self.layers}, but {split.name}, the last block, has {len(split.layers)} layers."
                " Only whole blocks are unfrozen unless unfreeze.exact=true. Type"
                f" unfreeze.layers={len(split.layers)} or unfreeze.exact=true."
            )
        summary = _describe(blocks[cut:], f"; {self.layers} would split {split.name}")
        return self._plan(blocks, cut, summary=summary, num_requested=self.layers)

    def _split_block(self, blocks: "Sequence[Block]", cut: int, count: int) -> Plan:
        """Unfreeze the blocks above the cut, and the last `count` layers of the block below it."""
        split = blocks[cut - 1]
        last_layers = split.layers[-count:]
        names = _layer_names(blocks[cut:]) | {layer.name for layer in last_layers}
        summary = (
            f"{self.layers} layers, from {last_layers[0].name} within {split.name}; the cached prefix ends below"
            f" {split.name}"
        )
        return self._plan(blocks, cut - 1, (names,), summary)


@dataclass(frozen=True, kw_only=True)
class Blocks(Unfreeze):
    """Whole blocks train. The cached prefix ends below the deepest of them.

    Attributes:
        top: number of blocks, counted from the top; or None.
        names: of the blocks; or empty.
    """

    top: int | None = integer(at_least=1, example=2, optional=True)
    names: tuple[str, ...] = texts(example="[block7a,top]")

    def plan(self, blocks: "Sequence[Block]") -> Plan:
        known = [block.name for block in blocks]
        if (self.top is None) == (not self.names):
            raise UserError(
                f"unfreeze.top was {self.top} and unfreeze.names {list(self.names)}. Exactly one of the two must be"
                " given. Type unfreeze.top=2, for example."
            )
        unknown = [name for name in self.names if name not in known]
        if unknown:
            raise UserError(
                f"unfreeze.names has {unknown[0]!r}. The backbone's blocks are {', '.join(known)}."
                f" Type 'unfreeze.names=[{known[-1]}]', for example."
            )
        if self.top is not None:
            return self._plan(blocks, _cut_below_top(blocks, self.top))
        chosen = [block for block in blocks if block.name in self.names]
        cut = known.index(chosen[0].name)
        return self._plan(blocks, cut, (_layer_names(chosen),), _describe(chosen))


@dataclass(frozen=True, kw_only=True)
class Gradual(Unfreeze):
    """The top block trains first, and one more block every `every_epochs` epochs, down to `top` blocks.

    The cached prefix ends below the deepest of them.

    Source: Howard and Ruder 2018, ULMFiT, section 3.3.

    Attributes:
        top: number of blocks that train in the last stage.
        every_epochs: length of each stage but the last.
    """

    top: int = integer(at_least=1, example=3)
    every_epochs: int = integer(at_least=1, example=2)

    def plan(self, blocks: "Sequence[Block]") -> Plan:
        cut = _cut_below_top(blocks, self.top)
        summary = f"{_describe(blocks[cut:])}, from the top, one more block every {self.every_epochs} epochs"
        stages = tuple(_layer_names(blocks[first:]) for first in range(len(blocks) - 1, cut - 1, -1))
        return self._plan(blocks, cut, stages, summary, every_epochs=self.every_epochs)


def _cut_below_top(blocks: "Sequence[Block]", top: int) -> int:
    """Return the number of blocks below the top ones, after checking that there are so many."""
    if top > len(blocks):
        raise UserError(
            f"unfreeze.top was {top}. The backbone has {len(blocks)} blocks. Type unfreeze.top={len(blocks)} or less."
        )
    return len(blocks) - top


def _layer_names(blocks: "Sequence[Block]") -> frozenset[str]:
    return frozenset(layer.name for block in blocks for layer in block.layers)


def _describe(blocks: "Sequence[Block]", note: str = "") -> str:
    """List the blocks by name, or the first and last of many, with their number of layers, and a note on it."""
    if not blocks:
        return "no block"
    count = sum(len(block.layers) for block in blocks)
    names = [block.name for block in blocks]
    listed = ", ".join(names) if len(names) <= 4 else f"{names[0]} to {names[-1]}, {len(names)} blocks"
    return f"{listed} ({count} layers{note})"
