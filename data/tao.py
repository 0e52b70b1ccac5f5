"""Reads TAO (Tracking Any Object): several annotated tracks a video, of which the most frequent one is the target.

    ROOT/annotations/train.json, validation.json      images, tracks, annotations, categories
    ROOT/frames/train/YFCC100M/v_0f3c…/frame0391.jpg  an image's file_name, below frames/

The target is the track with a box in the most images of its video; of several, the one with the smallest id. The others
are distractors: their boxes are in `TrackFrame.others`, who they are in metadata["distractors"]. Frames are all images that
the file lists of the video (TAO annotates one a second), by frame_index; where the target has no box, it is absent.
Boxes are [x, y, width, height], 0-based, and may begin outside of the image or be empty: they are kept as stated, and a
target whose box is empty counts as unannotated.

A category can carry the near-synonyms that were `merged` into it: tracks that name one of those are of the category that
remains, as in the TAO toolkit (`Tao._construct_merge_map`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from data.json_records import array, by_id, four_numbers, integer, is_file, read_json, text
from data.track import Absence, Corners, DamagedEntry, Track, TrackError, TrackFrame, TrackList
from data.track_files import has_area


@dataclass(frozen=True, slots=True)
class _Image:
    """An image record; `file_name` is below the folder of frames."""

    id: int
    file_name: str
    frame_index: int
    size: tuple[int, int]


@dataclass(frozen=True, slots=True)
class _Video:
    """All that the annotation file says of one video. `boxes` holds (track, image, the box as it stands in the file)."""

    file: Path
    frames: Path
    id: int
    images: tuple[_Image, ...]
    categories: dict[int, str]
    boxes: tuple[tuple[int, int, Any], ...]

    @property
    def where(self) -> str:
        return f"{self.file}: video {self.id}"


def read_tao(root: Path, split: str) -> TrackList:
    """One track for every video that has annotations, by video id. The annotation file is parsed here, once.

    Raises TrackError when it is missing or broken, or contradicts itself where no single video is concerned. What is wrong
    with the records of one video, its boxes and its image files comes out when that video is read.
    """
    file = root / "annotations" / f"{split}.json"
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in file.parent.glob("*.json")))
        raise TrackError(
            f"TAO has no split {split!r} under {root}: expected {file} and images under {root / 'frames'}"
            + (f"; there is an annotation file of {known}" if known else "")
        )
    content = read_json(file)
    videos = _Videos(file, root / "frames", _category_names(content, file))
    videos.add_images(content)
    videos.add_tracks(content)
    videos.add_annotations(content)
    return TrackList(videos.annotated(), _read_video, (file,))


def _category_names(content: Any, file: Path) -> dict[int, str]:
    """The name of every category id, a merged one's being that of the category which remains."""
    records = by_id(array(content, "categories", str(file)), "category", file)
    names = {number: text(record, "name", f"{file}: category {number}") for number, record in records.items()}
    merged: dict[int, str] = {}
    for number, record in records.items():
        where = f"{file}: category {number}"
        for synonym in array(record, "merged", where) if record.get("merged") is not None else []:
            gone = integer(synonym, "id", f"{where}: merged category")
            if gone in merged:
                raise TrackError(f"{where}: category {gone} was merged into another already")
            merged[gone] = names[number]
    return names | merged


