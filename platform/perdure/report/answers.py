"""The section of queries with their hits: what was found before the last task, after it, and by other runs."""

from collections.abc import Mapping, Sequence
from typing import Any

from perdure.report.charts import page_colour
from perdure.report.markup import bullet, escaped, picture
from perdure.report.pictures import Change, Example, ReportPictures
from perdure.report.reading import Report, strategy_words, task_name, task_names

__all__ = ["answers"]

_OPEN = 3
"""Queries of a group that are shown at once; the rest are folded away."""

_TITLES = {"image": "Search by picture", "text": "Search by words", "words": "Search by words"}
_RIGHT = {
    "image": "A hit is right (✓) when it is of the query's class.",
    "text": "A hit is right (✓) when the words were written for it; another picture of its class is marked ≈.",
    "words": "A hit is right (✓) when it is of the class that the words are about, whatever its modality.",
}


def answers(report: Report, pictures: ReportPictures) -> str:
    """Queries of each kind, then those that the last task changed most; right and wrong hits marked."""
    parts: list[str] = []
    for kind in dict.fromkeys(example.kind for example in pictures.examples):
        of_kind = [example for example in pictures.examples if example.kind == kind]
        chosen = [example for example in of_kind if not example.why]
        changed = [example for example in of_kind if example.why]
        right = sum(bool(example.hits and example.hits[0].get("right")) for example in chosen)
        count = f"{right} of these {len(chosen)} queries are answered right at once."
        words = f"<p>Best hit first, with its score. {_RIGHT.get(kind, '')} {count}</p>"
        parts.append(f"<h3>{_TITLES.get(kind, escaped(kind))}</h3>{words if chosen else ''}")
        parts.append(_folded([_example(example, report, pictures) for example in chosen]))
        told = "".join(_told(change, changed) for change in pictures.changes if change.kind == kind)
        if changed or told:
            parts.append(f"<h3>{_TITLES.get(kind, escaped(kind))}: what the last task changed</h3>{told}")
            parts.append(_folded([_example(example, report, pictures) for example in changed]))
    return "".join(parts)


def _told(change: Change, shown: Sequence[Example]) -> str:
    """The counts behind the few queries that are shown."""
    before, after = (f"{100 * count / max(change.queries, 1):.1f} %" for count in (change.right_before, change.right_after))
    return (
        f"<p>Of {change.queries} queries of earlier tasks, <b>{before}</b> were answered right at once before the last task and "
        f"<b>{after}</b> after it, when there was more to choose from: {change.lost} were lost, {change.won} were won."
        f"{' Below: those whose six hits lost or won most.' if shown else ''}</p>"
    )


def _folded(shown: Sequence[str]) -> str:
    more = shown[_OPEN:]
    rest = (
        f"<details><summary>{len(more)} more {'query' if len(more) == 1 else 'queries'}</summary>{''.join(more)}</details>" if more else ""
    )
    return "".join(shown[:_OPEN]) + rest


def _example(example: Example, report: Report, pictures: ReportPictures) -> str:
    last = f"after task {len(task_names(report))}" if task_names(report) else "now"
    rows: list[str] = []
    if example.before is not None:
        rows.append(_answer(f"before {last.removeprefix('after ')}", "", example.before, example))
    found = [(name, other) for name, other in _beside(example, pictures) if other.hits]
    own = strategy_words(report) if found else ""
    rows.append(_answer(last, own, example.hits, example))
    rows += [_answer(last, name, other.hits, example, told=False) for name, other in found]
    if example.kind in ("text", "words"):
        query = f"<blockquote>{escaped(example.text)}</blockquote><span>{_dot(example.task)}{escaped(example.label)}</span>"
    else:
        words = f"<span>{escaped(example.text)}</span>" if example.text != example.label else ""
        query = f"{picture(example.image, example.label)}<span>{_dot(example.task)}<b>{escaped(example.label)}</b></span>{words}"
    of_task = f", {escaped(task_name(report, example.task))}" if example.task is not None else ""
    why = f" · {'lost most' if example.why == 'lost' else 'won most'}" if example.why else ""
    asked = f'<div class="query"><small>{escaped(example.kind)} query{of_task}{why}</small>{query}</div>'
    return f'<div class="example">{asked}<div class="answers">{"".join(rows)}</div></div>'


def _beside(example: Example, pictures: ReportPictures) -> list[tuple[str, Example]]:
    """The same query as other runs answer it, where they were asked it."""
    out: list[tuple[str, Example]] = []
    for other in pictures.beside:
        kept = pictures.of_beside.get(str(other.get("name", "")))
        same = next((one for one in kept.examples if one.question() == example.question()), None) if kept else None
        if same is not None:
            out.append((strategy_words(other), same))
    return out


def _answer(when: str, by: str, hits: Sequence[Mapping[str, Any]], example: Example, *, told: bool = True) -> str:
    """One row of the grid: whose answer it is, how good it is, the encoder where that is to be told, and the hits."""
    places = [place for place, hit in enumerate(hits, start=1) if hit.get("right")]
    if example.kind == "text":
        verdict = f"found at place {places[0]}" if places else f"not among {len(hits)}"
    else:
        verdict = f"{len(places)} of {len(hits)} right"
    makers = {str(hit.get("encoder", "")).removeprefix("encoder/") for hit in hits}
    maker = f"<small>{escaped(next(iter(makers)))}</small>" if told and len(makers) == 1 else ""
    head = f"<div><b>{escaped(by or when)}</b>{f'<span>{escaped(when)}</span>' if by else ''}<span>{verdict}</span>{maker}</div>"
    shown = "".join(_hit(place, hit, example, several=len(makers) > 1) for place, hit in enumerate(hits, start=1))
    return f'<div class="answer">{head}<ol>{shown}</ol></div>'


def _hit(place: int, hit: Mapping[str, Any], example: Example, several: bool) -> str:
    label, maker, score = str(hit.get("label", "")), str(hit.get("encoder", "")), float(hit["score"])
    right = bool(hit.get("right"))
    kind, words, sign = ("right", "right", "✓") if right else ("wrong", "wrong", "✕")
    if not right and label == example.label:
        kind, words, sign = "near", "another picture of the right class", "≈"
    mark = f'<i class="mark" title="{words}">{sign}</i>'
    about = escaped(f"{place}. {hit.get('id', '')}: {label}, score {score:.4f}, {maker}")
    by = f" {escaped(maker.removeprefix('encoder/'))}" if several else ""
    inner = f"{picture(hit.get('png'), label)}{mark}<span>{_dot(hit.get('task'))}{escaped(label)}</span><small>{score:.2f}{by}</small>"
    return f'<li class="{kind}" title="{about}">{inner}</li>'


def _dot(task: Any) -> str:
    """The colour of the task that brought a class, where it is known."""
    return bullet(page_colour(task)) if isinstance(task, int) else ""
