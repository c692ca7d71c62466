"""The published weight files that voices need beside themselves: fetched, resumed, and checked before they are in place.

Addresses, metadata and connections are huggingface_hub's. Its `hf_hub_download` throws a partial file away when it fails
(2.4, `_download_to_tmp_and_move`) and its `http_get` holds back up to 10 MB before writing, which a line that breaks
often never gets past. So the transfer is a loop here: what arrives is written at once, to a partial file whose name
carries the hash it is to have, and continued with a range request by the next attempt or the next call.
"""

from __future__ import annotations

import os
import re
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from .. import __version__
from ..errors import DownloadError, OutputError, RvcCoremlError, UsageError
from .files import HASH_BLOCK, atomic_path, output_errors, sha256

CACHE_VARIABLE = "RVC_COREML_CACHE"
ENDPOINT_VARIABLE = "HF_ENDPOINT"  # huggingface_hub's own: a mirror of the hub
FCPE_VARIABLE = "RVC_COREML_FCPE_URL"  # where else the wheel with FCPE's weights lies
ATTEMPTS = 3  # that bring nothing, one after the other
PAUSE = 1.0  # seconds between them
TIMEOUT = 30.0  # seconds without a byte
HUB = "https://huggingface.co"
_SHA256 = re.compile(r"[0-9a-f]{64}")
Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Published:
    """A file as its authors published it. `sha256` and `size` are of what is transferred, `member` what is taken from it."""

    name: str
    file: str
    size: int
    sha256: str
    repository: str = ""
    revision: str = ""
    url: str = ""
    member: str = ""
    member_sha256: str = ""

    @property
    def wanted_sha256(self) -> str:
        """Of the file that is kept."""
        return self.member_sha256 or self.sha256

    @property
    def origin(self) -> str:
        """For people."""
        return f"{self.repository} at {self.revision[:12]}" if self.repository else self.url


# The RVC project's own repository. That this revision holds both files, with these sizes and hashes, is stated alike by
# several projects that pin them (read on 2026-11-21); its model card gives the MIT licence.
_RVC = {"repository": "lj1995/VoiceConversionWebUI", "revision": "e6d0c1a17da07c33557852f9dfa2bd44cc75737d"}
PUBLISHED = {
    "hubert": Published(
        "hubert", "hubert_base.pt", 189_507_909, "f54b40fd2802423a5643779c4861af1e9ee9c1564dc9d32f54f20b5ffba7db96", **_RVC
    ),
    "rmvpe": Published("rmvpe", "rmvpe.pt", 181_184_272, "6d62215f4306e3ca278246188607209f09af3dc77ed4232efdd069798c4ec193", **_RVC),
    # FCPE's authors publish these weights inside their Python package only (torchfcpe 0.0.4, MIT; hashes measured).
    "fcpe": Published(
        "fcpe",
        "fcpe_c_v001.pt",
        40_222_012,
        "f042c463d850d76c6f4899a0b84f0b694bb560adf05f4de951097a756d17472d",
        url="https://github.com/CNChTu/FCPE/releases/download/v0.0.4/torchfcpe-0.0.4-py3-none-any.whl",
        member="torchfcpe/assets/fcpe_c_v001.pt",
        member_sha256="b9aeaeb673436eeda50ceafd632aa681aa63417e52eae4207503d180c9b10015",
    ),
}


