"""Styles that no one named: families of them, painted anew for every picture of a batch, on its device.

Reader and destyler must cope with styles that they never saw, so they learn from as many as possible. Each
family turns the planes of a scene (`pairs.PLANES`) into a picture with its own random colours, lines, light
and texture, families are mixed within a picture, and every picture is finished at random. None is made after
a held-out style; the families of `TUNING` are kept out of training to choose settings by. A batch is painted
without reading anything from the device or sending anything to it, so that it can be captured.

Pictures are [n, 3, h, w] and fields [n, 1, h, w], in 0..1; numbers by picture are [n, 1, 1, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from recipes.mini.layers import SUPERSAMPLING


@dataclass(frozen=True)
class Planes:
    """The planes of n scenes; `front` and `tone` are weighted by the subject's coverage `alpha`."""

    front: Tensor
    back: Tensor
    alpha: Tensor
    tone: Tensor
    outline: Tensor
    detail: Tensor
    far: Tensor
    marks: Tensor

    def __len__(self) -> int:
        return len(self.alpha)

    def part(self, span: slice) -> Planes:
        """The scenes of ``span``."""
        return Planes(**{name: getattr(self, name)[span] for name in self.__dataclass_fields__})

    def uniform(self, low: float, high: float, channels: int = 1) -> Tensor:
        """A random number for every scene, or one by channel: [n, channels, 1, 1]."""
        return low + (high - low) * torch.rand(len(self), channels, 1, 1, device=self.alpha.device)

    def chance(self, probability: float) -> Tensor:
        """1 with this probability, else 0: [n, 1, 1, 1]."""
        return (self.uniform(0, 1) < probability).float()

    def pick(self, *options: Tensor) -> Tensor:
        """One of the options for every scene."""
        index = (self.uniform(0, 1) * len(options)).long().clamp(max=len(options) - 1)
        result = options[0]
        for number, option in enumerate(options[1:], 1):
            result = torch.where(index == number, option, result)
        return result

    def color(self, low: float = 0.0, high: float = 1.0, saturation: float = 1.0) -> Tensor:
        """A random colour for every scene with a value in this range."""
        hue = self.uniform(0, 6)
        offset = (4 * torch.arange(3, device=hue.device) % 6).view(1, 3, 1, 1)
        pure = (((hue + offset) % 6 - 3).abs() - 1).clamp(0, 1)
        s = saturation * self.uniform(0, 1).sqrt()
        return self.uniform(low, high) * (1 - s + s * pure)

    def grid(self) -> tuple[Tensor, Tensor]:
        """x and y [1, 1, h, w] in pixels of a 128-pixel picture, from the middle."""
        size = self.alpha.shape[-1]
        at = (torch.arange(size, device=self.alpha.device) - (size - 1) / 2) * (128 / size)
        return at.view(1, 1, 1, -1), at.view(1, 1, -1, 1)

    def noise(self, low: float, high: float, stretch: float = 1.0) -> Tensor:
        """Smooth fields with bumps of these sizes, up to ``stretch`` times longer, turned at random."""
        sigma = 0.35 * low * (high / low) ** self.uniform(0, 1)
        white = torch.randn_like(self.alpha)
        field = blur(white, sigma, sigma * self.uniform(1, stretch))
        if stretch > 1:
            field = turn(field, self.uniform(0, math.pi))
        field = field - field.mean((2, 3), keepdim=True)
        return (0.5 + 0.25 * field / (field.std((2, 3), keepdim=True) + 1e-6)).clamp(0, 1)

    def waves(self, low: float, high: float, bend: float = 0.0) -> Tensor:
        """Parallel waves with periods in this range, in any direction, bent by ``bend`` pixels."""
        x, y = self.grid()
        angle, period = self.uniform(0, math.pi), self.uniform(low, high)
        along = x * angle.cos() + y * angle.sin()
        if bend:
            along = along + bend * self.uniform(0, 1) * (self.noise(30, 60) - 0.5)
        return 0.5 + 0.5 * (along * (2 * math.pi / period) + self.uniform(0, 6.3)).cos()

    def lines(self, borders: Tensor, low: float, high: float) -> Tensor:
        """Strokes along ``borders``, with widths in this range (as `Layers.lines`)."""
        sigma = 0.5 * self.uniform(low, high)
        cut = 1.12 / (SUPERSAMPLING * sigma * math.sqrt(2 * math.pi)) * math.exp(-0.5)
        return ((blur(borders, sigma) - cut) * sigma / cut + 0.5).clamp(0, 1)

    def own(self) -> Tensor:
        """The subject's colours, also a little beyond its outline."""
        return (blur(self.front, 1.2) / (blur(self.alpha, 1.2) + 0.02)).clamp(0, 1)

    def normals(self, depth: float = 1.0) -> Tensor:
        """Unit normals of the subject, puffed up part by part (as `Layers.relief`)."""
        inside = self.alpha * (1 - 0.9 * self.lines(self.outline, 1.3, 1.3))
        height = 1.6 * blur(inside, 1.6) + 2.6 * blur(inside, 3.6) + 5 * blur(self.alpha, 8)
        return normals(height, depth * self.uniform(0.5, 1.7))

    def light(self) -> Tensor:
        """The direction to a lamp somewhere above, [n, 3, 1, 1]."""
        angle = self.uniform(-math.pi, 0)
        return F.normalize(torch.cat((angle.cos(), angle.sin(), self.uniform(0.4, 1.2)), 1), dim=1)

    def shaded(self, front: Tensor, chance: float = 0.7) -> Tensor:
        """``front`` (weighted by alpha) with light, shade and perhaps gloss, or flat."""
        normal, light = self.normals(), self.light()
        lambert = (normal * light).sum(1, keepdim=True).clamp(0, 1)
        viewer = (torch.arange(3, device=light.device) == 2).float().view(1, 3, 1, 1)
        half = F.normalize(light + viewer, dim=1)
        gloss = (normal * half).sum(1, keepdim=True).clamp(0, 1) ** self.uniform(8, 40)
        soft = self.uniform(0.3, 0.9)
        step = self.chance(0.25)
        tone = torch.where(step > 0, ((lambert - soft) * 9).clamp(0, 1), lambert)
        low = self.uniform(0.3, 0.9)
        lit = front * (low + (1.15 - low) * tone) + self.alpha * gloss * self.uniform(0, 0.6) * (1 - step)
        return torch.where(self.chance(chance) > 0, lit, front)

    def colors(self, keep: float = 0.55, mono: float = 0.3) -> tuple[Tensor, Tensor]:
        """Recoloured front (weighted by alpha) and back: near their own colours, along a ramp, or odd."""
        size = self.alpha.shape[-1]
        front = self.front / self.alpha.clamp(min=0.02)
        both = torch.cat((front, self.back), 3)  # [n, 3, h, 2 w]: one mapping for both
        near = ((both * self.uniform(0.8, 1.2)).clamp(1e-3, 1)) ** self.uniform(0.65, 1.5)
        near = saturate(near, self.uniform(0.4, 2.4))
        near = mix(near, self.color(0.2), self.uniform(0, 0.35))
        tones = torch.cat((self.tone / self.alpha.clamp(min=0.02), luma(self.back)), 3)
        gray = torch.where(self.chance(0.8) > 0, tones, luma(both)).clamp(0, 1)
        gray = (gray + self.uniform(-0.15, 0.15)).clamp(0, 1) ** self.uniform(0.6, 1.6)
        dark, middle, bright = self.color(0, 0.45), self.color(0.3, 0.8), self.color(0.65, 1, 0.6)
        upside_down = self.chance(0.3) > 0
        dark, bright = torch.where(upside_down, bright, dark), torch.where(upside_down, dark, bright)
        ramped = ramp(gray, dark, torch.where(self.chance(0.5) > 0, (dark + bright) / 2, middle), bright)
        matrix = torch.randn(len(self), 3, 3, device=both.device).softmax(-1)
        shuffled = torch.eye(3, device=both.device)[torch.rand(len(self), 3, device=both.device).argsort(1)]
        matrix = torch.where(self.chance(0.5)[..., 0] > 0, shuffled, matrix)
        odd = torch.einsum("nij,njhw->nihw", matrix, both)
        odd = torch.where(self.chance(0.4) > 0, 1 - odd, saturate(odd, self.uniform(1, 2.5)))
        kind = self.uniform(0, 1)
        result = torch.where(kind < keep, near, torch.where(kind < keep + mono, ramped, odd)).clamp(0, 1)
        front, back = result.split(size, 3)
        return front * self.alpha, self.ground(back)

    def ground(self, back: Tensor) -> Tensor:
        """The background as it is, or duller, blurred, darker, paler, or no background at all."""
        soft = blur(back, self.uniform(1, 6))
        flat = self.color().expand_as(back)
        x, y = self.grid()
        fade = (0.5 + (x * self.uniform(-1, 1) + y * self.uniform(-1, 1)) / 128).clamp(0, 1)
        graded = mix(self.color(), self.color(), fade)
        toned = mix(back, self.color(), self.uniform(0.3, 0.8))
        return self.pick(back, back, soft, flat, graded, toned, back * self.uniform(0.2, 0.7))

    def over(self, front: Tensor, back: Tensor) -> Tensor:
        """The subject before a background."""
        return front + back * (1 - self.alpha)

    def inked(self, picture: Tensor, ink: Tensor, low: float = 1.2, high: float = 4.0) -> Tensor:
        """Outlines in ``ink``, fainter along markings, details and the background's parts."""
        near = self.lines(self.outline, low, high)
        fine = self.lines(self.detail, low, 0.6 * low + 0.4 * high) * self.uniform(0, 1)
        far = self.lines(self.far, low, 0.5 * (low + high)) * (1 - self.alpha) * self.uniform(0, 1)
        return mix(picture, ink, torch.maximum(torch.maximum(near, fine), far))

    def ink(self) -> Tensor:
        """A colour of lines: dark, light, any, or that of what they surround."""
        base_color = self.own()
        dark, light = self.color(0, 0.3).expand_as(base_color), self.color(0.75, 1, 0.4).expand_as(base_color)
        return self.pick(
            dark,
            dark,
            light,
            self.color().expand_as(base_color),
            base_color * 0.5,
            mix(base_color, base_color * 0 + 1, 0.5),
        )


