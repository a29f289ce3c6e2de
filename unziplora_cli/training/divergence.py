"""Noticing that a training is lost: its loss is no number, or worse than that of knowing nothing."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

WINDOW = 20
"""Steps to judge by. It is also more than fp16's scaler needs to halve its scale of 65536 to 1."""

KNOWING_NOTHING = 1.0
"""The mean square of the noise, which is the denoising loss of always guessing zero."""


@dataclass(slots=True)
class Watch:
    """Looks at the numbers of every step.

    ``scaled`` says that fp16's loss scaler leaves out the steps whose gradients overflow; then only many of
    them in a row count.
    """

    scaled: bool = False
    _first: list[float] = field(default_factory=list)
    _last: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    _overflows: int = 0

    def see(self, step: int, loss: float, reconstruction: float, grad_norm: float) -> str | None:
        """What went wrong, in a sentence, if anything did."""
        if not math.isfinite(loss) or not (self.scaled or math.isfinite(grad_norm)):
            self._overflows += 1
            if not self.scaled:
                return f"The loss is no longer a number at step {step}."
            if self._overflows == WINDOW:
                return f"For {WINDOW} steps up to step {step} the loss was no number."
            return None
        self._overflows = 0
        if len(self._first) < WINDOW:
            self._first.append(reconstruction)
        self._last.append(reconstruction)
        mean, began = sum(self._last) / len(self._last), sum(self._first) / len(self._first)
        if len(self._last) == WINDOW and began < KNOWING_NOTHING < mean:
            return (
                f"The loss exploded: over the {WINDOW} steps up to step {step} it is {mean:.2g}, "
                f"and guessing no noise at all has {KNOWING_NOTHING:.2g}."
            )
        return None
