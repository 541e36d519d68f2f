"""Parts of files that lie on the hub and not here: what headers say costs no download."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path

from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.hub import HubReference, snapshot_of
from vllm_moe_prune.hub_client import SECONDS, address, client, explained

_TRIES = 3
_RANGE = re.compile(r"bytes \d+-\d+/(\d+)")


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a repository at one commit."""

    reference: HubReference
    path: str

    @classmethod
    def of(cls, file: Path) -> RemoteFile | None:
        """Return what would lie at a path inside a snapshot of the hub's cache; None elsewhere."""
        for folder in (file.parent, file.parent.parent):
            reference = snapshot_of(folder)
            if reference is not None:
                return cls(reference, file.relative_to(folder).as_posix())
        return None

    def read(self, begin: int, end: int) -> tuple[bytes, int]:
        """Return the bytes from ``begin`` to ``end``, fewer at the file's end, and its size.

        :raises FileNotFoundError: if the repository has no such file
        :raises PruneError: as `hub.fetch`, or if the server cannot send parts of files
        """
        name, hub = self.reference.repo_id, client()
        with explained(name, self.reference.revision):
            try:
                for _ in range(_TRIES - 1):
                    try:
                        return self._ask(begin, end)
                    except hub.errors.HfHubHTTPError:  # an answer
                        raise
                    except hub.errors.HfHubHTTPError.__bases__[0]:  # of httpx or httpx2: none
                        time.sleep(1)
                return self._ask(begin, end)
            except hub.errors.EntryNotFoundError:
                pass
            except hub.errors.OfflineModeIsEnabled:
                raise PruneError(
                    f"HF_HUB_OFFLINE is set, and {name} has no {self.path} in the cache "
                    f"{hub.constants.HF_HUB_CACHE}",
                    hint="download it while the hub can be reached",
                ) from None
        raise FileNotFoundError(self.path)

    def _ask(self, begin: int, end: int) -> tuple[bytes, int]:
        utils, name = client().utils, self.reference.repo_id
        url = client().hf_hub_url(name, self.path, revision=self.reference.revision)
        headers = {**utils.build_hf_headers(), "Range": f"bytes={begin}-{end - 1}"}
        # it cannot ask once more when a body breaks off
        with utils.http_stream_backoff(
            "GET", url, headers=headers, timeout=SECONDS, max_retries=2, retry_on_exceptions=()
        ) as response:
            utils.hf_raise_for_status(response)
            told = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if response.status_code != 206 or told is None:
                raise PruneError(
                    f"{address()} does not send parts of files",
                    hint=f"download the model first: hf download {name}",
                )
            return response.read(), int(told.group(1))
