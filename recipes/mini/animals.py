"""Animals, each a list of parts from back to front; ``v`` shapes the individual, ``p`` the pose."""

from __future__ import annotations

from recipes.mini.shapes import Part, Vary, blob, curve, ellipse, line, mirror, polygon, rotate, tube


def _eye(x: float, y: float, r: float) -> list[Part]:
    return [
        Part("eye", ellipse(x, y, r, r * 1.12), line=False),
        Part("glint", ellipse(x - r * 0.3, y - r * 0.38, r * 0.38, r * 0.38), line=False),
    ]


def fox(v: Vary, p: Vary) -> list[Part]:
    ear, bush, leg = v(0.34, 0.6), v(0.17, 0.29), v(0.13, 0.19)
    wide, lift = v(0.92, 1.12), p(-0.12, 0.1)
    hx, hy = -0.36, -0.2 + p(-0.04, 0.04)
    path = curve((0.5, 0.52), (0.84, 0.42), (0.92, -0.02 + lift), (0.72, -0.44 + lift))
    parts = [
        Part("body", tube(path, 0.16, bush * 1.7, bush * 2.1, bush * 1.5, 0.05)),
        Part("light", tube(path[-9:], bush * 1.6, bush * 1.15, 0.04)),
    ]
    for x in (-0.02, 0.36):
        parts += [
            Part("shade", line(x, 0.6, x + 0.03, 0.92, leg * 1.2, leg)),
            Part("dark", line(x + 0.02, 0.84, x + 0.03, 0.92, leg, leg)),
        ]
    parts.append(
        Part(
            "body",
            blob(
                (-0.45, 0.2),
                (0.0, 0.16),
                (0.42, 0.2),
                (0.62, 0.45),
                (0.5, 0.72),
                (0.1, 0.68),
                (-0.35, 0.74),
                (-0.55, 0.5),
            ),
        )
    )
    for x in (-0.36, 0.5):
        parts += [
            Part("body", line(x, 0.55, x, 0.92, leg * 1.5, leg)),
            Part("dark", line(x, 0.82, x, 0.92, leg * 1.02, leg * 1.05)),
        ]
    parts.append(
        Part(
            "light", blob((hx - 0.2, 0.15), (hx + 0.2, 0.15), (hx + 0.12, 0.5), (hx, 0.62), (hx - 0.14, 0.5))
        )
    )
    outer = polygon(
        (hx + 0.06, hy - 0.22), (hx + 0.4 * wide, hy - 0.3 - ear), (hx + 0.5 * wide, hy), round=0.16
    )
    inner = polygon(
        (hx + 0.2, hy - 0.24),
        (hx + 0.375 * wide, hy - 0.22 - ear * 0.7),
        (hx + 0.42 * wide, hy - 0.1),
        round=0.1,
    )
    parts += [Part("body", outer), Part("dark", inner, line=False)]
    parts += [Part("body", mirror(outer, hx)), Part("dark", mirror(inner, hx), line=False)]
    half = [(0.0, -0.34), (0.3, -0.27), (0.5 * wide, 0.04), (0.3, 0.27), (0.1, 0.42)]
    head = half + [(-x, y) for x, y in half[:0:-1]]
    parts.append(Part("body", blob(*[(hx + x, hy + y) for x, y in head])))
    half = [(0.0, 0.12), (0.22, 0.05), (0.49 * wide, 0.07), (0.3, 0.27), (0.1, 0.42)]
    cheeks = half + [(-x, y) for x, y in half[:0:-1]]
    parts.append(Part("light", blob(*[(hx + x, hy + y) for x, y in cheeks]), line=False))
    parts += _eye(hx - 0.21, hy + 0.02, 0.075) + _eye(hx + 0.21, hy + 0.02, 0.075)
    parts.append(Part("eye", ellipse(hx, hy + 0.31, 0.085, 0.065), line=False))
    return parts


