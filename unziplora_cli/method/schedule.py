"""Which step opens, scores, selects and separates columns: pure functions of the step number (section 3.3).

Training is cut into windows. Each window opens with every column in use; after ``importance_steps`` such
steps the columns are selected, and the rest of the window trains separated: masks act in the forward pass,
merge weights learn, and the overlap penalty counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Action(Enum):
    """What to do after the backward pass of a step, before clipping."""

    NONE = "none"
    OPEN = "open"
    """Open every column again; merge weights stop learning."""
    SCORE = "score"
    """Score the columns by this step's gradients."""
    SELECT = "select"
    """Score and select columns; from the next step on the branches are separated."""
    GATE = "gate"
    """Limit the gradient of the merge weights to the columns that may learn."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """The windows of one training.

    ``windows`` is the paper's number of recalibrations. ``importance_steps`` is the number of optimizer steps
    after the opening one from which the importance is measured (1 in the paper's single-image setting).
    ``enabled`` is column separation as a whole: without it two plain LoRAs are trained jointly.
    """

    steps: int
    windows: int = 3
    importance_steps: int = 1
    enabled: bool = True

    @property
    def window(self) -> int:
        """Steps from one opening to the next."""
        return -(-self.steps // self.windows)

    @property
    def selects(self) -> bool:
        """Whether columns are ever selected: a window must be longer than its importance steps."""
        return self.enabled and self.importance_steps < min(self.window, self.steps)

    def action(self, step: int) -> Action:
        """The action after the backward pass of ``step`` (counted from 0)."""
        if not self.enabled:
            return Action.NONE
        position = step % self.window
        if position == 0:
            return Action.OPEN
        if position < self.importance_steps:
            return Action.SCORE
        return Action.SELECT if position == self.importance_steps else Action.GATE

    def separated(self, step: int) -> bool:
        """Whether ``step`` runs with masks, learning merge weights and the overlap penalty.

        The step that opens a later window still runs with the masks of the previous one.
        """
        if not self.selects:
            return False
        position = step % self.window
        return step > 0 if position == 0 else position > self.importance_steps

    def phase(self, step: int) -> str:
        """A name for the phase of ``step``, to show to the user."""
        if not self.enabled:
            return "joint"
        return "separate" if self.separated(step) else "explore"
