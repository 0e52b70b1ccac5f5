"""The gallery: validation scenes with the true box and the answers before and after, chosen by a rule that is stated.

selection: improved, unchanged and worse samples in the proportion they have among all, at least one of each there is;
within each, at evenly spaced ranks of the change in IoU. No person and no luck picks them.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

from PIL import Image as PILImage

from data.sample import Sample
from data.store import SampleStore
from rl.report.boxes import draw_boxes, support_boxes
from rl.report.markup import Markup, fixed, join, signed, tag
from rl.runlog import Corners, ValidationRecord
from rl.summary import CHANGED, Pair

# The images of a sample: the scene that the boxes are in, then the cues. Raises LookupError for an id it does not have.
Images = Callable[[str], Sequence[PILImage.Image]]
Ranked = TypeVar("Ranked")

CARDS = 12
SCENE_PIXELS, CUE_PIXELS = 480, 160
# Up to this size an image is kept lossless.
LOSSLESS_PIXELS = 200
ANSWER_CHARACTERS = 1200


def images_of(samples: Iterable[Sample]) -> Images:
    """Images by sample id: the target's image first, then the others in prompt order, supports with their boxes drawn.

    Decodes only what is asked for.
    """
    by_id = {sample.id: sample for sample in samples}

    def images(sample_id: str) -> list[PILImage.Image]:
        sample = by_id[sample_id]
        given = support_boxes(sample)
        others = [index for index in range(len(sample.images)) if index != sample.target_image]
        supports = [draw_boxes(sample.images[index].open(), given[index]) for index in others]
        return [sample.images[sample.target_image].open(), *supports]

    return images


def dataset_images(folder: str | None) -> Images | None:
    """Images of the folder's validation split, or None when it is not there, or not readable, any more."""
    if folder is None:
        return None
    try:
        return images_of(SampleStore(folder, "validation"))
    except ValueError:
        return None


@dataclass(frozen=True, slots=True)
class Selection:
    """The chosen pairs, best change first, and how many of all there are of each kind: improved, unchanged, worse."""

    pairs: tuple[Pair, ...]
    chosen: tuple[int, int, int]
    total: tuple[int, int, int]


def _change(pair: Pair) -> float:
    return pair[1].iou - pair[0].iou


def _kind(pair: Pair) -> int:
    return 0 if _change(pair) >= CHANGED else 2 if _change(pair) <= -CHANGED else 1


def _shares(counts: Sequence[int], places: int) -> list[int]:
    """Places for each kind: one where there is any, the rest by largest remainder."""
    total = sum(counts)
    if total <= places:
        return list(counts)
    shares = [min(count, 1) for count in counts]
    while sum(shares) < places:
        wanting = [
            count / total * places - share if share < count else -places for count, share in zip(counts, shares, strict=True)
        ]
        shares[max(range(len(counts)), key=lambda kind: wanting[kind])] += 1
    return shares


