"""Writing tensors to safetensors files."""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


def save_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes CPU tensors to a safetensors file with the mode that the umask says; the library gives it 0600.

    Raises OSError or SafetensorError where the disk refuses the write.
    """
    path.touch()
    mode = path.stat().st_mode
    save_file(dict(tensors), path, metadata=metadata)  # which replaces the file
    path.chmod(mode)
