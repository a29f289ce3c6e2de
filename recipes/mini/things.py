"""Plants and things, each a list of parts from back to front; ``v`` shapes the individual, ``p`` the pose."""

from __future__ import annotations

from recipes.mini.shapes import (
    Part,
    Vary,
    blob,
    box,
    curve,
    ellipse,
    line,
    mirror,
    move,
    polygon,
    rotate,
    tube,
)


def rose(v: Vary, p: Vary) -> list[Part]:
    size, lean, layers = v(0.58, 0.68), p(-0.08, 0.08), v(0, 50)
    y = -0.32
    stem = curve((0.02, 0.98), (-0.04, 0.5), (lean, y + 0.2))
    leaf = blob((0.0, 0.62), (0.24, 0.3), (0.66, 0.24), (0.5, 0.58), (0.2, 0.7))
    parts = [Part("leaf", tube(stem, 0.1, 0.1)), Part("leaf", leaf)]
    parts.append(Part("leaf", mirror(leaf) * (0.9, 0.9) + (0, 0.22)))
    for angle in (60, 180, 300):
        parts.append(
            Part(
                "leaf",
                move(rotate(polygon((-0.16, 0), (0.16, 0), (0, size * 1.12), round=0.05), angle), lean, y),
            )
        )
    for k in range(5):
        petal = ellipse(0, -size * 0.58, size * 0.52, size * 0.46)
        parts.append(Part("body", move(rotate(petal, layers + k * 72), lean, y)))
    for k in range(4):
        petal = ellipse(0, -size * 0.34, size * 0.4, size * 0.34)
        parts.append(Part("shade" if k % 2 else "body", move(rotate(petal, layers + 40 + k * 90), lean, y)))
    parts.append(Part("second", ellipse(lean, y, size * 0.36, size * 0.34)))
    spiral = [
        (lean + 0.02, y),
        (lean + 0.1, y + 0.02),
        (lean + 0.02, y + 0.1),
        (lean - 0.1, y),
        (lean, y - 0.12),
    ]
    parts.append(Part("shade", tube(curve(*spiral), 0.05, 0.06, 0.05), line=False))
    return parts


def mushroom(v: Vary, p: Vary) -> list[Part]:
    cap, thick, high = v(0.82, 0.98), v(0.2, 0.32), v(0.72, 0.92)
    lean = p(-0.06, 0.06)
    return [
        Part(
            "cream",
            blob(
                (lean - thick, -0.05),
                (lean + thick, -0.05),
                (thick * 1.05, 0.5),
                (thick * 1.5, 0.92),
                (0, 0.99),
                (-thick * 1.5, 0.92),
                (-thick * 1.05, 0.5),
            ),
        ),
        Part("second", ellipse(lean, 0.16, thick * 1.5, 0.12)),
        Part("second", ellipse(lean, 0.0, cap * 0.94, 0.2)),
        Part(
            "body",
            blob(
                (lean - cap, 0.0),
                (lean - cap * 0.82, -0.5 * high),
                (lean, -high),
                (lean + cap * 0.82, -0.5 * high),
                (lean + cap, 0.0),
                (lean + cap * 0.5, 0.02),
                (lean, -0.03),
                (lean - cap * 0.5, 0.02),
            ),
        ),
    ]


def tree(v: Vary, p: Vary) -> list[Part]:
    wide, trunk, round_ = v(0.85, 1.05), v(0.16, 0.26), v(0.9, 1.1)
    sway = p(-0.05, 0.05)
    crown = (
        (-0.52, -0.08, 0.38),
        (0.52, -0.1, 0.38),
        (-0.36, -0.5, 0.36),
        (0.38, -0.5, 0.36),
        (0.0, -0.68, 0.32),
        (0.0, -0.1, 0.44),
    )
    path = curve((0, 0.95), (0.02, 0.5), (sway, 0.0))
    parts = [
        Part("wood", tube(path, trunk * 1.9, trunk * 1.1, trunk)),
        Part("wood", line(0.02, 0.38, 0.36, 0.02, trunk * 0.5, trunk * 0.4)),
        *(Part("body", ellipse(x * wide + sway, y * round_, r * wide, r * round_)) for x, y, r in crown),
    ]
    for x, y in ((-0.5, 0.0), (0.06, 0.06), (0.5, -0.3), (-0.24, -0.5)):
        parts.append(Part("second", ellipse(x * wide + sway, y * round_, 0.1, 0.105)))
    return parts