def cat(v: Vary, p: Vary) -> list[Part]:
    ear, fat, tail = v(0.24, 0.42), v(0.85, 1.15), v(0.1, 0.17)
    sway, round_head = p(-0.1, 0.1), v(0.92, 1.1)
    path = curve((0.3, 0.88), (0.72, 0.8), (0.8, 0.42), (0.66 + sway, 0.1), (0.82 + sway, -0.2))
    parts = [
        Part("body", tube(path, 0.18, tail * 1.4, tail * 1.3, tail * 1.2)),
        Part(
            "body",
            blob(
                (0, -0.05),
                (0.34 * fat, 0.25),
                (0.46 * fat, 0.7),
                (0.3 * fat, 0.98),
                (-0.3 * fat, 0.98),
                (-0.46 * fat, 0.7),
                (-0.34 * fat, 0.25),
            ),
        ),
        Part(
            "light",
            blob((0, 0.1), (0.2, 0.3), (0.17, 0.66), (0, 0.78), (-0.17, 0.66), (-0.2, 0.3)),
            line=False,
        ),
    ]
    for x in (-0.17, 0.17):
        parts.append(Part("body", line(x, 0.62, x, 0.86, 0.2, 0.24)))
        parts.append(Part("light", ellipse(x, 0.92, 0.16, 0.09)))
    y = -0.38
    outer = polygon((0.1, y - 0.3), (0.42 * round_head, y - 0.36 - ear), (0.52 * round_head, y), round=0.13)
    inner = polygon(
        (0.22, y - 0.32),
        (0.39 * round_head, y - 0.26 - ear * 0.75),
        (0.44 * round_head, y - 0.14),
        round=0.08,
    )
    for flip in (lambda points: points, mirror):
        parts += [Part("body", flip(outer)), Part("pink", flip(inner), line=False)]
    parts.append(Part("body", ellipse(0, y, 0.54 * round_head, 0.43)))
    parts.append(
        Part(
            "light",
            blob(
                (0, y + 0.06),
                (0.2, y + 0.12),
                (0.22, y + 0.3),
                (0, y + 0.37),
                (-0.22, y + 0.3),
                (-0.2, y + 0.12),
            ),
            line=False,
        )
    )
    for side in (-1, 1):
        parts.append(Part("lamp", ellipse(side * 0.23, y - 0.04, 0.115, 0.13), line=False))
        parts.append(Part("eye", ellipse(side * 0.22, y - 0.04, 0.06, 0.12), line=False))
        parts.append(Part("glint", ellipse(side * 0.22 - 0.03, y - 0.09, 0.03, 0.035), line=False))
        for slope in (-0.03, 0.09):
            parts.append(
                Part(
                    "eye",
                    line(side * 0.26, y + 0.16 + slope / 2, side * 0.66, y + 0.13 + slope, 0.035, 0.03),
                    line=False,
                )
            )
    parts.append(Part("nose", ellipse(0, y + 0.12, 0.075, 0.055), line=False))
    return parts


def owl(v: Vary, p: Vary) -> list[Part]:
    fat, tuft, disc = v(0.9, 1.12), v(0.18, 0.38), v(0.25, 0.31)
    look = p(-0.04, 0.04)
    parts = [
        Part("wood", line(-0.95, 0.9, 0.95, 0.86, 0.16, 0.2)),
        Part("body", polygon((-0.6 * fat, -0.45), (-0.62 * fat, -0.72 - tuft), (-0.1, -0.7), round=0.1)),
        Part("body", polygon((0.6 * fat, -0.45), (0.62 * fat, -0.72 - tuft), (0.1, -0.7), round=0.1)),
        Part(
            "body",
            blob(
                (0, -0.82),
                (0.5 * fat, -0.66),
                (0.66 * fat, -0.1),
                (0.58 * fat, 0.5),
                (0, 0.88),
                (-0.58 * fat, 0.5),
                (-0.66 * fat, -0.1),
                (-0.5 * fat, -0.66),
            ),
        ),
        Part("light", blob((0, -0.05), (0.34, 0.1), (0.34, 0.52), (0, 0.8), (-0.34, 0.52), (-0.34, 0.1))),
    ]
    for y, xs in ((0.28, (-0.16, 0.16)), (0.5, (0.0,))):
        parts += [
            Part(
                "body",
                blob((x - 0.11, y - 0.06), (x, y - 0.02), (x + 0.11, y - 0.06), (x, y + 0.1)),
                line=False,
            )
            for x in xs
        ]
    wing = blob(
        (0.52 * fat, -0.2), (0.74 * fat, 0.05), (0.72 * fat, 0.45), (0.46 * fat, 0.72), (0.42 * fat, 0.3)
    )
    parts += [Part("second", wing), Part("second", mirror(wing))]
    for side in (-1, 1):
        parts.append(Part("light", ellipse(side * 0.27, -0.36, disc, disc)))
        parts.append(Part("eye", ellipse(side * 0.25 + look, -0.36, disc * 0.56, disc * 0.56), line=False))
        parts.append(Part("glint", ellipse(side * 0.25 + look - 0.05, -0.42, 0.05, 0.05), line=False))
        for x in (0.14, 0.28):
            parts.append(Part("beak", ellipse(side * x, 0.87, 0.07, 0.09)))
    parts.append(Part("beak", polygon((-0.11, -0.26), (0.11, -0.26), (0, 0.02), round=0.06)))
    return parts


