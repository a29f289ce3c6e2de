"""A scene as label maps: which part lies where. Styles read nothing else, so no style can change a shape."""

from __future__ import annotations

from functools import cached_property, lru_cache

import numpy as np
from PIL import Image, ImageDraw

from recipes.mini.contexts import context_parts
from recipes.mini.markings import marking_shapes
from recipes.mini.palette import local_colors
from recipes.mini.scene import Scene
from recipes.mini.shapes import Part, Points
from recipes.mini.subjects import placement, subject_parts

Array = np.ndarray  # float32; pictures are [n, n, 3], fields [n, n], all in 0..1

SUPERSAMPLING = 4
_MARKED = 100
_MARKABLE = ("body", "shade")


class Layers:
    """What styles paint with: coverage, colours, lines and relief of one scene.

    Lengths given to the methods are pixels of a 128-pixel picture, whatever the size drawn.
    """

    def __init__(self, scene: Scene, size: int) -> None:
        self.size = size
        self.unit = size / 128
        self.seed = scene.pose_seed
        matrix, offset = placement(scene.pose_seed)
        front = [
            Part(p.role, p.points @ matrix.T + offset, p.line)
            for p in subject_parts(scene.individual, scene.pose_seed)
        ]
        marks = [points @ matrix.T + offset for points in marking_shapes(scene.individual)]
        self._front, self._solid = self._label(front)
        self.front_roles = ["", *(part.role for part in front)]
        self._mark(marks)
        self.set_background(scene)
        self.front_tones = self._tone()

    def set_background(self, scene: Scene) -> None:
        """Put the subject before the background of ``scene``, which shows the same subject."""
        self.plain = not scene.context
        back = context_parts(scene.context, scene.pose_seed)
        self._back, self._back_solid = self._label(back)
        self.back_roles = ["", *(part.role for part in back)]
        self.front_colors, self.back_colors = self._color(scene)

    def _label(self, parts: list[Part]) -> tuple[Image.Image, Image.Image]:
        side = self.size * SUPERSAMPLING
        every, traced = Image.new("L", (side, side)), Image.new("L", (side, side))
        draw, draw_traced = ImageDraw.Draw(every), ImageDraw.Draw(traced)
        for label, part in enumerate(parts, 1):
            corners = (part.points * side).ravel().tolist()
            draw.polygon(corners, fill=label)
            if part.line:
                draw_traced.polygon(corners, fill=label)
        return every, traced

    def _mark(self, shapes: list[Points]) -> None:
        """Raise the labels of body parts by ``_MARKED`` where the marking lies."""
        if not shapes:
            return
        side = self.size * SUPERSAMPLING
        mask = Image.new("1", (side, side))
        pen = ImageDraw.Draw(mask)
        for points in shapes:
            pen.polygon((points * side).ravel().tolist(), fill=1)
        raised = [
            i + _MARKED * (i < len(self.front_roles) and self.front_roles[i] in _MARKABLE) for i in range(256)
        ]
        self._front.paste(self._front.point(raised), mask=mask)

    def _color(self, scene: Scene) -> tuple[Array, Array]:
        colors = local_colors(scene)
        front, back = np.zeros((256, 3), np.float32), np.zeros((256, 3), np.float32)
        for label, role in enumerate(self.front_roles[1:], 1):
            front[label] = colors[role]
            front[label + _MARKED] = colors["second"] if role == "body" else colors["second"] * 0.82
        for label, role in enumerate(self.back_roles[1:], 1):
            back[label] = colors[role]
        return front, back

    def _tone(self) -> Array:
        """The brightness of the subject's colours [256, 3], markings set off from the body by 0.34."""
        tone = self.front_colors @ np.array([0.299, 0.587, 0.114], np.float32)
        body, marked = tone[:_MARKED], tone[_MARKED : 2 * _MARKED]
        near = np.abs(body - marked) < 0.34
        marked[near] = (body + np.where(body > 0.5, -0.34, 0.34))[near]
        return tone[:, None].repeat(3, 1)

    def _paint(self, labels: Image.Image, table: Array) -> Array:
        paletted = labels.copy()
        paletted.putpalette((np.clip(table, 0, 1) * 255 + 0.5).astype(np.uint8).tobytes())
        return np.asarray(paletted.convert("RGB").reduce(SUPERSAMPLING), np.float32) / 255

    def _cover(self, labels: Image.Image, chosen: list[bool]) -> Array:
        mask = labels.point([255 * c for c in chosen] + [0] * (256 - len(chosen)))
        return np.asarray(mask.reduce(SUPERSAMPLING), np.float32) / 255

    def paint_front(self, table: Array | None = None) -> Array:
        """The subject in the colours of ``table`` [256, 3] (default: its own), weighted by its coverage."""
        table = (self.front_colors if table is None else table).copy()
        table[0] = 0
        return self._paint(self._front, table)

    def paint_back(self, table: Array | None = None) -> Array:
        """The background, also behind the subject."""
        return self._paint(self._back, self.back_colors if table is None else table)

    def over(self, front: Array, back: Array) -> Array:
        """The subject (weighted by coverage) before a background."""
        return front + back * (1 - self.alpha[..., None])

    @cached_property
    def alpha(self) -> Array:
        """The subject's coverage."""
        return self._cover(self._front, [i > 0 for i in range(256)])

    def cover(self, *roles: str) -> Array:
        """The coverage of the subject's parts with one of these roles, their markings included."""
        chosen = [False] * 256
        for label, role in enumerate(self.front_roles):
            if role in roles:
                chosen[label] = chosen[label + _MARKED] = True
        return self._cover(self._front, chosen)

    def cover_back(self, *roles: str) -> Array:
        """The coverage of the background's parts with one of these roles."""
        return self._cover(self._back, [role in roles for role in self.back_roles])

    @cached_property
    def marks(self) -> Array:
        """The coverage of the marking."""
        return self._cover(self._front, [i > _MARKED for i in range(256)])

    def lines(self, width: float, *, details: bool = False) -> Array:
        """Strokes along the subject's parts; with ``details`` along markings and small details too."""
        return self._trace(self.borders(details=details), width)

    def back_lines(self, width: float) -> Array:
        """Strokes along the background's parts, also behind the subject."""
        return self._trace(self.back_borders(), width)

    def borders(self, *, details: bool = False) -> Array:
        """The share of every pixel that lies on a border of two of the subject's parts, before blurring."""
        return self._borders(self._front if details else self._solid)

    def back_borders(self) -> Array:
        """The same of the background's parts."""
        return self._borders(self._back_solid)

    def _borders(self, labels: Image.Image) -> Array:
        ids = np.asarray(labels)
        border = np.zeros(ids.shape, np.uint8)
        border[:, 1:] = ids[:, 1:] != ids[:, :-1]
        border[1:] |= ids[1:] != ids[:-1]
        return np.asarray(Image.fromarray(border * 255).reduce(SUPERSAMPLING), np.float32) / 255

    def _trace(self, density: Array, width: float) -> Array:
        """A stroke ``width`` wide: borders, blurred and cut where that width is reached."""
        sigma = width * 0.5
        soft = blur(density, sigma)
        peak = 1.12 / (SUPERSAMPLING * sigma * self.unit * np.sqrt(2 * np.pi))
        cut = float(peak * np.exp(-0.5 * (0.5 * width / sigma) ** 2))
        slope = cut * 0.5 * width / sigma**2 / self.unit  # change per pixel at the stroke's edge
        return np.clip((soft - cut) / slope + 0.5, 0, 1)

    def relief(self, depth: float = 1.0, *, bumps: Array | None = None) -> Array:
        """Unit normals [n, n, 3] (x right, y down, z to the viewer) of the subject puffed up part by part."""
        return normals(self._height + (0 if bumps is None else bumps), depth * self.unit)

    @cached_property
    def _height(self) -> Array:
        inside = self.alpha * (1 - 0.9 * self.lines(1.3))
        return 1.6 * blur(inside, 1.6) + 2.6 * blur(inside, 3.6) + 5.0 * blur(self.alpha, 8)

    def shadow(self, softness: float = 5.0) -> Array:
        """The shadow on the ground: strongest where the subject stands, falling to the lower right."""
        rows = np.flatnonzero(self.alpha.max(1) > 0.3)
        bottom = rows[-1] if len(rows) else self.size - 1
        foot = self.alpha[max(bottom - int(14 * self.unit), 0) : bottom + 1].max(0)
        x = np.arange(self.size, dtype=np.float32)
        center = (foot * x).sum() / (foot.sum() + 1e-6) + 3 * self.unit
        half = 0.62 * foot.sum() + 8 * self.unit
        y = x[:, None] - bottom + 2 * self.unit
        ground = np.exp(-(((x - center) / half) ** 2) - (y / (softness * self.unit)) ** 2)
        shift = int(4 * self.unit)
        thrown = blur(np.roll(self.alpha, (shift, shift), (0, 1)), softness)
        return np.clip(0.8 * ground + 0.35 * thrown, 0, 1)

    def noise(self, cell: float, stretch: float = 1.0, index: int = 0) -> Array:
        """A smooth random field, its bumps about ``cell`` wide and ``stretch`` times longer diagonally."""
        return _noise(self.size, cell * self.unit, stretch, (self.seed + index) % 7)


