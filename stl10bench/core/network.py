"""Does a server answer? Asked before a library waits for it much longer.

Apart from `device`, for it must not import torch: `pretrained` asks while it checks the settings.
"""

import os
import socket
from urllib.parse import urlsplit


def reachable(url: str, seconds: float = 2.0) -> bool:
    """Whether the host of `url` accepts a TCP connection within `seconds`.

    True without asking where a proxy is set: then the host itself need not be reachable.
    """
    parts = urlsplit(url)
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY")):
        return True
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        with socket.create_connection((parts.hostname or "", port), timeout=seconds):
            return True
    except OSError:
        return False