def cactus(v: Vary, p: Vary) -> list[Part]:
    thick, left, right = v(0.42, 0.56), v(-0.25, 0.15), v(-0.3, 0.1)
    grow = p(-0.04, 0.04)
    arm = thick * 0.55
    return [
        Part(
            "body",
            tube(
                curve((-0.1, 0.34), (-0.52, 0.3), (-0.6, 0.05), (-0.6, left - 0.24 + grow)),
                arm,
                arm,
                arm,
                arm,
            ),
        ),
        Part(
            "body",
            tube(
                curve((0.1, 0.16), (0.54, 0.12), (0.62, -0.1), (0.62, right - 0.32 - grow)),
                arm,
                arm,
                arm,
                arm,
            ),
        ),
        Part("body", line(0, 0.7, 0, -0.62, thick * 1.05, thick)),
        Part("second", ellipse(-0.12, -0.88, 0.13, 0.13)),
        Part("second", ellipse(0.12, -0.88, 0.13, 0.13)),
        Part("second", ellipse(0, -0.94, 0.12, 0.13)),
        Part("second", ellipse(0.62, right - 0.5 - grow, 0.1, 0.1)),
        Part("clay", polygon((-0.44, 0.52), (0.44, 0.52), (0.34, 0.98), (-0.34, 0.98), round=0.06)),
        Part("clay", box(-0.52, 0.44, 0.52, 0.6, 0.06)),
    ]


def house(v: Vary, p: Vary) -> list[Part]:
    wide, roof, wall = v(0.66, 0.8), v(0.62, 0.85), v(-0.1, 0.08)
    door = (v(-0.4, 0.1), 0.32)[0]
    side = p(-0.02, 0.02)
    window = -door * 0.9 + 0.02 if door < -0.15 else door - 0.46
    return [
        Part("brick", box(wide * 0.35, wall - roof, wide * 0.35 + 0.24, wall - 0.1, 0.03)),
        Part("body", box(-wide, wall - 0.06, wide, 0.98)),
        Part(
            "second",
            polygon(
                (-wide - 0.2, wall + 0.06),
                (-0.02 + side, wall - roof),
                (0.02 + side, wall - roof),
                (wide + 0.2, wall + 0.06),
                round=0.08,
            ),
        ),
        Part("wood", box(door, 0.4, door + 0.34, 0.98, 0.08)),
        Part("lamp", ellipse(door + 0.27, 0.7, 0.04, 0.04), line=False),
        Part("light", box(window - 0.04, 0.26, window + 0.38, 0.66, 0.04)),
        Part("lamp", box(window + 0.02, 0.32, window + 0.32, 0.6)),
        Part("light", box(window + 0.14, 0.3, window + 0.2, 0.62), line=False),
        Part("lamp", ellipse(0, wall - roof * 0.38, 0.13, 0.13)),
    ]


def boat(v: Vary, p: Vary) -> list[Part]:
    long, mast, belly = v(0.82, 0.98), v(-0.98, -0.8), v(0.36, 0.5)
    gust = p(0.0, 0.1)
    return [
        Part("wood", box(-0.1, mast, 0.0, 0.55, 0.03)),
        Part(
            "second",
            polygon((0.04, mast + 0.08), (0.12, mast + 0.08), (0.78 + gust, 0.3), (0.04, 0.3), round=0.1),
        ),
        Part(
            "light",
            polygon((-0.14, mast + 0.3), (-0.2, mast + 0.3), (-0.66 + gust, 0.3), (-0.14, 0.3), round=0.1),
        ),
        Part("second", polygon((-0.05, mast - 0.02), (0.32, mast + 0.05), (-0.05, mast + 0.14), round=0.02)),
        Part(
            "body",
            polygon(
                (-long, 0.42),
                (long, 0.42),
                (long * 0.66, 0.5 + belly),
                (-long * 0.6, 0.5 + belly),
                round=0.14,
            ),
        ),
        Part("light", box(-long * 0.98, 0.4, long * 0.98, 0.5, 0.05)),
    ]


