"""Unfreeze policies: which part of the backbone trains. A policy and a backbone's blocks make a plan, before anything is computed."""

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
        cut: how many blocks, from the input, are computed once and kept; all of them where nothing but the head trains.
        stages: names of the layers that train, one set a stage; later stages hold earlier ones.
        every_epochs: epochs that each stage but the last takes.
        batchnorm: `frozen`, `affine` or `trainable`.
        drop_connect: whether dropout within the backbone is on in training.
        summary: a sentence for people.
        asked: layers that the user asked for; as many as train, unless whole blocks came to fewer.
        depth: blocks between each layer above the cut and the head, for rates that shrink with depth.
    """

    cut: int
    stages: tuple[frozenset[str], ...]
    every_epochs: int
    batchnorm: str
    drop_connect: bool
    summary: str
    asked: int
    depth: dict[str, int]

    @property
    def layers(self) -> int:
        return len(self.stages[-1])

    def at(self, epoch: int) -> frozenset[str]:
        """Names of the layers that train in an epoch, counted from 0."""
        return self.stages[min(epoch // self.every_epochs, len(self.stages) - 1)]


@dataclass(frozen=True, kw_only=True)
class Unfreeze(Spec):
    """Nothing of the backbone trains; also what all policies share."""

    group = "unfreeze"
    batchnorm: str = one_of("frozen", "affine", "trainable")
    drop_connect: str = one_of("off", "on")

    def plan(self, blocks: "Sequence[Block]") -> Plan:
        """Which blocks train.

        Raises:
            UserError: where the backbone has no such blocks or layers.
        """
        return self._plan(blocks, len(blocks))

    def _plan(
        self,
        blocks: "Sequence[Block]",
        cut: int,
        stages: tuple[frozenset[str], ...] = (),
        summary: str = "",
        asked: int = 0,
        every_epochs: int = 1,
    ) -> Plan:
        """The plan with this cut; all above it trains, unless `stages` say otherwise."""
        stages = stages or (_names(blocks[cut:]),)
        depth = {
            layer.name: len(blocks) - index for index, block in enumerate(blocks[cut:], cut) for layer in block.layers
        }
        summary = summary or _said(blocks[cut:])
        return Plan(
            cut,
            stages,
            every_epochs,
            self.batchnorm,
            self.drop_connect == "on",
            summary,
            asked or len(stages[-1]),
            depth,
        )


@dataclass(frozen=True, kw_only=True)
class Nothing(Unfreeze):
    """The backbone stays as it is; only the head trains."""


@dataclass(frozen=True, kw_only=True)
class All(Unfreeze):
    """Everything trains; nothing is kept but the decoded photos."""

    def plan(self, blocks: "Sequence[Block]") -> Plan:
        return self._plan(blocks, 0)


@dataclass(frozen=True, kw_only=True)
class LastN(Unfreeze):
    """The last `layers` layers, as Keras counts them, snapped to whole blocks; never more than asked for."""

    layers: int = integer(at_least=1, example=20)
    exact: bool = boolean()

    def plan(self, blocks: "Sequence[Block]") -> Plan:
        total = sum(len(block.layers) for block in blocks)
        if self.layers > total:
            raise UserError(
                f"unfreeze.layers was {self.layers}. The backbone has {total} layers. Type unfreeze.layers=20, or"
                " unfreeze=all for all of them."
            )
        cut, whole = len(blocks), 0
        while cut and whole + len(blocks[cut - 1].layers) <= self.layers:
            cut -= 1
            whole += len(blocks[cut].layers)
        if whole == self.layers:
            return self._plan(blocks, cut)
        split = blocks[cut - 1]
        if self.exact:
            part = split.layers[-(self.layers - whole) :]
            names = _names(blocks[cut:]) | {layer.name for layer in part}
            note = (
                f"{self.layers} layers, from {part[0].name} within {split.name}; the kept prefix ends below"
                f" {split.name}"
            )
            return self._plan(blocks, cut - 1, (names,), note)
        if cut == len(blocks):
            raise UserError(
                f"unfreeze.layers was {self.layers}, and {split.name}, the last block, has {len(split.layers)}. Blocks"
                f" train whole unless unfreeze.exact=true. Type unfreeze.layers={len(split.layers)} or"
                " unfreeze.exact=true."
            )
        note = f"{self.layers} layers would cut {split.name}; unfreezing {_said(blocks[cut:])}"
        return self._plan(blocks, cut, summary=note, asked=self.layers)


@dataclass(frozen=True, kw_only=True)
class Blocks(Unfreeze):
    """Whole blocks: the top `top`, or those of `names`; the prefix is kept below the deepest of them."""

    top: int | None = integer(at_least=1, example=2, optional=True)
    names: tuple[str, ...] = texts(example="[block7a,top]")

    def plan(self, blocks: "Sequence[Block]") -> Plan:
        known = [block.name for block in blocks]
        if (self.top is None) == (not self.names):
            raise UserError(
                f"unfreeze.top was {self.top} and unfreeze.names {list(self.names)}. One of the two must be given. Type"
                " unfreeze.top=2, for example."
            )
        strangers = [name for name in self.names if name not in known]
        if strangers:
            raise UserError(
                f"unfreeze.names has {strangers[0]!r}. The backbone's blocks are {', '.join(known)}. "
                f"Type 'unfreeze.names=[{known[-1]}]', for example."
            )
        if self.top is not None:
            if self.top > len(blocks):
                raise UserError(
                    f"unfreeze.top was {self.top}. The backbone has {len(blocks)} blocks. Type"
                    f" unfreeze.top={len(blocks)} or less."
                )
            cut = len(blocks) - self.top
            return self._plan(blocks, cut)
        chosen = [block for block in blocks if block.name in self.names]
        cut = known.index(chosen[0].name)
        return self._plan(blocks, cut, (_names(chosen),), _said(chosen))


@dataclass(frozen=True, kw_only=True)
class Gradual(Unfreeze):
    """The top block first, one more every `every_epochs`, down to `top` blocks; the prefix is kept below the deepest of them.

    Source: Howard and Ruder 2018, ULMFiT, section 3.3.
    """

    top: int = integer(at_least=1, example=3)
    every_epochs: int = integer(at_least=1, example=2)

    def plan(self, blocks: "Sequence[Block]") -> Plan:
        if self.top > len(blocks):
            raise UserError(
                f"unfreeze.top was {self.top}. The backbone has {len(blocks)} blocks. Type unfreeze.top={len(blocks)}"
                " or less."
            )
        cut = len(blocks) - self.top
        note = f"{_said(blocks[cut:])}, from the top, one more every {self.every_epochs} epochs"
        stages = tuple(_names(blocks[first:]) for first in range(len(blocks) - 1, cut - 1, -1))
        return self._plan(blocks, cut, stages, note, every_epochs=self.every_epochs)


def _names(blocks: "Sequence[Block]") -> frozenset[str]:
    return frozenset(layer.name for block in blocks for layer in block.layers)


def _said(blocks: "Sequence[Block]") -> str:
    if not blocks:
        return "no block"
    count = sum(len(block.layers) for block in blocks)
    names = [block.name for block in blocks]
    listed = ", ".join(names) if len(names) <= 4 else f"{names[0]} to {names[-1]}, {len(names)} blocks"
    return f"{listed} ({count} layers)"
