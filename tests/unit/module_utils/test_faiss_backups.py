# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import gzip
import io
import json
import os
import stat
import tarfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.oncall.runbooks.plugins.module_utils import faiss_backups, faiss_index
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer, Refused
from ansible_collections.oncall.runbooks.tests.unit.module_utils import faiss_helpers
from ansible_collections.oncall.runbooks.tests.unit.module_utils.faiss_helpers import (
    BEFORE_VECTORS,
    COUNT,
    DIMENSION,
    NAMES,
    Service,
    contents,
    flip,
    index_bytes,
    make,
    vectors,
)


@pytest.fixture()
def service(tmp_path):
    return Service(tmp_path)


def take(service, **more):
    return faiss_backups.take(dimension=DIMENSION, **{**service.options, **more})


def compare(service, **more):
    found = faiss_backups.candidates(str(service.backups), "wp", str(service.history))
    return faiss_backups.compare(str(service.index), "wp", DIMENSION, found, until=faiss_index.Clock(None), **more)


class TestTaking:
    def test_what_it_makes_is_what_the_service_makes(self, service):
        service.backups.chmod(0o750)
        told = take(service)
        assert (told["changed"], told["verified"], told["state"], told["ntotal"]) == (True, True, "ok", COUNT)
        with tarfile.open(told["backup"], "r:gz") as tar:
            assert {member.name: tar.extractfile(member).read() for member in tar} == contents(service.index)
            assert all(member.isreg() for member in tar.getmembers())
        assert told["backup"] == f"{service.backups}/{told['backup_id']}.tar.gz"
        for made in (told["backup"], told["manifest"]):
            assert stat.S_IMODE(os.stat(made).st_mode) == 0o640
        manifest = json.loads(Path(told["manifest"]).read_text())
        assert set(manifest["files"]) == set(NAMES)
        assert manifest["files"] == told["files"]
        with open(told["backup"], "rb") as file:
            assert manifest["sha256"] == faiss_index.digest(file, faiss_index.Clock(None)) == told["sha256"]
        assert sorted(os.listdir(service.backups)) == [
            f"{told['backup_id']}.manifest.json",
            f"{told['backup_id']}.tar.gz",
        ]

    def test_a_second_one_is_none(self, service):
        first = take(service)
        second = take(service)
        assert (second["changed"], second["backup"], second["verified"]) == (False, first["backup"], True)
        assert second["files"] == first["files"]

    def test_one_of_the_service_is_as_good(self, service):
        archive = service.aged().saved()
        told = take(service)
        assert (told["changed"], told["backup"], told["manifest"]) == (False, str(archive), None)

    def test_one_that_cannot_be_trusted_is_not(self, service):
        archive = service.aged().saved()
        flip(archive, 500)
        told = take(service)
        assert told["changed"]
        assert "its MD5 is" in told["notes"][0]

    def test_check_mode_makes_nothing(self, service):
        told = take(service, check=True)
        assert (told["changed"], told["backup"], told["verified"]) == (True, None, False)
        assert os.listdir(service.backups) == []

    @pytest.mark.parametrize(
        "name, says",
        [
            ("wp.faiss", "its state is truncated"),
            ("wp.meta.json", "its state is metadata_broken"),
            ("wp.tfidf.npz", "its state is tfidf_broken"),
        ],
    )
    def test_what_is_not_sound_is_refused(self, service, name, says):
        os.truncate(service.index / name, 200)
        with pytest.raises(Refused, match=says) as caught:
            take(service)
        assert str(caught.value).count(". ") == 0
        assert os.listdir(service.backups) == []

    def test_what_may_be_damaged_is_refused(self, service):
        take(service)
        flip(service.index / "wp.faiss", BEFORE_VECTORS + 30, 0)
        with pytest.raises(Refused, match=r"is not backed up, for it may be damaged: wp.faiss differs in 1 byte of"):
            take(service)
        assert take(service, accept_changes=True)["changed"]
        assert compare(service).value == "same"

    def test_a_folder_that_is_not_there(self, service):
        with pytest.raises(Refused, match="does not exist; create the folder of the backups first"):
            take(service, backup_dir=str(service.home / "none"))

    def test_a_name_that_is_taken(self, service, monkeypatch):
        monkeypatch.setattr(time, "time", lambda: 1795318612.5)
        first = take(service)
        make(service.index, seed=2, word="new")
        second = take(service)
        assert (first["backup_id"], second["backup_id"]) == ("backup_1795318612", "backup_1795318613")

    def test_names_of_one_file_are_two_files_in_the_archive(self, service):
        os.unlink(service.index / "wp.meta.json")
        (service.home / "elsewhere").write_text(json.dumps(faiss_helpers.metadata()))
        os.link(service.home / "elsewhere", service.index / "wp.meta.json")
        assert take(service)["verified"]