def car(v: Vary, p: Vary) -> list[Part]:
    roof, front, wheel = v(-0.52, -0.34), v(-0.42, -0.26), v(0.22, 0.28)
    bounce = p(-0.03, 0.03)
    parts = [
        Part(
            "second",
            polygon((front - 0.24, 0.12), (front, roof), (0.4, roof), (0.68, 0.12), round=0.18),
        ),
        Part(
            "glass",
            polygon(
                (front - 0.08, 0.08),
                (front + 0.06, roof + 0.13),
                (0.02, roof + 0.13),
                (0.02, 0.08),
                round=0.07,
            ),
        ),
        Part(
            "glass",
            polygon((0.12, 0.08), (0.12, roof + 0.13), (0.36, roof + 0.13), (0.52, 0.08), round=0.07),
        ),
        Part(
            "body",
            blob(
                (-0.98, 0.4),
                (-0.92, 0.16),
                (-0.5, 0.06),
                (0.1, 0.04),
                (0.66, 0.04),
                (0.96, 0.18),
                (0.98, 0.5),
                (0.9, 0.64),
                (0.0, 0.66),
                (-0.92, 0.64),
            ),
        ),
        Part("lamp", ellipse(-0.87, 0.3, 0.08, 0.09), line=False),
        Part("metal", box(-1.0, 0.55, 1.0, 0.68, 0.06)),
    ]
    parts = [Part(part.role, move(part.points, 0, bounce), part.line) for part in parts]
    for x in (-0.52, 0.54):
        parts += [
            Part("dark", ellipse(x, 0.7, wheel, wheel)),
            Part("metal", ellipse(x, 0.7, wheel * 0.48, wheel * 0.48)),
        ]
    return parts


def rocket(v: Vary, p: Vary) -> list[Part]:
    fat, fin, nose = v(0.32, 0.44), v(0.28, 0.46), v(-0.5, -0.34)
    flare = p(0.85, 1.1)
    wing = polygon((fat * 0.8, 0.12), (fat + fin, 0.52), (fat + fin, 0.84), (fat * 0.7, 0.6), round=0.1)
    return [
        Part("lamp", blob((-0.26, 0.6), (0.26, 0.6), (0.16, 0.82), (0.0, 1.02 * flare), (-0.16, 0.82))),
        Part("beak", blob((-0.14, 0.6), (0.14, 0.6), (0.0, 0.88 * flare)), line=False),
        Part("second", wing),
        Part("second", mirror(wing)),
        Part(
            "body",
            blob(
                (0, -1.0),
                (fat * 0.62, -0.66),
                (fat, -0.1),
                (fat * 0.95, 0.4),
                (fat * 0.66, 0.68),
                (-fat * 0.66, 0.68),
                (-fat * 0.95, 0.4),
                (-fat, -0.1),
                (-fat * 0.62, -0.66),
            ),
        ),
        Part(
            "second",
            blob(
                (0, -1.01),
                (fat * 0.6, -0.68),
                (fat * 0.8, nose),
                (0, nose + 0.06),
                (-fat * 0.8, nose),
                (-fat * 0.6, -0.68),
            ),
        ),
        Part("metal", ellipse(0, -0.06, 0.23, 0.23)),
        Part("glass", ellipse(0, -0.06, 0.155, 0.155), line=False),
        Part("second", line(0, 0.42, 0, 0.78, 0.12, 0.12)),
    ]


def robot(v: Vary, p: Vary) -> list[Part]:
    head, wide, arm = v(0.36, 0.5), v(0.42, 0.54), v(0.16, 0.22)
    wave = p(-0.5, 0.3)
    parts = [
        Part("metal", line(0, -0.6, 0, -0.92, 0.07, 0.07)),
        Part("lamp", ellipse(0, -0.94, 0.1, 0.1)),
        Part(
            "metal",
            tube(curve((wide - 0.04, 0.02), (wide + 0.22, 0.1), (wide + 0.34, 0.1 + wave)), arm, arm, arm),
        ),
        Part("second", ellipse(wide + 0.34, 0.1 + wave, 0.15, 0.15)),
        Part(
            "metal",
            tube(curve((-wide + 0.04, 0.02), (-wide - 0.2, 0.16), (-wide - 0.26, 0.44)), arm, arm, arm),
        ),
        Part("second", ellipse(-wide - 0.26, 0.46, 0.15, 0.15)),
    ]
    for x in (-0.23, 0.23):
        parts += [
            Part("metal", box(x - 0.11, 0.5, x + 0.11, 0.86)),
            Part("second", box(x - 0.19, 0.8, x + 0.19, 0.98, 0.1)),
        ]
    parts += [
        Part("metal", box(-0.14, -0.24, 0.14, 0.0)),
        Part("body", box(-wide, -0.12, wide, 0.64, 0.14)),
        Part("metal", box(-0.24, 0.12, 0.24, 0.4, 0.06)),
        Part("lamp", ellipse(-0.11, 0.26, 0.07, 0.07), line=False),
        Part("nose", ellipse(0.11, 0.26, 0.07, 0.07), line=False),
        Part("second", box(-head - 0.12, -0.54, head + 0.12, -0.34, 0.06)),
        Part("body", box(-head, -0.74, head, -0.2, 0.14)),
        Part("light", box(-head + 0.1, -0.64, head - 0.1, -0.3, 0.1)),
        Part("eye", box(-0.12, -0.4, 0.12, -0.36, 0.02), line=False),
    ]
    for x in (-0.15, 0.15):
        parts.append(Part("eye", ellipse(x, -0.51, 0.085, 0.085), line=False))
        parts.append(Part("glint", ellipse(x - 0.025, -0.54, 0.032, 0.032), line=False))
    return parts


