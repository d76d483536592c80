"""Copies in an object store and copies of it, against a local S3."""

import multiprocessing
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
from support.object_store import ADDRESS, BUCKET, keys

from ldm.runtime import run_copies
from ldm.runtime.files import CONFIG
from ldm.runtime.run_copies import Mirror, bring_run
from ldm.runtime.stores import Store, StoreError, files_of, is_address, local_copy


def test_what_is_a_place_in_a_store():
    assert all(map(is_address, ["s3://bucket/runs", "gs://b/x", "abfs://c/y"]))
    assert not any(
        map(is_address, [None, 3, "runs/latents", "/runs", "file:///runs", "https://x/y", "s3:///x", "C:\\runs"])
    )


def test_a_file_goes_there_and_comes_back_as_old_as_it_is_there(s3, tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    store = Store(f"{ADDRESS}/runs/x")
    store.put(tmp_path / "a", "checkpoints/1.ckpt")
    ((name, entry),) = store.names().items()
    assert (name, entry.size) == ("checkpoints/1.ckpt", 3)
    store.get(name, entry, tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"abc"
    assert (tmp_path / "b").stat().st_mtime == pytest.approx(entry.time)
    store.remove(name)
    store.remove(name)  # again: nothing to do
    assert store.names() == {}


def test_a_name_that_leads_out_of_the_folder_is_refused(s3):
    s3.put_object(Bucket=BUCKET, Key="runs/x/../../etc/passwd", Body=b"1")
    with pytest.raises(StoreError, match=r"it holds '../../etc/passwd', which is no name of a file"):
        Store(f"{ADDRESS}/runs/x").names()


def test_what_is_not_there_or_not_known_is_said_in_a_line(s3):
    with pytest.raises(StoreError, match=r"latents=s3://no-such-bucket/x: .*does not exist"):
        local_copy("s3://no-such-bucket/x", "latents")
    with pytest.raises(StoreError, match=f"latents={ADDRESS}/none holds nothing"):
        local_copy(f"{ADDRESS}/none", "latents")
    with pytest.raises(StoreError, match="store=zz://x/y: Protocol not known"):
        Store("zz://x/y")


def test_a_copy_is_fetched_once_and_follows_what_changes(s3, monkeypatch):
    for name, body in {"manifest.json": b"{}", "a/1.tar": b"one", "a/2.tar": b"two"}.items():
        s3.put_object(Bucket=BUCKET, Key=f"latents/{name}", Body=body)
    fetched = []
    get = Store.get
    monkeypatch.setattr(Store, "get", lambda self, name, *rest: (fetched.append(name), get(self, name, *rest)))
    copy = local_copy(f"{ADDRESS}/latents", "latents")
    assert fetched == ["a/1.tar", "a/2.tar", "manifest.json"]  # which names the others
    assert local_copy(f"{ADDRESS}/latents/", "latents") == copy
    assert len(fetched) == 3
    s3.put_object(Bucket=BUCKET, Key="latents/a/1.tar", Body=b"another")
    s3.delete_object(Bucket=BUCKET, Key="latents/a/2.tar")
    local_copy(f"{ADDRESS}/latents", "latents")
    assert fetched[3:] == ["a/1.tar"]
    assert (copy / "a/1.tar").read_bytes() == b"another"
    assert not (copy / "a/2.tar").exists()


@pytest.mark.parametrize("change", ["removed", "longer"])
@pytest.mark.parametrize("how", ["local_copy", "bring_run"])
def test_a_folder_that_changes_while_it_is_fetched_is_listed_again(s3, tmp_path, monkeypatch, change, how):
    """As a run whose trainer prunes its checkpoints meanwhile; one that never holds still is an error."""

    def put(name, body):
        s3.put_object(Bucket=BUCKET, Key=f"runs/x/{name}", Body=body)

    def fetch():
        if how == "local_copy":
            return local_copy(f"{ADDRESS}/runs/x", "model")
        bring_run(Store(f"{ADDRESS}/runs/x"), tmp_path / "run", lambda name: True)
        return tmp_path / "run"

    def meddle(store, listings=[]):  # noqa: B006  # it counts them
        found = names(store)
        listings.append(found)
        if len(listings) > times:
            return found
        if change == "removed":
            s3.delete_object(Bucket=BUCKET, Key=f"runs/x/{len(listings)}.ckpt")
        else:
            put(f"{len(listings)}.ckpt", b"another")
        return found

    times, names = 1, Store.names
    for name in ("0.ckpt", "1.ckpt"):
        put(name, b"one")
    monkeypatch.setattr(Store, "names", meddle)
    folder = fetch()
    assert (folder / "0.ckpt").read_bytes() == b"one"
    assert not (folder / "1.ckpt").exists() if change == "removed" else (folder / "1.ckpt").read_bytes() == b"another"
    times = 10
    for number in range(3, 8):
        put(f"{number}.ckpt", b"one")
    with pytest.raises(StoreError, match=r"\d\.ckpt has changed since it was listed"):
        fetch()


def test_a_single_file_is_a_copy_too(s3):
    s3.put_object(Bucket=BUCKET, Key="nets/features.pt", Body=b"net")
    assert local_copy(f"{ADDRESS}/nets/features.pt", "features").read_bytes() == b"net"


def test_what_a_command_writes_beside_a_copy_stays(s3):
    """As the checksums' verified.json, and averages."""
    s3.put_object(Bucket=BUCKET, Key="latents/manifest.json", Body=b"{}")
    s3.put_object(Bucket=BUCKET, Key="latents/", Body=b"")  # as a console makes folders
    copy = local_copy(f"{ADDRESS}/latents", "latents")
    (copy / "verified.json").write_text("{}")
    assert sorted(path.name for path in local_copy(f"{ADDRESS}/latents", "latents").glob("[!.]*")) == [
        "manifest.json", "verified.json"
    ]  # fmt: skip


def test_files_are_listed_while_others_come_and_go(tmp_path):
    ended = threading.Event()

    def churn():
        while not ended.is_set():
            hidden = tmp_path / ".2.ckpt.saving.tmp"
            hidden.mkdir()
            (hidden / "part").write_bytes(b"1")
            hidden.rename(tmp_path / "2.ckpt")
            shutil.rmtree(tmp_path / "2.ckpt")

    (tmp_path / "stays").write_bytes(b"1")
    thread = threading.Thread(target=churn)
    thread.start()
    try:
        found = [files_of(tmp_path) for _ in range(300)]
    finally:
        ended.set()
        thread.join()
    assert all("stays" in each for each in found)
    assert not any(part.startswith(".") for each in found for name in each for part in name.split("/"))


def run_folder(path):
    path.mkdir()
    (path / CONFIG).write_text("command: train_diffusion\n")
    return path


def test_a_run_s_copy_is_what_the_run_is(s3, tmp_path):
    run, store = run_folder(tmp_path / "run"), Store(f"{ADDRESS}/runs/x")
    (run / "checkpoints").mkdir()
    (run / "checkpoints/1.ckpt").write_bytes(b"first")
    (run / ".lock").write_bytes(b"mine")
    (run / "checkpoints/.2.ckpt.abc.tmp").write_bytes(b"half")
    with Mirror(store, run) as mirror:
        mirror.upload()
        assert keys(s3) == ["runs/x/checkpoints/1.ckpt", "runs/x/config.yaml"]
        (run / "checkpoints/1.ckpt").rename(run / "checkpoints/2.ckpt")
        (run / "metrics.csv").write_text("a\n")
    assert keys(s3) == ["runs/x/checkpoints/2.ckpt", "runs/x/config.yaml", "runs/x/metrics.csv"]


def test_a_file_follows_those_that_it_names(s3, tmp_path, monkeypatch):
    run = run_folder(tmp_path / "run")
    for name in ("manifest.json", "train-0.json", "train-0.tar", "2.ckpt/shards.json", "2.ckpt/__0_0.distcp"):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_bytes(b"1")
    order = []
    monkeypatch.setattr(Store, "put", lambda self, file, name: order.append(name) or 0.0)
    mirror = Mirror(Store(f"{ADDRESS}/runs/x"), run)
    mirror.upload()
    assert order.index("train-0.tar") < order.index("train-0.json") < order.index("manifest.json") == len(order) - 1
    assert order.index("2.ckpt/__0_0.distcp") < order.index("2.ckpt/shards.json")


def test_a_command_that_was_refused_uploads_nothing(s3, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/log.txt").write_text("refused")
    with pytest.raises(KeyError), Mirror(Store(f"{ADDRESS}/runs/x"), tmp_path / "run"):
        raise KeyError
    assert keys(s3) == []


def test_a_store_that_fails_is_tried_again_and_stops_nothing(s3, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(run_copies, "EVERY", 0.01)
    run, store, put, fails = run_folder(tmp_path / "run"), Store(f"{ADDRESS}/runs/x"), Store.put, [True]

    def flaky(self, file, name):
        if fails[0]:
            raise StoreError("store=s3://x: no route")
        return put(self, file, name)

    monkeypatch.setattr(Store, "put", flaky)
    with Mirror(store, run):
        while not caplog.records:
            time.sleep(0.01)
        fails[0] = False
    assert keys(s3) == ["runs/x/config.yaml"]
    fails[0] = True
    (run / "metrics.csv").write_text("a\n")
    monkeypatch.setattr(run_copies.time, "sleep", lambda _: None)
    with (
        pytest.raises(StoreError, match=r"no route; all is whole in .*: the same command uploads it"),
        Mirror(store, run),
    ):
        pass


def test_what_is_there_already_is_not_uploaded_again(s3, tmp_path, monkeypatch):
    run, store = run_folder(tmp_path / "run"), Store(f"{ADDRESS}/runs/x")
    with Mirror(store, run):
        pass
    monkeypatch.setattr(Store, "put", lambda *_: pytest.fail("uploaded again"))
    with Mirror(store, run):
        pass


def test_what_is_removed_here_between_two_commands_stays_there(s3, tmp_path):
    run, store = run_folder(tmp_path / "run"), Store(f"{ADDRESS}/runs/x")
    (run / "train-000000.tar").write_bytes(b"1")
    with Mirror(store, run):
        pass
    (run / "train-000000.tar").unlink()  # to make room
    bring_run(store, run, lambda name: not name.endswith(".tar"))
    with Mirror(store, run):
        pass
    assert "runs/x/train-000000.tar" in keys(s3)


def test_what_is_removed_there_is_uploaded_again(s3, tmp_path):
    run, store = run_folder(tmp_path / "run"), Store(f"{ADDRESS}/runs/x")
    with Mirror(store, run):
        pass
    s3.delete_object(Bucket=BUCKET, Key="runs/x/config.yaml")
    bring_run(store, run, lambda name: True)
    with Mirror(store, run):
        pass
    assert keys(s3) == ["runs/x/config.yaml"]


def test_a_new_machine_gets_the_run_and_a_later_version_here_stays(s3, tmp_path):
    run, store = run_folder(tmp_path / "run"), Store(f"{ADDRESS}/runs/x")
    (run / "metrics.csv").write_text("old\n")
    with Mirror(store, run):
        pass
    bring_run(store, tmp_path / "other", lambda name: name != CONFIG)
    assert [path.name for path in (tmp_path / "other").glob("[!.]*")] == ["metrics.csv"]
    (run / "metrics.csv").write_text("old\nnew\n")
    later = time.time() + 60
    os.utime(run / "metrics.csv", (later, later))
    bring_run(store, run, lambda name: True)
    assert (run / "metrics.csv").read_text() == "old\nnew\n"


def test_what_another_machine_has_replaced_is_fetched_though_it_is_as_large(s3, tmp_path):
    run, store = run_folder(tmp_path / "run"), Store(f"{ADDRESS}/runs/x")
    (run / "best.ckpt").write_bytes(b"first")
    with Mirror(store, run):
        pass
    time.sleep(1.1)  # S3's clock has whole seconds
    bring_run(store, tmp_path / "other", lambda name: True)
    (tmp_path / "other/best.ckpt").write_bytes(b"other")
    with Mirror(store, tmp_path / "other"):
        pass
    bring_run(store, run, lambda name: True)
    assert (run / "best.ckpt").read_bytes() == b"other"


def upload_all(folder):
    with Mirror(Store(f"{ADDRESS}/runs/x"), Path(folder)):
        pass


def test_killed_in_mid_upload_nothing_half_is_there(s3, tmp_path):
    """A file in several parts, of which the store has some: nobody sees it, and the next upload is whole."""
    run = run_folder(tmp_path / "run")
    size = 130 << 20  # s3fs sends parts of 50 MiB
    with (run / "large.ckpt").open("wb") as file:
        file.truncate(size)
    process = multiprocessing.get_context("spawn").Process(target=upload_all, args=(str(run),))
    process.start()
    while not s3.list_multipart_uploads(Bucket=BUCKET).get("Uploads"):
        assert process.is_alive()
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert "runs/x/large.ckpt" not in keys(s3)
    upload_all(run)
    assert Store(f"{ADDRESS}/runs/x").names()["large.ckpt"].size == size
