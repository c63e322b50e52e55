"""Small pieces of HTML; whatever came from a dataset or a config goes through `escaped`."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path

from perdure.files import write_whole
from perdure.report.thumbnails import thumbnail

__all__ = ["LOGO", "bullet", "chart", "escaped", "listed", "percent", "picture", "signed", "table", "write_page"]

LOGO = (
    '<svg viewBox="0 0 32 32" aria-hidden="true"><rect width="32" height="32" rx="9" fill="var(--accent)"/>'
    '<circle cx="14" cy="14" r="6.5" fill="none" stroke="#fff" stroke-width="2.6"/>'
    '<path d="M19 19l5.5 5.5" stroke="#fff" stroke-width="2.8" stroke-linecap="round"/></svg>'
)


def escaped(text: object) -> str:
    """Any text as text."""
    return html.escape(str(text))


def percent(value: float | None, unit: str = "") -> str:
    """A fraction as percent with one decimal, or a dash."""
    return "–" if value is None else f"{100 * value:.1f}{unit}"


def signed(value: float) -> str:
    """A change of a fraction in points, with its sign; none where it rounds to nothing."""
    rounded = round(100 * value, 1)
    return "±0.0" if rounded == 0 else f"{'+' if rounded > 0 else '−'}{abs(rounded):.1f}"


def bullet(colour: str) -> str:
    """A dot in a colour of the page."""
    return f'<i class="dot" style="background:{colour}"></i>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]], words: Sequence[int]) -> str:
    """A plain table of cells that are HTML already; columns not in `words` hold figures and are set to the right."""

    def row(cells: Sequence[str], tag: str) -> str:
        parts = (f"<{tag}{'' if column in words else ' class=n'}>{cell}</{tag}>" for column, cell in enumerate(cells))
        return f"<tr>{''.join(parts)}</tr>"

    body = "".join(row(cells, "td") for cells in rows)
    return f'<div class="scroll"><table class="plain"><thead>{row(head, "th")}</thead><tbody>{body}</tbody></table></div>'


def listed(entries: Sequence[tuple[str, str]]) -> str:
    """A list of words and what they mean."""
    return f"<dl>{''.join(f'<dt>{escaped(word)}</dt><dd>{escaped(text)}</dd>' for word, text in entries)}</dl>"


def chart(caption: str, svg: str) -> str:
    """A chart with a line of words above it; both are HTML already."""
    return f'<figure class="chart"><figcaption>{caption}</figcaption>{svg}</figure>'


def picture(data: bytes | None, words: str) -> str:
    """An encoded picture inside the page, as small as it is shown; an empty frame where there is none."""
    if not data:
        return '<div class="nopicture"></div>'
    shown = thumbnail(data)
    kind = "webp" if shown[:4] == b"RIFF" else "jpeg" if shown[:3] == b"\xff\xd8\xff" else "png"
    return f'<img alt="{escaped(words)}" src="data:image/{kind};base64,{base64.b64encode(shown).decode()}">'


def write_page(path: Path, title: str, body: str) -> None:
    """Write a whole page with its style, in place of what was there."""
    style = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{escaped(title)}</title><style>{style}</style></head><body><main>{body}'
        "<footer>Written by Perdure. This page is complete: it loads nothing and runs no script.</footer></main></body></html>"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, page)