class TestRecording:
    def test_one_that_the_service_has_made(self, service):
        archive = service.aged().saved()
        told = take(service, archive=archive.name[: -len(".tar.gz")])
        assert (told["changed"], told["backup"], told["ntotal"]) == (True, str(archive), COUNT)
        assert set(told["files"]) == set(NAMES)
        again = take(service, archive=str(archive))
        assert (again["changed"], again["manifest"]) == (False, told["manifest"])
        service.history.unlink()
        # The service forgets, and the manifest does not.
        assert compare(service).value == "same"

    def test_check_mode(self, service):
        archive = service.aged().saved()
        told = take(service, archive=str(archive), check=True)
        assert (told["changed"], os.listdir(service.backups)) == (True, [archive.name])

    def test_of_a_full_backup_the_index_counts(self, service):
        archive = service.aged().saved(kind="full", more=[("config.yml", b"api: {}"), ("slo_metrics.jsonl", b"{}")])
        assert set(take(service, archive=str(archive))["files"]) == set(NAMES)

    def test_without_its_line_it_is_not_recorded(self, service):
        archive = service.aged().saved()
        service.history.write_text('{"type": "restore"}\ntorn{\n')
        with pytest.raises(Refused, match="has no line with its MD5; name the service's history"):
            take(service, archive=str(archive))

    def test_one_of_a_damaged_index(self, service):
        os.truncate(service.index / "wp.faiss", 918)
        archive = service.saved()
        with pytest.raises(Refused, match=r"wp.faiss in .*tar.gz has 918 bytes"):
            take(service, archive=str(archive))
        assert os.listdir(service.backups) == [archive.name]