def bird(v: Vary, p: Vary) -> list[Part]:
    fat, beak, tail = v(0.9, 1.12), v(0.24, 0.44), v(0.3, 0.5)
    nod, flap = p(-0.04, 0.05), p(-14, 12)
    parts = []
    for x in (-0.02, 0.22):
        parts.append(Part("beak", line(x, 0.6, x - 0.02, 0.94, 0.07, 0.07)))
        parts.append(Part("beak", line(x - 0.2, 0.96, x + 0.08, 0.96, 0.06, 0.08)))
    parts += [
        Part(
            "second", polygon((0.4, 0.1), (0.6 + tail, -0.25), (0.72 + tail, 0.02), (0.45, 0.45), round=0.12)
        ),
        Part(
            "beak", polygon((-0.66, -0.5 + nod), (-0.7 - beak, -0.33 + nod), (-0.62, -0.22 + nod), round=0.05)
        ),
        Part(
            "body",
            blob(
                (-0.4, -0.82 + nod),
                (-0.1, -0.62 + nod),
                (0.2, -0.2),
                (0.62, 0.08),
                (0.5, 0.48 * fat),
                (0.1, 0.72 * fat),
                (-0.4, 0.56 * fat),
                (-0.64, 0.12),
                (-0.74, -0.36 + nod),
                (-0.64, -0.7 + nod),
            ),
        ),
        Part(
            "light",
            blob(
                (-0.58, 0.0), (-0.3, 0.06), (-0.12, 0.4), (0.08, 0.66 * fat), (-0.3, 0.56 * fat), (-0.56, 0.3)
            ),
            line=False,
        ),
        Part(
            "second",
            rotate(
                blob((-0.14, -0.06), (0.24, 0.0), (0.66, 0.24), (0.36, 0.44), (0.0, 0.36), (-0.18, 0.16)),
                flap,
                (-0.1, 0.1),
            ),
        ),
    ]
    if v.pick(2):
        parts.insert(
            0,
            Part(
                "second",
                blob(
                    (-0.5, -0.7 + nod),
                    (-0.46, -1.0 + nod),
                    (-0.34, -0.88 + nod),
                    (-0.16, -0.96 + nod),
                    (-0.24, -0.66 + nod),
                ),
            ),
        )
    return parts + _eye(-0.44, -0.46 + nod, 0.095)


def fish(v: Vary, p: Vary) -> list[Part]:
    deep, fan, fin = v(0.44, 0.66), v(0.36, 0.62), v(0.2, 0.42)
    wag = p(-0.1, 0.1)
    return [
        Part(
            "second",
            blob(
                (0.42, 0.0),
                (0.7, -fan + wag),
                (1.0, -fan + wag),
                (0.86, wag),
                (1.0, fan + wag),
                (0.7, fan + wag),
            ),
        ),
        Part(
            "second",
            blob(
                (-0.35, -deep * 0.75),
                (-0.15, -deep - fin),
                (0.3, -deep - fin * 0.6),
                (0.4, -deep * 0.45),
                (0, -deep * 0.6),
            ),
        ),
        Part(
            "second",
            blob((-0.05, deep * 0.7), (0.15, deep + fin * 0.8), (0.36, deep + fin * 0.6), (0.35, deep * 0.5)),
        ),
        Part(
            "body",
            blob(
                (-0.95, 0.04),
                (-0.66, -deep * 0.72),
                (-0.15, -deep),
                (0.35, -deep * 0.62),
                (0.62, 0.0),
                (0.35, deep * 0.62),
                (-0.15, deep),
                (-0.66, deep * 0.74),
            ),
        ),
        Part(
            "light",
            blob((-0.93, 0.08), (-0.7, 0.06), (-0.48, 0.3), (-0.5, deep * 0.84), (-0.72, deep * 0.66)),
            line=False,
        ),
        Part(
            "second",
            rotate(
                blob((-0.1, 0.08), (0.24, 0.0), (0.34, 0.2), (0.2, 0.4), (0.0, 0.3)), wag * 90, (-0.1, 0.15)
            ),
        ),
        Part("glint", ellipse(-0.6, -0.12, 0.14, 0.15)),
        Part("eye", ellipse(-0.62, -0.11, 0.085, 0.095), line=False),
        Part("eye", tube(curve((-0.9, 0.16), (-0.8, 0.2), (-0.7, 0.16)), 0.04, 0.05, 0.03), line=False),
    ]


