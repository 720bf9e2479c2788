"""Files in repositories on the Hugging Face hub, from its cache or downloaded to it."""

import ssl
from functools import cache
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from beton_tools.base.errors import UserError, first_sentence

HUB = "hf-hub:"
HUB_SECONDS = 10
OPEN_CLIP_CONFIG, CONFIG = "open_clip_config.json", "config.json"


@cache
def hub_failure() -> str:
    """Return why the hub cannot be reached, so that only its cache is used. "" if it answers or must not be asked.

    The hub is asked once, because its client would try again for half a minute for every file.
    """
    from huggingface_hub import constants

    if not constants.HF_HUB_OFFLINE:
        try:
            urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=HUB_SECONDS).close()
        except HTTPError:  # an answer
            return ""
        except OSError as error:
            # the hub's client has its own certificates
            if not isinstance(getattr(error, "reason", None), ssl.SSLError):
                constants.HF_HUB_OFFLINE = True
                return f"{constants.ENDPOINT} does not answer: {getattr(error, 'reason', error)}"
    return ""


def download(name: str, revision: str, file: str) -> Path | None:
    """Return a repository's file in the cache, or None if the repository does not have it."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    failure = hub_failure()
    try:
        return Path(hf_hub_download(name, file, revision=revision or None))
    except Exception as error:  # the hub's client and its HTTP library raise many different errors
        # neither reachable nor in the cache, but the cache may have the other files
        if isinstance(error, LocalEntryNotFoundError):
            configs = (try_to_load_from_cache(name, f, revision=revision or None) for f in (OPEN_CLIP_CONFIG, CONFIG))
            missing = any(isinstance(config, str) for config in configs)
        else:
            missing = isinstance(error, EntryNotFoundError)
        if missing:
            return None
        raise UserError(
            f"{HUB}{name} could not be downloaded ({failure or first_sentence(error)}). Download it elsewhere and set "
            "model.weights to the folder"
        ) from None
