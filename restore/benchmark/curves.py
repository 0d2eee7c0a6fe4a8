"""Two charts as SVG text: quality against MACs, and the images of a set under two models."""

import html
import math
from dataclasses import dataclass

from ..page import Html

WIDTH, HEIGHT = 520, 360
LEFT, RIGHT, TOP, BOTTOM = 74, 16, 34, 46
COLOURS = ("#0a66c2", "#c2410c", "#15803d", "#9333ea", "#b45309", "#0e7490", "#be185d", "#4d7c0f")


@dataclass(frozen=True)
class Point:
    """A point with its label; points of one ``group`` are joined by a line, ``hollow`` ones are numbers from elsewhere."""

    x: float
    y: float
    label: str
    group: str = ""
    hollow: bool = False


def quality_against_cost(points, title, y_label, x_label="GMACs per image"):
    """Labelled points over a logarithmic axis of cost, or "" if there are none."""
    points = [p for p in points if p.x and p.x > 0]
    if not points:
        return Html("")
    xs, ys = _Axis([p.x for p in points], LEFT, WIDTH - RIGHT, logarithmic=True), \
        _Axis([p.y for p in points], HEIGHT - BOTTOM, TOP)
    parts = _frame(xs, ys, title, x_label, y_label)
    groups = list(dict.fromkeys(p.group for p in points))
    for number, group in enumerate(groups):
        colour = COLOURS[number % len(COLOURS)]
        members = sorted((p for p in points if p.group == group), key=lambda p: p.x)
        if len(members) > 1:
            path = " ".join(f"{xs(p.x):.1f},{ys(p.y):.1f}" for p in members)
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        for p in members:
            parts.append(_dot(xs(p.x), ys(p.y), colour, p.hollow, 5, f"{p.label}: {p.y:.2f} at {p.x:.3g} {x_label}"))
    parts += _labels([(xs(p.x), ys(p.y), p.label) for p in points])
    return _svg(parts, title)


def scatter(first, second, names, labels, title):
    """One dot an image: ``first`` across, ``second`` up, with the diagonal on which both are equal."""
    low, high = min(*first, *second), max(*first, *second)
    xs, ys = _Axis([low, high], LEFT, WIDTH - RIGHT), _Axis([low, high], HEIGHT - BOTTOM, TOP)
    parts = _frame(xs, ys, title, *labels)
    ends = (max(xs.low, ys.low), min(xs.high, ys.high))
    parts.append(f'<path d="M{xs(ends[0]):.1f} {ys(ends[0]):.1f}L{xs(ends[1]):.1f} {ys(ends[1]):.1f}" '
                 'stroke="currentColor" stroke-dasharray="4 4" opacity="0.6"/>')
    parts += [_dot(xs(x), ys(y), COLOURS[0], False, 3.5, f"{name}: {x:.3f} and {y:.3f}")
              for x, y, name in zip(first, second, names)]
    return _svg(parts, title)


class _Axis:
    """Values to pixels, with round ticks."""

    def __init__(self, values, start, end, logarithmic=False):
        self.logarithmic, self.start, self.end = logarithmic, start, end
        low, high = min(values), max(values)
        if logarithmic:
            low, high = low / 1.25, high * 1.25
            self.ticks = [m * 10.0 ** e for e in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
                          for m in ((1, 2, 5) if high / low < 100 else (1,)) if low <= m * 10.0 ** e <= high]
        else:
            margin = (high - low) * 0.08 or abs(high) * 0.01 or 1.0
            low, high = low - margin, high + margin
        if not logarithmic or len(self.ticks) < 2:
            step = _round_step((high - low) / 5)
            self.ticks = [step * i for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
        self.low, self.high = low, high

    def __call__(self, value):
        scale = math.log if self.logarithmic else float
        share = (scale(value) - scale(self.low)) / (scale(self.high) - scale(self.low))
        return self.start + share * (self.end - self.start)


def _round_step(rough):
    power = 10.0 ** math.floor(math.log10(rough))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)


def _frame(xs, ys, title, x_label, y_label):
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = [_text(LEFT, 18, title, weight="600")]
    for tick in xs.ticks:
        parts.append(f'<line x1="{xs(tick):.1f}" y1="{TOP}" x2="{xs(tick):.1f}" y2="{bottom}" stroke="currentColor" opacity="0.12"/>')
        parts.append(_text(xs(tick), bottom + 16, f"{tick:.6g}", "middle"))
    for tick in ys.ticks:
        parts.append(f'<line x1="{LEFT}" y1="{ys(tick):.1f}" x2="{right}" y2="{ys(tick):.1f}" stroke="currentColor" opacity="0.12"/>')
        parts.append(_text(LEFT - 6, ys(tick) + 4, f"{tick:.6g}", "end"))
    parts.append(f'<path d="M{LEFT} {TOP}V{bottom}H{right}" fill="none" stroke="currentColor" opacity="0.6"/>')
    parts.append(_text((LEFT + right) / 2, HEIGHT - 8, x_label, "middle"))
    middle = (TOP + bottom) / 2
    parts.append(_text(14, middle, y_label, "middle", f' transform="rotate(-90 14 {middle:.1f})"'))
    return parts


def _labels(points):
    """Labels beside their points, moved down where they would cover one another."""
    parts, placed = [], []
    for x, y, label in sorted(points):
        width = 6.6 * len(label)
        left = x + 8 if x + 8 + width < WIDTH else x - 8 - width
        top = y + 4
        while any(abs(top - other) < 12 and left < end and begin < left + width for begin, end, other in placed):
            top += 12
        placed.append((left, left + width, top))
        parts.append(_text(left, top, label))
    return parts


def _dot(x, y, colour, hollow, radius, title):
    fill = "none" if hollow else colour
    return (f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{fill}" stroke="{colour}" stroke-width="1.5">'
            f"<title>{html.escape(title)}</title></circle>")


def _text(x, y, text, anchor="start", more="", weight="400"):
    return (f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}" fill="currentColor" '
            f'font-family="system-ui, sans-serif" font-size="12"{more}>{html.escape(text)}</text>')


def _svg(parts, title):
    return Html(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
                f'role="img" aria-label="{html.escape(title)}">\n' + "\n".join(parts) + "\n</svg>")