def spread(ranked: Sequence[Ranked], count: int) -> list[Ranked]:
    """`count` of them at evenly spaced ranks, ends included."""
    if count <= 1:
        return [ranked[len(ranked) // 2]] if count else []
    return [ranked[round(rank * (len(ranked) - 1) / (count - 1))] for rank in range(count)]


def select(pairs: Sequence[Pair], places: int = CARDS) -> Selection:
    """Apply the rule of this file's first lines."""
    ranked = sorted(pairs, key=lambda pair: (-_change(pair), pair[0].id))
    kinds = [[pair for pair in ranked if _kind(pair) == kind] for kind in range(3)]
    counts = [len(kind) for kind in kinds]
    shares = _shares(counts, places)
    chosen = [pair for kind, share in zip(kinds, shares, strict=True) for pair in spread(kind, share)]
    return Selection(tuple(chosen), (shares[0], shares[1], shares[2]), (counts[0], counts[1], counts[2]))


def data_uri(image: PILImage.Image, pixels: int) -> str:
    """The image, at most `pixels` on its longer side, as a data: address; small ones lossless."""
    shown = image.convert("RGB")
    shown.thumbnail((pixels, pixels), PILImage.Resampling.LANCZOS)
    encoded = io.BytesIO()
    kind = "png" if max(shown.size) <= LOSSLESS_PIXELS else "jpeg"
    shown.save(encoded, kind, **({"optimize": True} if kind == "png" else {"quality": 82}))
    return f"data:image/{kind};base64,{base64.b64encode(encoded.getvalue()).decode()}"


def _box(corners: Corners, class_: str, size: tuple[int, int]) -> Markup:
    """A box with a dark halo, cut at the image's edge so that its sides stay in sight."""
    inset = 0.004 * max(size)
    x1, y1 = (min(max(value, inset), side - inset) for value, side in zip(corners[:2], size, strict=True))
    x2, y2 = (min(max(value, inset), side - inset) for value, side in zip(corners[2:], size, strict=True))
    place = {"x": float(x1), "y": float(y1), "width": float(max(x2 - x1, 0)), "height": float(max(y2 - y1, 0))}
    halo = tag("rect", **place, class_="halo", vector_effect="non-scaling-stroke")
    return join((halo, tag("rect", **place, class_=f"box {class_}", vector_effect="non-scaling-stroke")))


def _scene(pair: Pair, scene: PILImage.Image | None) -> Markup:
    before, after = pair
    size = (before.width, before.height)
    told = f"Truth {_spoken(before.target)}; before {_spoken(before.prediction)}; after {_spoken(after.prediction)}."
    photo = (
        tag("image", href=data_uri(scene, SCENE_PIXELS), width=size[0], height=size[1], preserveAspectRatio="none")
        if scene is not None
        else tag("rect", width=size[0], height=size[1], class_="blank")
    )
    return tag(
        "svg",
        tag("title", f"Validation sample {before.id}"),
        tag("desc", told),
        photo,
        _box(before.target, "truth", size),
        _box(before.prediction, "before", size) if before.prediction else None,
        _box(after.prediction, "after", size) if after.prediction else None,
        viewBox=f"0 0 {size[0]} {size[1]}",
        role="img",
        class_="scene",
    )


def _spoken(corners: Corners | None) -> str:
    return "gave no box" if corners is None else f"[{', '.join(f'{value:.0f}' for value in corners)}]"


def _verdict(record: ValidationRecord, class_: str) -> Markup:
    note = "no box" if record.prediction is None else fixed(record.iou, 2)
    return tag("span", tag("i", class_=f"key {class_}"), note, class_="iou")


def _answer(when: str, record: ValidationRecord) -> Markup:
    text = record.text if len(record.text) <= ANSWER_CHARACTERS else f"{record.text[:ANSWER_CHARACTERS]}…"
    return join((tag("dt", when), tag("dd", tag("pre", text))))


def _pictures(sample_id: str, images: Images | None) -> Sequence[PILImage.Image]:
    """The sample's images; none when the dataset no longer has them, which the card then shows as an empty canvas."""
    if images is None:
        return []
    try:
        return images(sample_id)
    except (LookupError, ValueError):
        return []


def card(pair: Pair, images: Images | None) -> Markup:
    """One sample: scene with three boxes, cues beside it, the IoU before and after, the answers folded away."""
    before, after = pair
    pictures = _pictures(before.id, images)
    cues = [
        tag("img", src=data_uri(cue, CUE_PIXELS), alt=f"given image {number}", width=cue.width, height=cue.height)
        for number, cue in enumerate(pictures[1:], start=1)
    ]
    kind = ("better", "same", "worse")[_kind(pair)]
    figures = tag(
        "p",
        tag("span", "IoU", class_="unit"),
        _verdict(before, "before"),
        tag("span", "→", class_="arrow"),
        _verdict(after, "after"),
        tag("span", signed(_change(pair), 2), class_=f"delta {kind}"),
        class_="verdict",
    )
    wrong = None if after.picks_target or after.prediction is None else tag("span", "nearer to a distractor", class_="flag")
    side = tag("div", tag("span", "given", class_="unit"), *cues, class_="cues") if cues else None
    return tag(
        "article",
        tag("div", _scene(pair, pictures[0] if pictures else None), side, class_="pictures"),
        figures,
        tag("p", tag("code", before.id), wrong, class_="name"),
        tag("details", tag("summary", "answers"), tag("dl", _answer("before", before), _answer("after", after))),
        class_="card",
    )


def _aspect(selection: Selection) -> float:
    """Width over height of the cards' pictures: the scenes' median, kept from extremes."""
    return min(max(median(before.width / before.height for before, _ in selection.pairs), 0.75), 1.6)


def gallery(pairs: Sequence[Pair], images: Images | None, steps: tuple[int, int]) -> Markup:
    """The section's content: what is shown and by which rule, the legend, the cards."""
    selection = select(pairs)
    counted = zip(selection.chosen, selection.total, ("improved", "unchanged", "worse"), strict=True)
    counts = ", ".join(f"{chosen} of {total:,} {kind}" for chosen, total, kind in counted if total)
    rule = (
        f"Greedy answers at step {steps[0]:,} and step {steps[1]:,}: {counts} (IoU moved by {CHANGED:g} or more). "
        "Chosen by rule, not by eye: each kind in proportion, at least one, at evenly spaced ranks of the change."
    )
    legend = tag(
        "p",
        *(
            tag("span", tag("i", class_=f"key {name}"), label)
            for name, label in (("truth", "truth"), ("before", "before"), ("after", "after"))
        ),
        class_="legend",
    )
    return join(
        (
            tag("p", rule, class_="lead"),
            legend,
            tag(
                "div",
                *(card(pair, images) for pair in selection.pairs),
                class_="gallery",
                style=f"--aspect:{_aspect(selection):.3f}",
            ),
        )
    )