class TestComparing:
    def test_the_same(self, service):
        archive = service.aged().saved()
        verdict = compare(service)
        assert (verdict.value, verdict.backup.path, verdict.sentence) == ("same", str(archive), "")

    def test_none(self, service):
        verdict = compare(service)
        assert (verdict.value, "there is no backup of" in verdict.sentence) == ("absent", True)

    @pytest.mark.parametrize("recorded_by", ["manifest", "history"])
    @settings(max_examples=25)
    @given(
        name=st.sampled_from(NAMES),
        place=st.floats(0, 1, exclude_max=True),
        bit=st.integers(0, 7),
        touched=st.booleans(),
    )
    def test_one_flipped_bit_anywhere_is_a_change(self, tmp_path_factory, recorded_by, name, place, bit, touched):
        service = Service(tmp_path_factory.mktemp("service")).aged()
        if recorded_by == "history":
            service.saved()
        else:
            take(service)
        at = int(place * (service.index / name).stat().st_size)
        flip(service.index / name, at, bit)
        if touched:
            # Whatever the time of the file says.
            os.utime(service.index / name, (time.time() + 60, time.time() + 60))
        verdict = compare(service)
        assert verdict.value == "changed"
        (difference,) = verdict.differences
        assert (difference.name, difference.bytes, difference.first) == (name, 1, at)
        assert f"{name} differs in 1 byte of" in verdict.sentence
        assert f"the first at {at}" in verdict.sentence

    def test_a_lost_part_of_the_disk_is_a_change(self, service):
        service.aged().saved()
        with open(service.index / "wp.faiss", "r+b") as file:
            file.seek(BEFORE_VECTORS + 400)
            file.write(bytes(1500))
        verdict = compare(service)
        assert (verdict.value, verdict.differences[0].first) == ("changed", BEFORE_VECTORS + 400)

    @pytest.mark.parametrize(
        "build",
        [
            # More posts.
            lambda index: make(index, count=COUNT + 2, seed=2),
            # As many, with other texts.
            lambda index: make(index, seed=2, word="new"),
            # The same posts with another model: only the vectors, all of them.
            lambda index: (index / "wp.faiss").write_bytes(index_bytes(vectors(seed=9))),
            # TF-IDF alone, as `make bm25` did.
            lambda index: (
                (index / "wp.tfidf.pkl").write_bytes(faiss_helpers.vectorizer_bytes(60)),
                (index / "wp.tfidf.npz").write_bytes(faiss_helpers.matrix_bytes(columns=60, seed=3)),
            ),
            # One post was edited: few of the vectors, and the metadata.
            lambda index: (
                (index / "wp.faiss").write_bytes(index_bytes([*vectors()[:-1], vectors(seed=5)[0]])),
                (index / "wp.meta.json").write_text(json.dumps([*faiss_helpers.metadata(COUNT - 1), _EDITED])),
            ),
        ],
        ids=["more", "texts", "model", "bm25", "one post"],
    )
    def test_what_was_built_anew_is_no_change(self, service, build):
        service.aged().saved(ago=60)
        build(service.index)
        verdict = compare(service)
        assert verdict.value == "rebuilt", verdict.sentence
        assert "it was built anew since, so that backup says nothing of it; take a new one" in verdict.sentence
        assert take(service)["changed"]
        assert compare(service).value == "same"

    @pytest.mark.parametrize(
        "spoil",
        [
            # Rewritten alone, what belongs to it is as it was.
            lambda index: (index / "wp.meta.json").write_text(json.dumps(faiss_helpers.metadata(word="other"))),
            lambda index: (index / "wp.tfidf.npz").write_bytes(faiss_helpers.matrix_bytes(seed=8)),
            lambda index: (index / "wp.tfidf.npz").unlink(),
            lambda index: os.truncate(index / "wp.faiss", 918),
            # Half of it from somewhere else.
            lambda index: (index / "wp.faiss").write_bytes(
                index_bytes([*vectors()[: COUNT // 2], *vectors(seed=3)[: COUNT - COUNT // 2]])
            ),
        ],
        ids=["metadata", "matrix", "missing", "truncated", "half"],
    )
    def test_what_stands_alone_is_a_change(self, service, spoil):
        service.aged().saved(ago=60)
        spoil(service.index)
        assert compare(service).value == "changed"

    def test_what_nobody_has_written_since_is_a_change(self, service):
        service.saved(ago=60)
        make(service.index, seed=2, word="new")
        service.aged(ago=3600)
        verdict = compare(service)
        assert (verdict.value, "nobody has written to it since" in verdict.sentence) == ("changed", True)

    def test_an_older_backup_that_was_restored_is_the_same(self, service):
        older = service.aged().saved(ago=600)
        kept = contents(service.index)
        make(service.index, seed=2, word="new")
        service.saved(ago=60)
        for name, content in kept.items():
            (service.index / name).write_bytes(content)
        verdict = compare(service)
        assert (verdict.value, verdict.backup.path) == ("same", str(older))
        assert "which is not the newest backup" in verdict.sentence

    def test_backups_that_cannot_be_trusted_are_passed_over(self, service):
        older = service.aged().saved(ago=600)
        flip(service.saved(ago=60), 700)
        verdict = compare(service)
        assert (verdict.value, verdict.backup.path) == ("same", str(older))
        assert "the service's history says" in verdict.passed_over[0]
        flip(older, 700)
        with pytest.raises(Refused, match=r"There is no backup of .* that can be trusted"):
            compare(service)

    def test_no_time(self, service):
        service.aged().saved()
        found = faiss_backups.candidates(str(service.backups), "wp", str(service.history))
        seen = faiss_index.look(str(service.index), "wp", DIMENSION)
        with pytest.raises(faiss_index.TimeUp):
            faiss_backups.compare(str(service.index), "wp", DIMENSION, found, until=faiss_index.Clock(0.0), seen=seen)


_EDITED = {**faiss_helpers.metadata()[-1], "chunk": "written anew"}


class TestFinding:
    def test_newest_first_and_only_what_is_recorded(self, service):
        service.aged()
        one, two = service.saved(ago=600), service.saved(ago=60)
        (service.backups / "backup_1.tar.gz").write_bytes(one.read_bytes())
        (service.backups / "notes.txt").write_text("")
        os.symlink(one, service.backups / "backup_2.tar.gz")
        found = faiss_backups.candidates(str(service.backups), "wp", str(service.history))
        assert [backup.path for backup in found] == [str(two), str(one)]

    def test_incremental_ones_and_other_lines_do_not_count(self, service):
        service.aged().saved(kind="incremental")
        service.saved(ago=10, kind="config")
        with service.history.open("a") as file:
            file.write('null\n[1]\n{"type": "backup", "backup_id": 7}\n' + "[" * 100000 + "\n{torn")
        assert faiss_backups.candidates(str(service.backups), "wp", str(service.history)) == []

    def test_a_manifest_of_another_index_or_a_strange_one(self, service):
        told = take(service)
        good = json.loads(Path(told["manifest"]).read_text())
        for strange in (
            {**good, "name": "other"},
            {**good, "schema": "x/1"},
            {**good, "files": {"../../etc/passwd": good["files"]["wp.faiss"]}},
            {**good, "files": []},
            {**good, "taken_at": "yesterday"},
            [],
        ):
            with open(told["manifest"], "w") as file:
                json.dump(strange, file)
            assert faiss_backups.candidates(str(service.backups), "wp", None) == []

    def test_no_folder(self, service):
        assert faiss_backups.candidates(str(service.home / "none"), "wp", None) == []


def archive(path, *members):
    """An archive with whatever members somebody wants: (TarInfo, content)."""
    with tarfile.open(path, "w:gz") as tar:
        for about, content in members:
            about.size = len(content) if about.isreg() else about.size
            tar.addfile(about, io.BytesIO(content) if about.isreg() else None)
    return faiss_backups.Backup("backup_5", str(path), 5.0)


def member(name, kind=tarfile.REGTYPE, link=""):
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, link
    return made


def unpacked(backup, into):
    into.mkdir(exist_ok=True)
    return faiss_backups.contents(backup, "wp", DIMENSION, until=faiss_index.Clock(None), into=str(into))


class TestArchives:
    def test_only_the_four_names_are_taken(self, service, tmp_path):
        files = contents(service.index)
        strange = ["../wp.faiss", "/tmp/wp.faiss", "a/wp.faiss", "config.yml", "wp.faiss/../x", "../../evil"]
        backup = archive(
            tmp_path / "backup_5.tar.gz",
            *((member(name), b"evil") for name in strange),
            (member("wp.faiss.link", tarfile.SYMTYPE, "/etc/passwd"), b""),
            *((member(name), content) for name, content in files.items()),
        )
        got = unpacked(backup, tmp_path / "into")
        assert contents(tmp_path / "into") == files
        assert sorted(os.listdir(tmp_path / "into")) == sorted(NAMES)
        assert not (tmp_path / "evil").exists()
        assert set(got.files) == set(faiss_index.SUFFIXES)

    @pytest.mark.parametrize(
        "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]
    )
    def test_links_and_devices_are_refused(self, tmp_path, kind):
        backup = archive(tmp_path / "backup_5.tar.gz", (member("wp.faiss", kind, "/etc/passwd"), b""))
        with pytest.raises(Refused, match=r"is not to be trusted: its wp.faiss is no plain file"):
            unpacked(backup, tmp_path / "into")
        assert os.listdir(tmp_path / "into") == []

    def test_twice_the_same_name(self, tmp_path):
        backup = archive(tmp_path / "backup_5.tar.gz", (member("wp.faiss"), b"one"), (member("./wp.faiss"), b"two"))
        with pytest.raises(Refused, match=r"it has ./wp.faiss twice"):
            unpacked(backup, tmp_path / "into")

    def test_a_header_that_claims_gigabytes_costs_no_memory(self, tmp_path):
        about = member("x")
        about.type = tarfile.XHDTYPE
        about.size = 1 << 33
        with gzip.open(tmp_path / "backup_5.tar.gz", "wb", compresslevel=1) as file:
            file.write(about.tobuf(tarfile.GNU_FORMAT))
            for _piece in range(64):
                file.write(bytes(1 << 20))
        backup = faiss_backups.Backup("backup_5", str(tmp_path / "backup_5.tar.gz"), 5.0)
        with pytest.raises(Refused, match="more than 16 MiB of it belong to no file"):
            unpacked(backup, tmp_path / "into")

    def test_a_tail_without_end(self, service, tmp_path):
        backup = archive(
            tmp_path / "backup_5.tar.gz",
            *((member(name), content) for name, content in contents(service.index).items()),
        )
        with open(backup.path, "ab") as file:
            file.write(gzip.compress(bytes(64 << 20), 1))
        with pytest.raises(Refused, match="more than 16 MiB of it belong to no file"):
            unpacked(backup, tmp_path / "into")

    def test_more_than_there_is_space_for(self, tmp_path):
        about = member("wp.faiss")
        about.size = 1 << 50
        with gzip.open(tmp_path / "backup_5.tar.gz", "wb") as file:
            file.write(about.tobuf(tarfile.GNU_FORMAT))
        backup = faiss_backups.Backup("backup_5", str(tmp_path / "backup_5.tar.gz"), 5.0)
        with pytest.raises(Refused, match=r"MiB free and wp.faiss takes 1073741824; make room first"):
            unpacked(backup, tmp_path / "into")

    @settings(max_examples=60)
    @given(place=st.floats(0, 1, exclude_max=True))
    def test_cut_off_anywhere(self, tmp_path_factory, place):
        service = Service(tmp_path_factory.mktemp("service"))
        path = service.saved()
        os.truncate(path, int(place * path.stat().st_size))
        backup = faiss_backups.Backup("backup_5", str(path), 5.0)
        with pytest.raises(Refused, match=r"is damaged|holds no wp.faiss"):
            unpacked(backup, service.home / "into")
        with pytest.raises(Refused, match=r"is damaged|holds no wp.faiss"):
            faiss_backups.contents(backup, "wp", DIMENSION, until=faiss_index.Clock(None))

    @settings(max_examples=60)
    @given(content=st.binary(max_size=600), packed=st.booleans())
    def test_anything_at_all(self, tmp_path, content, packed):
        path = tmp_path / "backup_5.tar.gz"
        path.write_bytes(gzip.compress(content) if packed else content)
        backup = faiss_backups.Backup("backup_5", str(path), 5.0)
        with pytest.raises(Refused):
            faiss_backups.contents(backup, "wp", DIMENSION, until=faiss_index.Clock(None))

    def test_what_is_looked_at_in_an_archive_is_what_is_looked_at_unpacked(self, service):
        got = faiss_backups.contents(
            faiss_backups.Backup("b", str(service.saved()), 5.0), "wp", DIMENSION, until=faiss_index.Clock(None)
        )
        there = faiss_index.look(str(service.index), "wp", DIMENSION)
        for key in ("state", "ntotal", "dimension", "metadata_items", "tfidf_rows", "tfidf_columns", "posts", "errors"):
            assert got.seen[key] == there[key]

    def test_members_that_are_not_those_of_the_manifest(self, service):
        told = take(service)
        manifest = json.loads(Path(told["manifest"]).read_text())
        manifest["files"]["wp.meta.json"]["sha256"] = "0" * 64
        with open(told["manifest"], "w") as file:
            json.dump(manifest, file)
        (backup,) = faiss_backups.candidates(str(service.backups), "wp", None)
        with pytest.raises(Refused, match=r"does not hold what its manifest says: wp.meta.json"):
            faiss_backups.contents(backup, "wp", DIMENSION, until=faiss_index.Clock(None))


def test_a_folder_that_may_not_be_read(service):
    if os.geteuid():
        pytest.skip("only root can become somebody else")
    service.backups.chmod(0)
    os.seteuid(65534)
    try:
        with pytest.raises(NoAnswer, match="run with -b"):
            faiss_backups.candidates(str(service.backups), "wp", None)
    finally:
        os.seteuid(0)