def normals(height: Array, depth: float = 1.0) -> Array:
    """Unit normals [n, n, 3] of a height field."""
    dy, dx = np.gradient(height)
    normal = np.stack([-dx * depth, -dy * depth, np.ones_like(height)], -1)
    return normal / np.linalg.norm(normal, axis=-1, keepdims=True)


def blur(field: Array, sigma: float) -> Array:
    """Gaussian blur of a field [n, n] or picture [n, n, 3]; ``sigma`` in pixels of a 128-pixel picture."""
    size = field.shape[0]
    kernel = _kernel(size, sigma)
    field = field.astype(np.float32, copy=False)
    if field.ndim == 2:
        return kernel @ field @ kernel.T
    rows = (kernel @ field.reshape(size, -1)).reshape(field.shape)
    turned = np.ascontiguousarray(rows.transpose(0, 2, 1)).reshape(-1, size)  # [3n, n]
    return (turned @ kernel.T).reshape(size, 3, size).transpose(0, 2, 1)


@lru_cache(64)
def _kernel(size: int, sigma: float) -> Array:
    x = np.arange(size)
    kernel = np.exp(-0.5 * ((x[:, None] - x) / (sigma * size / 128)) ** 2)
    return (kernel / kernel.sum(1, keepdims=True)).astype(np.float32)


@lru_cache(256)
def _noise(size: int, cell: float, stretch: float, variant: int) -> Array:
    side = int(size * 1.5)
    counts = max(int(side / cell), 2), max(int(side / cell / stretch), 2)
    grid = np.random.default_rng(variant).random(counts, dtype=np.float32)
    field = Image.fromarray(grid).resize((side, side), Image.Resampling.BICUBIC)
    if stretch != 1:
        field = field.rotate(38, Image.Resampling.BILINEAR)
    start = (side - size) // 2
    out = np.asarray(field)[start : start + size, start : start + size]
    return np.clip((out - out.mean()) / (out.std() + 1e-6) * 0.25 + 0.5, 0, 1)