def teapot(v: Vary, p: Vary) -> list[Part]:
    fat, spout, loop = v(0.5, 0.62), v(-0.36, -0.1), v(0.34, 0.46)
    lid = p(-0.02, 0.04)
    return [
        Part(
            "second",
            tube(
                curve((0.36, -0.12), (0.4 + loop, -0.28), (0.48 + loop, 0.2), (0.36, 0.56)),
                0.13,
                0.14,
                0.14,
                0.13,
            ),
        ),
        Part(
            "body",
            tube(curve((-0.4, 0.5), (-0.66, 0.3), (-0.74, 0.02), (-0.95, spout)), 0.36, 0.28, 0.2, 0.16),
        ),
        Part("second", line(-0.32, 0.9, 0.32, 0.9, 0.16, 0.16)),
        Part(
            "body",
            blob(
                (0, -0.38),
                (0.44, -0.22),
                (fat, 0.24),
                (0.46, 0.72),
                (0, 0.88),
                (-0.46, 0.72),
                (-fat, 0.24),
                (-0.44, -0.22),
            ),
        ),
        Part(
            "second",
            blob(
                (-0.4, -0.26 - lid),
                (-0.24, -0.5 - lid),
                (0, -0.58 - lid),
                (0.24, -0.5 - lid),
                (0.4, -0.26 - lid),
                (0, -0.2 - lid),
            ),
        ),
        Part("body", ellipse(0, -0.68 - lid, 0.13, 0.13)),
    ]


def mug(v: Vary, p: Vary) -> list[Part]:
    wide, high, loop = v(0.5, 0.62), v(-0.5, -0.26), v(0.3, 0.42)
    drift = p(-0.06, 0.06)
    steam = [
        Part(
            "steam",
            tube(
                curve(
                    (x, high - 0.14),
                    (x + 0.1, high - 0.26),
                    (x - 0.02 + drift, high - 0.4),
                    (x + 0.08 + drift, high - 0.54),
                ),
                0.06,
                0.1,
                0.05,
            ),
        )
        for x in (-0.3, 0.06)
    ]
    return [
        *steam,
        Part(
            "body",
            tube(
                curve(
                    (wide - 0.1, high + 0.26),
                    (wide + loop, high + 0.24),
                    (wide + loop + 0.02, 0.56),
                    (wide - 0.14, 0.7),
                ),
                0.16,
                0.17,
                0.17,
                0.16,
            ),
        ),
        Part(
            "body",
            polygon(
                (-wide - 0.14, high),
                (wide - 0.02, high),
                (wide - 0.12, 0.98),
                (-wide - 0.04, 0.98),
                round=0.16,
            ),
        ),
        Part("second", ellipse(-0.08, high, wide + 0.07, 0.16)),
        Part("cocoa", ellipse(-0.08, high + 0.015, wide - 0.04, 0.1)),
    ]