class _Videos:
    """The annotation file's records, gathered by video."""

    def __init__(self, file: Path, frames: Path, category_names: Mapping[int, str]) -> None:
        self.file = file
        self.frames = frames
        self.category_names = category_names
        self.images: dict[int, list[_Image]] = defaultdict(list)
        self.categories: dict[int, dict[int, str]] = defaultdict(dict)
        self.boxes: dict[int, list[tuple[int, int, Any]]] = defaultdict(list)
        self.video_of_image: dict[int, int] = {}
        self.video_of_track: dict[int, int] = {}
        self.seen: set[tuple[int, int]] = set()
        self.annotation_ids: set[int] = set()
        self.faults: dict[int, str] = {}

    def add_images(self, content: Any) -> None:
        for number, record in by_id(array(content, "images", str(self.file)), "image", self.file).items():
            where = f"{self.file}: image {number}"
            video = self.video_of_image[number] = integer(record, "video_id", where)
            with self._fault_of(video):
                size = (integer(record, "width", where, least=1), integer(record, "height", where, least=1))
                image = _Image(number, text(record, "file_name", where), integer(record, "frame_index", where), size)
                self.images[video].append(image)

    def add_tracks(self, content: Any) -> None:
        for number, record in by_id(array(content, "tracks", str(self.file)), "track", self.file).items():
            where = f"{self.file}: track {number}"
            video = self.video_of_track[number] = integer(record, "video_id", where)
            with self._fault_of(video):
                self.categories[video][number] = self._category(record, where)

    def add_annotations(self, content: Any) -> None:
        for place, record in enumerate(array(content, "annotations", str(self.file))):
            where = f"{self.file}: annotation number {place}"
            video = self._video(record, where)
            with self._fault_of(video):
                self._add_annotation(video, record, where)

    def _add_annotation(self, video: int, record: Any, where: str) -> None:
        track, image = integer(record, "track_id", where), integer(record, "image_id", where)
        if track not in self.video_of_track:
            raise TrackError(f"{where}: there is no track {track}")
        if image not in self.video_of_image:
            raise TrackError(f"{where}: there is no image {image}")
        if (track, image) in self.seen:
            raise TrackError(f"{where}: track {track} has a box in image {image} already")
        if "category_id" in record and self._category(record, where) != self.categories[video].get(track):
            raise TrackError(f"{where}: its category is not that of its track {track}")
        if "bbox" not in record:
            raise TrackError(f"{where} lacks the key 'bbox'")
        if "id" in record:
            number = integer(record, "id", where)
            if number in self.annotation_ids:
                raise TrackError(f"{where}: another annotation has the id {number}")
            self.annotation_ids.add(number)
        self.seen.add((track, image))
        self.boxes[video].append((track, image, record["bbox"]))

    def annotated(self) -> tuple[_Video | DamagedEntry, ...]:
        return tuple(map(self._entry, sorted(self.boxes.keys() | self.faults.keys())))

    def _entry(self, video: int) -> _Video | DamagedEntry:
        if video in self.faults:
            return DamagedEntry(self.faults[video])
        images, boxes = tuple(self.images[video]), tuple(self.boxes[video])
        return _Video(self.file, self.frames, video, images, self.categories[video], boxes)

    @contextmanager
    def _fault_of(self, video: int) -> Iterator[None]:
        """The first fault in the records of a video is the video's, not the file's."""
        try:
            yield
        except TrackError as error:
            self.faults.setdefault(video, str(error))

    def _category(self, record: Any, where: str) -> str:
        number = integer(record, "category_id", where)
        if number not in self.category_names:
            raise TrackError(f"{where}: there is no category {number}")
        return self.category_names[number]

    def _video(self, record: Any, where: str) -> int:
        """The video of an annotation, by its track or by its image. Raises TrackError where they do not say one video."""
        known = []
        for key, videos in (("track_id", self.video_of_track), ("image_id", self.video_of_image)):
            if isinstance(record, dict) and type(record.get(key)) is int and record[key] in videos:
                known.append(videos[record[key]])
        if not known:
            track, image = integer(record, "track_id", where), integer(record, "image_id", where)
            raise TrackError(f"{where}: there is no track {track}, and no image {image}")
        if known[0] != known[-1]:
            what = f"track {record['track_id']} is of video {known[0]}, image {record['image_id']} of {known[-1]}"
            raise TrackError(f"{where}: {what}")
        return known[0]


def _read_video(video: _Video | DamagedEntry) -> Track:
    if isinstance(video, DamagedEntry):
        raise TrackError(video.message)
    images = _in_order(video)
    corners: dict[int, dict[int, Corners]] = defaultdict(dict)
    for track, image, bbox in video.boxes:
        x, y, width, height = four_numbers(bbox, f"{video.where}: track {track} in image {image}")
        corners[image][track] = (x, y, x + width, y + height)
    counts = Counter(track for track, _, _ in video.boxes)
    target = min(counts, key=lambda track: (-counts[track], track))
    name = str(PurePosixPath(images[0].file_name).parent)
    return Track(
        id=f"{name}/{target}",
        source="tao",
        video=name,
        category=video.categories[target],
        frames=tuple(_frame(video, image, corners[image.id], target) for image in images),
        metadata={
            "track": target,
            "annotated_frames": counts[target],
            "distractors": [
                {"track": track, "category": video.categories[track], "annotated_frames": count}
                for track, count in sorted(counts.items())
                if track != target
            ],
        },
    )


def _in_order(video: _Video) -> list[_Image]:
    """The images by frame_index. Raises TrackError unless they are the different frames of one folder."""
    images = sorted(video.images, key=lambda image: image.frame_index)
    for name, values in (
        ("frame_index", [image.frame_index for image in images]),
        ("file_name", [image.file_name for image in images]),
    ):
        if repeated := [value for value, count in Counter(values).items() if count > 1]:
            raise TrackError(f"{video.where}: two images have the {name} {repeated[0]!r}")
    folders = sorted({str(PurePosixPath(image.file_name).parent) for image in images})
    if len(folders) > 1:
        raise TrackError(f"{video.where}: its images lie in several folders: {', '.join(folders[:3])}")
    return images


def _frame(video: _Video, image: _Image, corners: Mapping[int, Corners], target: int) -> TrackFrame:
    path = video.frames / image.file_name
    if not is_file(path):
        raise TrackError(f"{path} is missing; {video.where} lists it")
    return TrackFrame(
        path=path,
        corners=corners.get(target),
        absence=_absence(corners.get(target)),
        size=image.size,
        others=tuple(box for track, box in sorted(corners.items()) if track != target),
    )


def _absence(corners: Corners | None) -> Absence | None:
    if corners is None:
        return "absent"
    return None if has_area(corners) else "unannotated"