def tinted(p: Planes) -> Tensor:
    """Shaded or flat colours, no lines."""
    front, back = p.colors()
    return p.over(p.shaded(front), back)


def outlined(p: Planes) -> Tensor:
    """Colours with outlines."""
    front, back = p.colors()
    return p.inked(p.over(p.shaded(front, 0.5), back), p.ink())


def drawn(p: Planes) -> Tensor:
    """Lines on a dark or light ground, barely filled."""
    front, back = p.colors(0.5, 0.4)
    ground = p.pick(p.color(0, 0.5), p.color(0.7, 1, 0.5)).expand_as(front)
    ground = mix(ground, back, p.uniform(0, 0.3))
    filled = mix(ground, front + ground * (1 - p.alpha), p.uniform(0, 0.6) * p.alpha)
    contrast = (luma(ground) < 0.5).float() * p.uniform(0.6, 1)
    base_color = saturate(mix(p.own(), contrast, 0.3), p.uniform(1, 2.5))
    single = mix(p.color(), contrast, p.uniform(0.5, 1)).expand_as(base_color)
    return p.inked(filled, p.pick(base_color, single), 1.0, 3.5)


def glowing(p: Planes) -> Tensor:
    """Lines and edges that shine into the dark around them."""
    front, back = p.colors(0.7, 0.15)
    base_color = p.own()
    base_color = base_color / (base_color.amax(1, keepdim=True) + 0.05)
    base_color = torch.where(p.chance(0.75) > 0, base_color, p.color(0.6).expand_as(base_color))
    dark = p.color(0, 0.25) + back * p.uniform(0, 0.25)
    strength = torch.maximum(p.lines(p.outline, 1.5, 3.5), p.uniform(0, 1) * p.lines(p.detail, 1.2, 2.5))
    picture = mix(dark, front, p.alpha * p.uniform(0, 0.6))
    halo = blur(strength, p.uniform(1.5, 4)) * p.uniform(0.4, 1.6) + blur(strength, p.uniform(5, 10))
    far = p.lines(p.far, 1.2, 2.5) * (1 - p.alpha) * p.uniform(0, 0.8)
    picture = picture + base_color * halo * p.uniform(0.3, 1) + p.color(0.4) * (far + blur(far, 3))
    return mix(picture, mix(base_color, base_color * 0 + 1, p.uniform(0, 0.8)), strength)