def butterfly(v: Vary, p: Vary) -> list[Part]:
    top, low, tip = v(0.85, 1.05), v(0.5, 0.78), v(-0.95, -0.7)
    open_ = p(0.86, 1.0)
    parts = []
    upper = blob(
        (0.06, -0.12), (0.3, -0.6), (0.8 * top, tip), (1.0 * top, -0.5), (0.82 * top, -0.06), (0.3, 0.1)
    )
    lower = blob((0.06, 0.02), (0.45, 0.06), (0.8 * top, 0.26), (low + 0.1, 0.74), (0.36, 0.78), (0.12, 0.4))
    spot = ellipse(0.66 * top, -0.46, 0.17, 0.2, 30)
    eye = ellipse(0.48, 0.42, 0.16, 0.18)
    for flip in (lambda points: points, mirror):
        parts += [Part("shade", flip(lower) * (open_, 1)), Part("body", flip(upper) * (open_, 1))]
        parts += [Part("second", flip(spot) * (open_, 1)), Part("second", flip(eye) * (open_, 1))]
    for side in (-1, 1):
        parts.append(
            Part(
                "eye",
                tube(curve((0, -0.5), (side * 0.1, -0.76), (side * 0.28, -0.9)), 0.045, 0.045, 0.08),
                line=False,
            )
        )
    parts.append(
        Part("dark", blob((0, -0.6), (0.1, -0.5), (0.09, 0.1), (0, 0.66), (-0.09, 0.1), (-0.1, -0.5)))
    )
    parts.append(Part("dark", ellipse(0, -0.52, 0.13, 0.12)))
    return parts


def turtle(v: Vary, p: Vary) -> list[Part]:
    dome, neck, leg = v(0.78, 1.02), v(0.0, 0.22), v(0.2, 0.28)
    nod = p(-0.06, 0.06)
    hx, hy = -0.78, 0.02 - neck + nod
    parts = [
        Part("leaf", polygon((0.66, 0.52), (1.0, 0.66), (0.66, 0.72), round=0.08)),
        Part("leaf", tube(curve((-0.5, 0.5), (-0.7, 0.35), (hx, hy)), 0.3, 0.26, 0.26)),
        Part("leaf", ellipse(hx - 0.03, hy, 0.24, 0.2)),
    ]
    for x in (-0.38, 0.42):
        parts.append(Part("leaf", line(x, 0.6, x - 0.02, 0.9, leg * 1.15, leg * 1.05)))
    shell = blob(
        (-0.66, 0.58),
        (-0.56, 0.58 - dome * 0.62),
        (-0.2, 0.62 - dome * 1.04),
        (0.2, 0.62 - dome * 1.04),
        (0.6, 0.58 - dome * 0.62),
        (0.72, 0.58),
        (0.4, 0.66),
        (-0.36, 0.66),
    )
    parts += [
        Part("body", shell),
        Part("second", tube(curve((-0.68, 0.56), (0.0, 0.64), (0.74, 0.56)), 0.14, 0.2, 0.14)),
    ]
    return parts + _eye(hx - 0.08, hy - 0.05, 0.07)


def snail(v: Vary, p: Vary) -> list[Part]:
    shell, stalk, turn = v(0.52, 0.64), v(0.26, 0.46), v(0, 60)
    tilt = p(-0.06, 0.06)
    cx, cy = 0.2, 0.7 - shell
    parts = []
    for x, lean in ((-0.66, -0.12), (-0.5, 0.06)):
        parts.append(Part("cream", line(x, 0.3, x + lean + tilt, 0.24 - stalk, 0.11, 0.08)))
        parts += [Part("eye", ellipse(x + lean + tilt, 0.22 - stalk, 0.085, 0.085), line=False)]
    parts.append(
        Part(
            "cream",
            blob(
                (-0.82, 0.42),
                (-0.66, 0.18),
                (-0.42, 0.26),
                (-0.3, 0.56),
                (0.3, 0.66),
                (0.96, 0.88),
                (0.6, 0.95),
                (-0.5, 0.95),
                (-0.78, 0.82),
            ),
        )
    )
    parts.append(Part("body", ellipse(cx, cy, shell, shell)))
    turns = [(turn + k * 60, shell * (0.86 - 0.085 * k)) for k in range(9)]
    spiral = [tuple(rotate(ellipse(0, 0, 1, 1)[:1] * r, a)[0] + (cx, cy)) for a, r in turns]
    parts.append(Part("second", tube(curve(*spiral), 0.05, 0.15, 0.15, 0.13, 0.13)))
    return parts