def guitar(v: Vary, p: Vary) -> list[Part]:
    hip, waist, neck = v(0.58, 0.7), v(0.34, 0.42), v(0.15, 0.19)
    tilt = p(20, 32)
    half = [(0.0, -0.12), (0.3, -0.08), (hip * 0.76, 0.1), (waist, 0.32), (hip, 0.66), (0.3, 0.98)]
    body = half + [(0.0, 1.02)] + [(-x, y) for x, y in half[:0:-1]]
    parts = [
        Part("second", polygon((-0.15, -1.0), (0.15, -1.0), (0.12, -0.68), (-0.12, -0.68), round=0.06)),
        Part("body", blob(*body)),
        Part("wood", box(-neck * 0.72, -0.8, neck * 0.72, 0.3)),
        Part("dark", ellipse(0, 0.3, 0.2, 0.2)),
        Part("second", box(-0.26, 0.7, 0.26, 0.8, 0.03)),
        Part("cream", box(-0.035, -0.8, 0.035, 0.74), line=False),
    ]
    for y in (-0.93, -0.79):
        parts += [Part("metal", ellipse(-0.19, y, 0.06, 0.05)), Part("metal", ellipse(0.19, y, 0.06, 0.05))]
    return [Part(part.role, rotate(part.points * (1, 1.02), tilt), part.line) for part in parts]


def lantern(v: Vary, p: Vary) -> list[Part]:
    wide, roof, base = v(0.44, 0.58), v(0.26, 0.42), v(0.5, 0.64)
    swing = p(-0.04, 0.04)
    return [
        Part(
            "metal",
            tube(
                curve((-0.24, -0.6), (-0.22 + swing, -0.94), (0.22 + swing, -0.94), (0.24, -0.6)),
                0.07,
                0.08,
                0.07,
            ),
        ),
        Part(
            "body",
            polygon(
                (-0.2, -0.3 - roof),
                (0.2, -0.3 - roof),
                (wide + 0.16, -0.26),
                (-wide - 0.16, -0.26),
                round=0.1,
            ),
        ),
        Part("second", box(-0.2, -0.4 - roof, 0.2, -0.26 - roof, 0.05)),
        Part("glow", polygon((-wide, -0.26), (wide, -0.26), (wide * 0.86, 0.7), (-wide * 0.86, 0.7))),
        Part("beak", blob((0, 0.02), (0.15, 0.34), (0.1, 0.58), (-0.1, 0.58), (-0.15, 0.34)), line=False),
        Part("lamp", blob((0, 0.24), (0.08, 0.42), (0.04, 0.57), (-0.04, 0.57), (-0.08, 0.42)), line=False),
        Part(
            "body",
            polygon(
                (-wide - 0.03, -0.26),
                (-wide + 0.12, -0.26),
                (-wide * 0.86 + 0.1, 0.7),
                (-wide * 0.86 - 0.05, 0.7),
            ),
        ),
        Part(
            "body",
            polygon(
                (wide + 0.03, -0.26),
                (wide - 0.12, -0.26),
                (wide * 0.86 - 0.1, 0.7),
                (wide * 0.86 + 0.05, 0.7),
            ),
        ),
        Part("second", box(-wide - 0.16, -0.3, wide + 0.16, -0.18, 0.05)),
        Part(
            "body",
            polygon((-base, 0.66), (base, 0.66), (base + 0.14, 0.98), (-base - 0.14, 0.98), round=0.08),
        ),
    ]


def balloon(v: Vary, p: Vary) -> list[Part]:
    fat, long, basket = v(0.72, 0.86), v(0.3, 0.44), v(0.2, 0.28)
    drift = p(-0.05, 0.05)
    return [
        Part("wood", line(-fat * 0.5, 0.1, drift - basket * 0.7, 0.74, 0.05, 0.05)),
        Part("wood", line(fat * 0.5, 0.1, drift + basket * 0.7, 0.74, 0.05, 0.05)),
        Part(
            "body",
            blob(
                (0, -1.0),
                (fat * 0.72, -0.82),
                (fat, -0.36),
                (fat * 0.8, 0.04),
                (0.3, long),
                (-0.3, long),
                (-fat * 0.8, 0.04),
                (-fat, -0.36),
                (-fat * 0.72, -0.82),
            ),
        ),
        Part(
            "second",
            blob(
                (0, -1.0),
                (0.2, -0.8),
                (0.27, -0.36),
                (0.22, 0.06),
                (0.13, long),
                (-0.13, long),
                (-0.22, 0.06),
                (-0.27, -0.36),
                (-0.2, -0.8),
            ),
        ),
        Part("second", box(-0.32, long - 0.06, 0.32, long + 0.06, 0.04)),
        Part(
            "wood",
            polygon(
                (drift - basket, 0.7),
                (drift + basket, 0.7),
                (drift + basket * 0.8, 0.98),
                (drift - basket * 0.8, 0.98),
                round=0.06,
            ),
        ),
        Part("cream", box(drift - basket - 0.04, 0.66, drift + basket + 0.04, 0.76, 0.04)),
    ]