def halftone(p: Planes) -> Tensor:
    """Dots whose size follows the light, or the brightness."""
    front, back = p.colors(0.7, 0.2)
    x, y = p.grid()
    angle, period = p.uniform(0, 1.6), p.uniform(5, 15)
    u, v = x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()
    far = ((u % period - period / 2) ** 2 + (v % period - period / 2) ** 2).sqrt()
    picture = p.over(front, back)
    size = 1 - luma(p.over(p.shaded(front, 1.0), back))
    dots = (period * 0.7 * size * p.uniform(0.6, 1.1) - far + 0.5).clamp(0, 1)
    printed = mix(p.color(0.6, 1, 0.5), torch.where(p.chance(0.5) > 0, picture, p.color(0, 0.5)), dots)
    spotted = mix(picture, picture * 0.5, dots * p.uniform(0.3, 1))
    printed = torch.where(p.chance(0.6) > 0, spotted, printed)
    return torch.where(p.chance(0.6) > 0, p.inked(printed, p.ink()), printed)


def hatched(p: Planes) -> Tensor:
    """Parallel or crossed lines that swell where it is dark."""
    _, back = p.colors()
    tone = p.shaded(p.tone.expand(-1, 3, -1, -1), 0.8).mean(1, keepdim=True) + luma(back) * (1 - p.alpha)
    wave = p.waves(5, 16, 20)
    wave = torch.where(p.chance(0.4) > 0, (wave + p.waves(5, 16, 20)) / 2, wave)
    steep = p.uniform(1.5, 5)
    cut = ((tone - p.uniform(0.1, 0.4) - p.uniform(0.2, 0.7) * (wave - 0.2)) * steep + 0.5).clamp(0, 1)
    base_color = torch.where(p.chance(0.3) > 0, p.over(p.front, back), p.color(0, 0.45).expand_as(back))
    picture = mix(base_color, p.color(0.7, 1, 0.5), cut)
    picture = torch.where(p.chance(0.7) > 0, p.inked(picture, p.ink()), picture)
    return torch.where(p.chance(0.2) > 0, 1 - picture, picture)


