"""What this machine has: versions, devices, caches, the hub, and what is missing for which job.

    adapt doctor
    adapt doctor --no_network        # do not ask the hub

Prints about 25 lines, to read before a first run and to paste into a bug report. Changes nothing.
"""

import importlib.util
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from adapt.cli import run

EXTRAS = {  # extra of pyproject.toml -> modules that it brings, and what they are for
    "cluster": (("submitit",), "--launcher slurm of adapt run ablation and others"),
    "data": (("aiohttp", "datasets", "tenacity"), "adapt prepare from the hub and from lists of URLs"),
    "explain": (("captum",), "maps of adapt run understand"),
    "export": (("onnx", "onnxruntime", "onnxscript"), "adapt share --onnx"),
    "heic": (("pillow_heif",), "HEIC, which phones write"),
    "fast": (("cv2",), "JPEG views in two thirds of Pillow's time"),
    "mlflow": (("mlflow",), "--tracker mlflow"),
    "ray": (("ray",), "adapt extract --engine ray"),
    "trackio": (("trackio",), "--tracker trackio"),
    "wandb": (("wandb",), "--tracker wandb"),
}


@dataclass(frozen=True)
class Config:
    network: bool = True  # ask the hub whether it can be reached
    timeout: float = 5.0  # seconds to wait for it


def main(cfg: Config) -> None:
    print("\n".join(f"{name:13} {value}" for name, value in findings(cfg)))


def findings(cfg: Config) -> list[tuple[str, str]]:
    """(what, what was found) of each line."""
    from adapt import provenance
    from adapt.cli import recipes_folder
    from adapt.data.images import FORMATS
    from adapt.features.cache import feature_cache

    versions, hardware = provenance.versions(), provenance.hardware()
    lines = [("adapt", f"{versions.pop('adapt')}, revision {provenance.revision() or 'unknown'}")]
    lines += [("recipes", str(recipes_folder())), ("python", versions.pop("python"))]
    pairs = [f"{name} {version}" for name, version in versions.items()]
    lines += [("packages" if i == 0 else "", ", ".join(pairs[i : i + 4])) for i in range(0, len(pairs), 4)]
    lines.append(("processor", f"{hardware['processor']}, {hardware['cores']} cores, {hardware['threads']} threads"))
    lines.append(("memory", f"{hardware['memory_gib']} GiB"))
    lines += [("GPUs", str(hardware["gpus"])), ("bf16", bf16())]
    lines.append(("formats", f"{', '.join(FORMATS)} (with [heic])"))
    lines.append(("features", space(feature_cache(), "ADAPT_CACHE")))
    lines.append(("hub cache", space(hub_cache(), "HF_HUB_CACHE")))
    lines.append(("hub", hub(cfg) if cfg.network else "not asked"))
    for extra, (modules, purpose) in EXTRAS.items():
        missing = [name for name in modules if importlib.util.find_spec(name) is None]
        found = f"missing {', '.join(missing)}: pip install 'adapt-aigi[{extra}]'" if missing else "installed"
        lines.append((f"[{extra}]", f"{found} (for {purpose})"))
    return lines


def bf16() -> str:
    """Where bf16 products run in hardware: `auto` takes bf16 there."""
    import torch

    if torch.cuda.is_available():
        return "GPU: yes" if torch.cuda.is_bf16_supported(including_emulation=False) else "GPU: no, fp32 is used"
    flags = Path("/proc/cpuinfo")
    words = set(flags.read_text().split()) if flags.is_file() else set()
    kinds = [kind for kind, flag in (("AMX", "amx_bf16"), ("AVX-512", "avx512_bf16")) if flag in words]
    return f"CPU: {kinds[0]}" if kinds else "CPU: no, fp32 is used"


def hub_cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def space(folder: Path, variable: str) -> str:
    """A cache's folder, the room on its disk, and the variable that moves it."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    state = "" if folder.exists() else ", empty so far"
    state += "" if os.access(there, os.W_OK) else f", CANNOT BE WRITTEN: set {variable}"
    return f"{folder}{state}; {shutil.disk_usage(there).free / 2**30:.0f} GiB free (${variable})"


def hub(cfg: Config) -> str:
    """Whether the Hugging Face hub answers, and the remedy where it does not."""
    import urllib.error
    import urllib.request

    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "switched off by HF_HUB_OFFLINE: only what is cached can be loaded"
    try:
        asked = urllib.request.Request(constants.ENDPOINT, method="HEAD")
        with urllib.request.urlopen(asked, timeout=cfg.timeout) as answer:
            return f"reachable ({constants.ENDPOINT}, status {answer.status})"
    except urllib.error.HTTPError as error:
        return f"reachable ({constants.ENDPOINT}, status {error.code})"
    except (OSError, ValueError) as error:
        reason = str(getattr(error, "reason", error)).splitlines()[0]
        return f"cannot be reached ({reason}): check the network, or load weights from local folders"


def command() -> None:
    """Parse the command line and run."""
    run(main, Config)
