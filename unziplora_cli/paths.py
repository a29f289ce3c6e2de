"""Folders on this machine, and everything else that is read from environment variables."""

import os
from pathlib import Path
from urllib.parse import urlsplit

from unziplora_cli.errors import Remedy, UsageError

HOME_VARIABLE = "UNZIPLORA_HOME"
_PROCESS_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
_SIZE_VARIABLES = ("COLUMNS", "LINES", "TERMINAL_WIDTH")
_FOREIGN_VARIABLES = ("ACCELERATE_", "USE_TORCH", "USE_TF", "USE_FLAX")
_COUNT_VARIABLES = ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT", "OMP_NUM_THREADS")
_LISTS = ("OMP_NUM_THREADS",)
"""Variables that may hold a list: one number of threads for each level of nesting."""
HUB_ENDPOINT = "https://huggingface.co"


def home(override: Path | None = None) -> Path:
    """The home folder: `override`, otherwise $UNZIPLORA_HOME, otherwise the user's data folder.

    Raises UsageError if it cannot be determined.
    """
    variable = os.environ.get(HOME_VARIABLE, "")
    if override is None and not variable.strip():
        return _user_folder("user_data_path", "XDG_DATA_HOME")
    given = str(override or variable)
    folder = expand_user(given)
    if str(folder).startswith("~"):
        source = "The home" if override else f"The variable {HOME_VARIABLE}"
        raise UsageError(
            f"{source} is {given!r}, but {Path(given).parts[0]!r} is not the folder of a user.",
            Remedy("Use an absolute path."),
        )
    return folder.absolute()


def expand_user(path: str) -> Path:
    """A path with its `~` expanded; that of an unknown user stays, where pathlib raises RuntimeError."""
    return Path(os.path.expanduser(path))  # noqa: PTH111


def config_file() -> Path:
    """The file of the user's preferences; raises UsageError if the user has no folder."""
    return _user_folder("user_config_path", "XDG_CONFIG_HOME") / "config.toml"


def _user_folder(function: str, variable: str) -> Path:
    import platformdirs

    try:
        folder: Path = getattr(platformdirs, function)("unziplora", appauthor=False)
        if folder.is_absolute():
            return folder
    except RuntimeError:  # newer versions of platformdirs, where the user has no folder
        pass
    if os.environ.get(variable, "").strip():
        raise UsageError(
            f"The variable {variable} is {os.environ[variable]!r}, which is not an absolute path.",
            Remedy("Unset it, or use an absolute path."),
        )
    raise UsageError(
        "Your home folder is unknown: the variable HOME is not set, and the system does not know it.",
        Remedy(f"Set HOME, or {HOME_VARIABLE} to a folder for the projects."),
    )


def projects_dir(home: Path) -> Path:
    """The folder of all projects in a home."""
    return home / "projects"


def hub_cache() -> Path:
    """The Hugging Face cache: $HF_HUB_CACHE, otherwise `hub` in $HF_HOME or ~/.cache/huggingface.

    As in huggingface_hub, a `~` that stands for no folder remains: such a cache is empty.
    """
    cache = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    return Path(_expand(cache)) if cache else _hub_home() / "hub"


def hub_token_file() -> Path:
    """The file with the user's access token for the hub."""
    return Path(_expand(os.environ.get("HF_TOKEN_PATH") or str(_hub_home() / "token")))


def _hub_home() -> Path:
    user_cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(_expand(os.environ.get("HF_HOME") or f"{user_cache}/huggingface"))


def _expand(path: str) -> str:
    return os.path.expandvars(expand_user(path))


def hub_endpoint() -> str:
    """The address of the model hub, $HF_ENDPOINT if it is set; raises UsageError if that is no address."""
    given = os.environ.get("HF_ENDPOINT", "")
    address = given.strip().rstrip("/")
    try:
        parts = urlsplit(address)
        is_valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_valid = False
    if address and not is_valid:
        raise UsageError(
            f"The variable HF_ENDPOINT is {given!r}, which is not the address of a model hub.",
            Remedy(f"Unset it, or use an address like {HUB_ENDPOINT}."),
        )
    return address or HUB_ENDPOINT


def drop_useless_variables() -> None:
    """Unset variables without a possible value, and those that let a library do without torch."""
    optional = (*_PROCESS_VARIABLES, *_COUNT_VARIABLES, "HF_ENDPOINT")
    for name, text in tuple(os.environ.items()):
        is_size = text.isascii() and text.isdecimal() and 20 <= int(text[:6]) <= 1000
        is_impossible = (name in optional and not text.strip()) or (name in _SIZE_VARIABLES and not is_size)
        if is_impossible or name.startswith(_FOREIGN_VARIABLES):
            del os.environ[name]


def check_environment() -> None:
    """Raise UsageError for a variable that would make a library or a training fail later."""
    numbers: dict[str, int] = {}
    for name in (*_PROCESS_VARIABLES, *_COUNT_VARIABLES):
        value = os.environ.get(name, "").strip()
        if not value:
            continue
        items = [item.strip() for item in value.split(",")] if name in _LISTS else [value]
        lowest = int(name in _COUNT_VARIABLES)
        if not all(i.isascii() and i.isdecimal() and len(i) < 10 and int(i) >= lowest for i in items):
            kind = "whole numbers" if len(items) > 1 else "a whole number"
            needed = f"it must be {kind} from {lowest} to 999999999"
            raise UsageError(f"The variable {name} is {value!r}, but {needed}.", Remedy("Unset it."))
        numbers[name] = int(items[0])
    count = numbers.get("WORLD_SIZE", 1)
    missing = [name for name in _PROCESS_VARIABLES if name not in numbers]
    start = Remedy(
        "Start the processes with torchrun or accelerate launch, or unset RANK, WORLD_SIZE and LOCAL_RANK."
    )
    if count != 1 and missing:
        raise UsageError(f"The variable WORLD_SIZE is {count}, but {missing[0]} is not set.", start)
    if not 0 <= numbers.get("RANK", 0) < count:
        raise UsageError(
            f"The variable RANK is {numbers.get('RANK', 0)}, but WORLD_SIZE is {count}: "
            "ranks count from 0, and there must be a process for each.",
            start,
        )


def hub_is_offline() -> bool:
    """Whether $HF_HUB_OFFLINE forbids the network, by huggingface_hub's rules."""
    return os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE")


def set_openmp_wait_policy() -> None:
    """Let waiting OpenMP threads sleep instead of spin; call before torch is imported.

    Spinning threads occupy the cores that working threads need: on a busy two-core machine a training step
    took 13 s instead of 0.1 s. Variables that the user has set are kept.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    os.environ.setdefault("KMP_BLOCKTIME", "0")


def process_count() -> int:
    """How many processes train together, as ``torchrun`` or ``accelerate launch`` started them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def process_rank() -> int:
    """The number of this process among them; the first one, 0, writes the files."""
    return int(os.environ.get("RANK", "0"))


def leave_process_group() -> tuple[int, int, int]:
    """Make this process train by itself; returns its rank, the number of processes and its local rank."""
    rank, count, local = (int(os.environ.pop(name)) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    return rank, count, local