def tiled(p: Planes) -> Tensor:
    """Cells of one colour with joints between them, the subject finer or on top."""
    front, back = p.colors(0.75, 0.15)
    picture = p.over(p.shaded(front, 0.4), back)
    tiles, border = tile(p, picture, p.uniform(6, 26))
    picture = mix(tiles, picture, torch.maximum(p.alpha, p.chance(0.2)) * p.uniform(0.2, 1))
    joint = p.pick(p.color(0, 0.25), p.color(0.6, 1, 0.5)).expand_as(picture)
    joints = (p.uniform(0.6, 2.4) - border).clamp(0, 1) * torch.maximum(1 - p.alpha, p.chance(0.4))
    picture = mix(picture, joint, joints * p.uniform(0.3, 1))
    return torch.where(p.chance(0.6) > 0, p.inked(picture, joint), picture)


def layered(p: Planes) -> Tensor:
    """Sheets on sheets, each with a shadow, some with a rim."""
    front, back = p.colors(0.7, 0.2)
    shift = [int(n) for n in (3, 3)]

    def cast(mask: Tensor) -> Tensor:
        return 1 - p.uniform(0.1, 0.6) * blur(mask, p.uniform(1, 3)).roll(shift, (2, 3))

    far = p.lines(p.far, 1, 2)
    back = mix(back * cast(far), p.color(0.7), far * p.uniform(0, 0.8))
    seams = p.lines(p.outline, 1, 2)
    paint = mix(front * cast(seams), p.alpha * p.color(0.7), seams * p.uniform(0, 0.8))
    rim = ((blur(p.alpha, p.uniform(1, 3)) * 5 - 0.9).clamp(0, 1)) * p.chance(0.7)
    back = mix(back * cast(torch.maximum(rim, p.alpha)), p.color(0.6, 1, 0.6), rim)
    return p.over(paint, back)


def glazed(p: Planes) -> Tensor:
    """Two or three tones that run into each other under a shining coat."""
    front, back = p.colors(0.25, 0.7)
    run = (p.noise(8, 20) - 0.5) * p.uniform(0, 0.35)
    picture = p.over(p.shaded(front + run * p.alpha, 1.0), back)
    strokes = blur(p.lines(p.outline, 2, 4), p.uniform(0.5, 1.2))
    fine = blur(p.lines(p.detail, 1.5, 3), 0.6) * p.uniform(0, 1)
    ink = p.pick(p.color(0, 0.5), p.color(0, 0.3), p.color(0.6))
    return mix(picture, ink, torch.maximum(strokes, fine) * p.uniform(0.2, 1))


