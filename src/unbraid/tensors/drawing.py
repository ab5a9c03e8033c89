"""Operators as small SVG drawings: a box a site, output legs above, input legs below, bonds between."""

from __future__ import annotations

from collections.abc import Sequence

_STEP, _BOX, _LEG, _LEFT = 62, 30, 22, 16  # pixels
_MOST = 200  # sites that are drawn
_STYLE = (
    "text{font:11px system-ui,sans-serif;fill:#1a1a1a;text-anchor:middle;dominant-baseline:central}"
    ".line{stroke:#777;stroke-width:1.4}.core{fill:#e3efe0;stroke:#1b7837;stroke-width:1.2}"
)


def draw_operator(out_dims: Sequence[int], in_dims: Sequence[int], bond_dims: Sequence[int], title: str) -> str:
    """Draw the cores of an operator in their order, with the dimensions of all legs and bonds.

    Args:
        out_dims: one a site.
        in_dims: one a site.
        bond_dims: one fewer.
        title: for those who cannot see it.

    Returns:
        SVG text of its own size in pixels; of more than 200 sites the first 200.
    """
    sites = min(len(out_dims), _MOST)
    width, height = 2 * _LEFT + (sites - 1) * _STEP + _BOX, 2 * (_LEG + 14) + _BOX
    top = _LEG + 14
    middle = top + _BOX / 2
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">',
        f'<title>{title}</title><style>{_STYLE}</style><rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for k in range(sites):
        left = _LEFT + k * _STEP
        x = left + _BOX / 2
        parts.append(f'<path class="line" d="M{x:g} {top - _LEG + 8}V{top + _BOX + _LEG - 8}"/>')
        parts.append(f'<rect class="core" x="{left}" y="{top}" width="{_BOX}" height="{_BOX}" rx="4"/>')
        parts.append(
            f'<text x="{x:g}" y="{8}">{out_dims[k]}</text><text x="{x:g}" y="{height - 8}">{in_dims[k]}</text>'
        )
        if k < len(bond_dims) and k + 1 < sites:
            parts.append(f'<path class="line" d="M{left + _BOX} {middle:g}H{left + _STEP}"/>')
            parts.append(f'<text x="{left + (_BOX + _STEP) / 2:g}" y="{middle - 9:g}">{bond_dims[k]}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