def cache_folder() -> Path:
    """Where this program keeps what it can make or fetch again; the folder need not exist."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "rvc-coreml"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "rvc-coreml"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rvc-coreml"


def downloads_folder() -> Path:
    return cache_folder() / "downloads"


def downloaded(name: str) -> Path | None:
    """The file that `download` has put in its own folder, if it has; it was checked when it came."""
    path = downloads_folder() / PUBLISHED[name].file
    return path if path.is_file() else None


def download(name: str, folder: Path | None = None, progress: Progress = lambda _step, _share: None) -> Path:
    """Fetch a published file into a folder, the cache's where none is named, and return where it is.

    A file that is there already is checked and kept. Raises UsageError where another file has its name, DownloadError
    where it cannot be fetched or is not the published one, OutputError where it cannot be written.
    """
    if name not in PUBLISHED:
        raise UsageError(f"{name!r} is no published file; choose {', '.join(PUBLISHED)}")
    published, folder = PUBLISHED[name], downloads_folder() if folder is None else folder
    target = folder / published.file
    if target.exists():
        if not target.is_file() or sha256(target) != published.wanted_sha256:
            raise UsageError(f"{target} is there already and is not the published file: move it away, or choose another folder")
        return target
    made = not folder.exists()
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{published.file}.{published.sha256[:12]}.part"
    try:
        _fetch(published, part, progress)
    except BaseException:
        if made and not any(folder.iterdir()):
            folder.rmdir()
        raise
    progress("checking", 1.0)
    found = sha256(part)
    if found != published.sha256:
        part.unlink()
        raise DownloadError(
            f"what came for {published.file} from {published.origin} is not the published file (SHA-256 {found[:16]}... where"
            f" {published.sha256[:16]}... is expected): it was removed"
        )
    if published.member:
        _take_member(part, published, target)
        part.unlink()
    else:
        with output_errors(target):
            os.replace(part, target)
    return target


def _fetch(published: Published, part: Path, progress: Progress) -> None:
    """Complete a partial file, however much of it is there."""
    if part.is_file() and part.stat().st_size > published.size:
        part.unlink()
    with _errors(published, part), _quiet_hub(), _removed_if_empty(part):
        url, headers = _located(published)
        with part.open("ab") as file:
            if not lock(file):
                raise DownloadError(f"another process is fetching {published.file} into {part.parent}: wait for it")
            failures = 0
            while file.tell() < published.size:
                before = file.tell()
                try:
                    _transfer(url, headers, file, published, progress)
                except (RvcCoremlError, OSError, MemoryError):  # the server's own refusals among them
                    raise
                except Exception:
                    failures = 0 if file.tell() > before else failures + 1
                    if failures == ATTEMPTS:
                        raise
                    time.sleep(PAUSE)


def _transfer(url: str, headers: dict[str, str], file: IO[bytes], published: Published, progress: Progress) -> None:
    """One request for what is missing, written as it arrives."""
    from huggingface_hub.utils import hf_raise_for_status, http_stream_backoff

    start = file.tell()
    asked = {**headers, "Range": f"bytes={start}-"} if start else headers
    with http_stream_backoff("GET", url, headers=asked, max_retries=0, timeout=TIMEOUT) as response:
        hf_raise_for_status(response)
        if start and response.status_code == 200:  # the server takes no ranges
            file.seek(0)
            file.truncate()
        for block in response.iter_raw():
            file.write(block)
            if file.tell() > published.size:
                file.truncate(0)
                raise DownloadError(f"{published.origin} sends more than the {published.size} bytes of {published.file}: it was not kept")
            progress(f"fetching {published.file}", file.tell() / published.size)
        if file.tell() < published.size:
            raise EOFError("the server ended the transfer early")


@contextmanager
def _removed_if_empty(part: Path) -> Iterator[None]:
    try:
        yield
    finally:
        if part.is_file() and not part.stat().st_size:
            part.unlink()


def _located(published: Published) -> tuple[str, dict[str, str]]:
    """Where the bytes are, and the headers to ask with. No token is sent: the files are public and a mirror is a stranger."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    headers = build_hf_headers(token=False, library_name="rvc-coreml", library_version=__version__)
    headers["Accept-Encoding"] = "identity"
    if not published.repository:
        return os.environ.get(FCPE_VARIABLE) or published.url, headers
    endpoint = (os.environ.get(ENDPOINT_VARIABLE) or HUB).rstrip("/")
    url = hf_hub_url(published.repository, published.file, revision=published.revision, endpoint=endpoint)
    metadata = get_hf_file_metadata(url, token=False, endpoint=endpoint, library_name="rvc-coreml", library_version=__version__)
    if metadata.size is not None and metadata.size != published.size:
        raise DownloadError(
            f"{endpoint} offers {published.file} with {metadata.size} bytes, and the published file has {published.size}:"
            " it was not fetched"
        )
    if _SHA256.fullmatch(metadata.etag or "") and metadata.etag != published.sha256:  # the hub tags large files with their hash
        raise DownloadError(f"{endpoint} offers another {published.file} than the published one (by its SHA-256): it was not fetched")
    return url, headers


@contextmanager
def _quiet_hub() -> Iterator[None]:
    """The hub's own bars and warnings are held back: this program has its own."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars, logging

    level, shown = logging.get_verbosity(), not are_progress_bars_disabled()
    logging.set_verbosity_error()
    if shown:
        disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            enable_progress_bars()


@contextmanager
def _errors(published: Published, part: Path) -> Iterator[None]:
    """Whatever a transfer may die of becomes one sentence; what has arrived is kept."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        yield
    except (DownloadError, OutputError, MemoryError):
        raise
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        what = "it is not there" if status == 404 else f"the server answered {status}"
        raise DownloadError(f"{published.file} could not be fetched from {published.origin}: {what}{_mirror(published)}") from error
    except OfflineModeIsEnabled as error:
        raise DownloadError(f"{published.file} could not be fetched: HF_HUB_OFFLINE forbids it") from error
    except OSError as error:
        if error.errno is not None:
            raise OutputError(f"{part.parent} could not be written: {error.strerror}") from error
        raise DownloadError(_broken_off(published, part)) from error
    except Exception as error:
        if part.is_file() and part.stat().st_size:
            raise DownloadError(_broken_off(published, part)) from error
        raise DownloadError(f"{published.file} could not be fetched: no connection to {_server(published)}{_mirror(published)}") from error


def lock(file: IO[Any], *, wait: bool = False) -> bool:
    """Hold an open file against other processes until it is closed; False where one holds it and `wait` is off.

    Without POSIX locks (Windows) nothing is held.
    """
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def _broken_off(published: Published, part: Path) -> str:
    have = part.stat().st_size if part.is_file() else 0
    return f"the transfer of {published.file} broke off after {have} of {published.size} bytes: the same command goes on from there"


def _server(published: Published) -> str:
    chosen = os.environ.get(ENDPOINT_VARIABLE if published.repository else FCPE_VARIABLE)
    return chosen or (HUB if published.repository else published.url)


def _mirror(published: Published) -> str:
    variable = ENDPOINT_VARIABLE if published.repository else FCPE_VARIABLE
    return f"; {variable} may name a mirror" if not os.environ.get(variable) else f" ({variable} is {os.environ[variable]})"


def _take_member(archive: Path, published: Published, target: Path) -> None:
    """One file out of an archive whose hash is known, checked as well before it is in place."""
    try:
        with zipfile.ZipFile(archive) as opened, atomic_path(target) as temporary:
            with opened.open(published.member) as source, temporary.open("wb") as output:
                while block := source.read(HASH_BLOCK):
                    output.write(block)
            if sha256(temporary) != published.member_sha256:
                raise DownloadError(f"{published.member} in {published.origin} is not the published file: it was not kept")
    except (zipfile.BadZipFile, KeyError) as error:
        raise DownloadError(f"{published.origin} does not hold {published.member}") from error