def textured(p: Planes) -> Tensor:
    """Paint on something rough, pooled or thin at its rims."""
    front, back = p.colors()
    rims = blur(p.lines(p.detail, 1.5, 3), 1.0) * p.uniform(-0.4, 0.5)
    soft = p.uniform(0.3, 2.5)
    picture = blur(p.over(p.shaded(front, 0.4), back), soft) * (1 - rims)
    grain = p.pick(p.noise(3, 14), p.noise(3, 9, 5), p.waves(4, 14, 10), p.waves(4, 9) * p.waves(4, 9))
    picture = picture + (grain - 0.5) * p.uniform(0.1, 0.6)
    bare = ((p.noise(4, 12, 4) - p.uniform(0.2, 0.5)) * p.uniform(1.5, 4)).clamp(0, 1)
    return torch.where(p.chance(0.4) > 0, mix(p.color(), picture, bare), picture)


def coarse(p: Planes) -> Tensor:
    """Few pixels, or few levels of every colour."""
    front, back = p.colors()
    picture = p.over(p.shaded(front, 0.5), back)
    picture = torch.where(p.chance(0.4) > 0, p.inked(picture, p.ink()), picture)
    sizes = [F.interpolate(F.avg_pool2d(picture, n), scale_factor=float(n)) for n in (2, 4)]
    picture = p.pick(picture, *sizes)
    levels = p.uniform(2, 7).round()
    return torch.where(p.chance(0.7) > 0, (picture * levels).round() / levels, picture)


def scribbled(p: Planes) -> Tensor:
    """Broken strokes of something dry on a ground that shows through."""
    front, back = p.colors(0.65, 0.25)
    ground = p.pick(p.color(0, 0.4), p.color(0.65, 1, 0.5)) + (p.noise(10, 40) - 0.5) * p.uniform(0, 0.25)
    strokes = ((p.noise(4, 9, 5) - p.uniform(0.15, 0.4)) * p.uniform(2, 5)).clamp(0, 1)
    strokes = mix(strokes, strokes * 0 + 1, p.uniform(0, 0.7))
    picture = mix(ground, front + ground * (1 - p.alpha), p.alpha * strokes * p.uniform(0.3, 1))
    picture = mix(picture, back, (1 - p.alpha) * strokes * p.uniform(0, 0.7))
    rough = 1 - p.uniform(0, 0.8) * (1 - (p.noise(3, 8) * 1.6).clamp(0, 1))
    inked = p.inked(picture, p.ink(), 1.5, 3.5)
    return mix(picture, inked, rough)


def convolved(p: Planes) -> Tensor:
    """What a small random network makes of colours, lines and light."""
    front, back = p.colors(0.6, 0.2)
    picture = p.inked(p.over(p.shaded(front, 0.6), back), p.ink())
    n, hidden = len(p), 8
    x = torch.cat((picture, p.lines(p.outline, 1.5, 3), p.noise(5, 20, 4)), 1) - 0.5
    for inputs, outputs, side in ((5, hidden, 5), (hidden, 3, 3)):
        weight = torch.randn(n * outputs, inputs, side, side, device=x.device) / math.sqrt(inputs * side)
        size = x.shape[-2:]
        padded = F.pad(x, [side // 2] * 4, mode="replicate").reshape(
            1, n * inputs, *(s + side - 1 for s in size)
        )
        x = F.conv2d(padded, weight, groups=n).view(n, outputs, *size).tanh()
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    return mix((x - low) / (high - low + 1e-4), picture, p.uniform(0, 0.8))


def turned_over(p: Planes) -> Tensor:
    """Negatives and solarised pictures."""
    front, back = p.colors(0.7, 0.2)
    picture = p.over(p.shaded(front), back)
    sun = p.uniform(0.3, 0.8)
    solar = torch.where(picture > sun, (1 - picture) * sun / (1 - sun + 1e-3), picture)
    return torch.where(p.chance(0.5) > 0, 1 - picture, solar / solar.amax((1, 2, 3), keepdim=True))


def embossed(p: Planes) -> Tensor:
    """Pressed into a sheet of one material: light on the relief of parts and markings."""
    height = blur(p.alpha, 2.5) * 3 + blur(p.marks, 1.2) * p.uniform(0.5, 2) + blur(luma(p.back), 2)
    lit = (normals(height, 2.0 * p.uniform(0.6, 1.4)) * p.light()).sum(1, keepdim=True)
    return mix(p.color(0.3), p.over(p.front, p.back), p.uniform(0, 0.35) * p.alpha) * (0.4 + 0.8 * lit)


def woven(p: Planes) -> Tensor:
    """Stitches of four pixels."""
    front, back = p.colors(0.8, 0.1)
    small = F.avg_pool2d(p.over(front, back), 4)
    x, y = p.grid()
    cross = ((x - y) % 4 - 2).abs().minimum(((x + y) % 4 - 2).abs())
    return F.interpolate(small, scale_factor=4.0) * (1 - p.uniform(0.2, 0.6) * (1 - cross.clamp(0, 1)))


def contoured(p: Planes) -> Tensor:
    """Lines of equal brightness, as on a map."""
    tone = blur(p.tone + luma(p.back) * (1 - p.alpha), 1.5) * p.uniform(4, 8)
    line = (
        1.2 - (tone % 1 - 0.5).abs() / (0.02 + blur(tone.diff(dim=3, append=tone[..., -1:]).abs(), 1))
    ).clamp(0, 1)
    return mix(mix(p.color(0.6), p.over(p.front, p.back), p.uniform(0, 0.7)), p.color(0, 0.4), line)


FAMILIES: Mapping[str, Callable[[Planes], Tensor]] = {
    family.__name__: family
    for family in (
        tinted, outlined, drawn, glowing, halftone, hatched, tiled, layered, glazed, textured, coarse,
        scribbled, convolved, turned_over,
    )
}  # fmt: skip
TUNING: Mapping[str, Callable[[Planes], Tensor]] = {f.__name__: f for f in (embossed, woven, contoured)}


@torch.no_grad()
def paint_randomly(planes: Planes) -> Tensor:
    """A picture in a random style for every scene: the families in turn, a third of each mixed with another.

    The number of scenes is a multiple of that of the families.
    """
    families = list(FAMILIES.values())
    count = len(planes) // len(families)
    pictures = []
    for number, family in enumerate(families):
        part = planes.part(slice(number * count, (number + 1) * count))
        picture = family(part)
        if mixed := count // 3:
            other = families[(number + 5) % len(families)](part.part(slice(mixed)))
            shown = part.alpha[:mixed]
            shown = torch.where(part.part(slice(mixed)).chance(0.5) > 0, shown, 1 - shown)
            picture = torch.cat((mix(picture[:mixed], other, shown), picture[mixed:]))
        pictures.append(picture)
    return finish(planes, torch.cat(pictures))


def finish(p: Planes, picture: Tensor) -> Tensor:
    """A border, uneven light, other contrast, softness and noise, each on some of the pictures."""
    x, y = p.grid()
    square, round_ = torch.maximum(x.abs(), y.abs()), (x**2 + y**2).sqrt()
    wavy = round_ + 4 * (torch.atan2(y, x) * p.uniform(4, 9).round()).cos() * p.chance(0.5)
    edge = torch.where(p.chance(0.5) > 0, square - p.uniform(52, 62), wavy - p.uniform(58, 74))
    border = edge.clamp(0, 1) * p.chance(0.2)
    picture = mix(picture, p.color() + (p.waves(4, 12) - 0.5) * p.uniform(0, 0.3), border)
    light = (
        1
        - p.chance(0.4)
        * p.uniform(0, 0.5)
        * ((x - p.uniform(-60, 60)) ** 2 + (y - p.uniform(-60, 60)) ** 2)
        / 9000
    )
    picture = (picture * light - 0.5) * p.uniform(0.75, 1.2) + 0.5 + p.uniform(-0.08, 0.08)
    picture = torch.where(p.chance(0.25) > 0, blur(picture, p.uniform(0.3, 1.0)), picture)
    picture = picture + p.chance(0.3) * p.uniform(0, 0.08) * torch.randn_like(picture)
    return picture.clamp(0, 1)


def blur(field: Tensor, sigma: Tensor | float, across: Tensor | float | None = None) -> Tensor:
    """Gaussian blur; ``sigma`` in pixels of a 128-pixel picture, for all or each; perhaps another along x."""
    size = field.shape[-1]

    def kernel(width: Tensor | float) -> Tensor:
        at = torch.arange(size, device=field.device, dtype=torch.float32)
        weights = (-0.5 * ((at[:, None] - at) / (width * size / 128)) ** 2).exp()
        return weights / weights.sum(-1, keepdim=True)

    down = kernel(sigma)
    right = down if across is None else kernel(across)
    return down @ field @ right.transpose(-1, -2)


def turn(field: Tensor, angle: Tensor) -> Tensor:
    """Each field turned about its middle, reflected at its borders."""
    c, s = angle.flatten().cos(), angle.flatten().sin()
    matrix = torch.stack((torch.stack((c, -s, 0 * c), 1), torch.stack((s, c, 0 * c), 1)), 1)
    at = F.affine_grid(matrix, list(field.shape), align_corners=False)
    return F.grid_sample(field, at, padding_mode="reflection", align_corners=False)


def normals(height: Tensor, depth: Tensor | float) -> Tensor:
    """Unit normals [n, 3, h, w] of a height field."""
    padded = F.pad(height, (1, 1, 1, 1), "replicate")
    dx = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
    dy = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
    return F.normalize(torch.cat((-dx * depth, -dy * depth, torch.ones_like(dx)), 1), dim=1)


def tile(p: Planes, picture: Tensor, pitch: Tensor, side: int = 32) -> tuple[Tensor, Tensor]:
    """Cells about ``pitch`` wide: their mean colours, and the distance to the next joint."""
    n, device = len(p), picture.device
    jitter = (torch.rand(n, side * side, 2, device=device) - 0.5) * p.uniform(0, 0.8).view(n, 1, 1)
    x, y = (at + 64 for at in p.grid())
    column, row = (x / pitch).floor().expand_as(p.alpha), (y / pitch).floor().expand_as(p.alpha)
    nearest = second = torch.full_like(p.alpha, 1e4)
    index = torch.zeros_like(p.alpha, dtype=torch.long)
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            c, r = column + right, row + down
            number = ((r + 1) * side + c + 1).long().clamp(0, side * side - 1)
            offset = jitter.gather(1, number.view(n, -1, 1).expand(-1, -1, 2)).view(*p.alpha.shape, 2)
            far = (
                ((c + 0.5 + offset[..., 0]) * pitch - x) ** 2 + ((r + 0.5 + offset[..., 1]) * pitch - y) ** 2
            ).sqrt()
            second = torch.minimum(second, torch.maximum(far, nearest))
            index = torch.where(far < nearest, number, index)
            nearest = torch.minimum(nearest, far)
    flat = index.view(n, 1, -1)
    sums = torch.zeros(n, 4, side * side, device=device)
    values = torch.cat((picture, torch.ones_like(p.alpha)), 1).flatten(2)
    sums = sums.scatter_add(2, flat.expand(-1, 4, -1), values)
    shade = 1 + (torch.rand(n, 1, side * side, device=device) - 0.5) * p.uniform(0, 0.5).view(n, 1, 1)
    means = sums[:, :3] / sums[:, 3:].clamp(min=1) * shade
    return means.gather(2, flat.expand(-1, 3, -1)).view_as(picture), (second - nearest) / 2


def mix(a: Tensor, b: Tensor | float, amount: Tensor | float) -> Tensor:
    """From a (amount 0) to b (amount 1)."""
    return a + (b - a) * amount


def luma(picture: Tensor) -> Tensor:
    """The brightness of a picture, [n, 1, h, w]."""
    red, green, blue = picture.split(1, 1)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def saturate(picture: Tensor, amount: Tensor | float) -> Tensor:
    """Colours pulled away from or towards gray."""
    gray = luma(picture)
    return (gray + (picture - gray) * amount).clamp(0, 1)


def ramp(gray: Tensor, dark: Tensor, middle: Tensor, bright: Tensor) -> Tensor:
    """Brightness to colour along three stops."""
    return torch.where(gray < 0.5, mix(dark, middle, 2 * gray), mix(middle, bright, 2 * gray - 1))
