"""What a stage writes takes the place of nothing that this project did not write."""

import errno
import json
import os
import subprocess
import sys

import pytest

from conftest import ROOT
from genrec.runtime import files
from genrec.runtime.artefacts import NOTE, UNFINISHED, already_done, clear, is_done, make_facts, read_facts, write_facts
from genrec.runtime.errors import UserError
from genrec.runtime.files import atomic_path, check_new, check_ours, check_output

ARGUMENTS = {"seed": 1, "modules": ("q", "v")}  # the facts hold a list


def finished(folder):
    with atomic_path(folder) as partial:
        (partial / "model").mkdir(parents=True)
        (partial / "model/weights").write_text("w")
        write_facts(partial, make_facts("stage", ARGUMENTS))
    return folder


def test_facts_list_the_files_of_the_folder(tmp_path):
    assert json.loads((finished(tmp_path / "a") / "facts.json").read_text())["files"] == ["model/weights"]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["thesis.txt", "sub/thesis.txt", ".hidden"])
@pytest.mark.parametrize("where", ["output", "work"])
def test_a_folder_with_other_files_is_refused_and_kept(tmp_path, where, name, overwrite):
    file = tmp_path / where / name
    file.parent.mkdir(parents=True)
    file.write_text("years of work")
    for check in (is_done, already_done):
        with pytest.raises(UserError, match=f"{where}: holds {name}, which this stage did not write"):
            check(tmp_path / "output", tmp_path / "work", "stage", ARGUMENTS, overwrite)
    assert file.read_text() == "years of work"


def test_overwriting_keeps_out_of_a_finished_folder_that_holds_other_files_too(tmp_path):
    (finished(tmp_path / "output") / "model/notes.txt").write_text("mine")
    assert is_done(tmp_path / "output", tmp_path / "work", "stage", ARGUMENTS)
    with pytest.raises(UserError, match=r"notes\.txt, which"):
        already_done(tmp_path / "output", tmp_path / "work", "stage", ARGUMENTS, overwrite=True)
    with pytest.raises(UserError, match=r"notes\.txt, which"):
        check_new(tmp_path / "output", overwrite=True)
    assert (tmp_path / "output/model/weights").is_file()


def test_what_is_done_is_said_of_a_folder_that_cannot_be_written_too(tmp_path, monkeypatch):
    finished(tmp_path / "output")

    def full(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(files, "TemporaryDirectory", full)
    assert is_done(tmp_path / "output", tmp_path / "work", "stage", ARGUMENTS)
    with pytest.raises(UserError, match="cannot be written"):
        is_done(tmp_path / "output", tmp_path / "work", "stage", ARGUMENTS, overwrite=True)


def test_what_is_ours_is_overwritten_and_an_empty_folder_is_used(tmp_path):
    (tmp_path / "output").mkdir()
    output, work = tmp_path / "output", tmp_path / "work"
    assert not already_done(output, work, "stage", ARGUMENTS, overwrite=False)
    assert (work / NOTE).is_file()
    finished(output)
    assert not already_done(output, tmp_path / "again", "stage", ARGUMENTS | {"seed": 2}, overwrite=True)
    assert not output.exists()


def test_a_run_that_left_nothing_but_its_arguments_is_in_nobodys_way(tmp_path):
    output, work = tmp_path / "output", tmp_path / "work"
    assert not already_done(output, work, "train", ARGUMENTS, overwrite=False)
    assert not already_done(output, work, "train", ARGUMENTS | {"seed": 2}, overwrite=False)
    (work / "checkpoint-1").touch()
    assert not is_done(output, work, "train", ARGUMENTS | {"seed": 2})
    said = "was made with --seed 2, not 1; choose another DRAFT_MODEL_NAME, or pass --overwrite"
    with pytest.raises(UserError, match=said):
        is_done(output, work, "train", ARGUMENTS)


def test_a_folder_that_is_older_than_a_flag_was_made_as_all_were_then(tmp_path):
    finished(tmp_path / "target")
    done = [tmp_path / "target", tmp_path / "work", "stage"]
    assert is_done(*done, ARGUMENTS | {"item_rows": "random", "lora_modules": ("q_proj", "v_proj")})
    with pytest.raises(UserError, match="was made with --item_rows random, not level; choose another OUTPUT_DIR"):
        is_done(*done, ARGUMENTS | {"item_rows": "level"})
    with pytest.raises(UserError, match="was made with --alpha None, not 2"):
        is_done(*done, ARGUMENTS | {"alpha": 2})


def test_a_folder_of_a_model_that_is_not_ours_is_not_said_to_be_absent(tmp_path):
    with pytest.raises(UserError, match=r"has no facts\.json, so no stage of ours has finished it; it is written by"):
        read_facts(tmp_path, "train", "train")


def test_a_finished_folder_is_kept_where_something_else_has_come_to_stand(tmp_path):
    def write():
        with atomic_path(tmp_path / "a") as partial:
            partial.mkdir()
            (partial / "result").write_text("r")
            (tmp_path / "a").mkdir()
            (tmp_path / "a/late.txt").write_text("late")

    with pytest.raises(UserError, match="what was made is kept in"):
        write()
    assert (tmp_path / "a/late.txt").read_text() == "late"
    (kept,) = tmp_path.glob("a.new-*")
    assert (kept / "result").read_text() == "r"


def test_clearing_leaves_what_others_wrote(tmp_path):
    work = tmp_path / "work"
    (work / "checkpoint-3").mkdir(parents=True)
    for name in (NOTE, "checkpoint-3/model", "runs.txt"):
        (work / name).write_text("x")
    clear(work)
    assert [path.name for path in work.iterdir()] == ["runs.txt"]
    (work / "runs.txt").unlink()
    (work / NOTE).write_text("x")
    check_ours(work, UNFINISHED)
    clear(work)
    assert not work.exists()


@pytest.mark.parametrize(("path", "said"), [("file", "is a file"), ("file/below", "cannot be written")])
def test_an_output_that_cannot_be_written_is_refused(tmp_path, path, said):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=said):
        check_output(tmp_path / path)


def test_two_runs_do_not_work_in_one_folder(tmp_path):
    assert not already_done(tmp_path / "o", tmp_path / "w", "stage", ARGUMENTS, overwrite=False)
    again = "from pathlib import Path; from genrec.runtime.artefacts import already_done; "
    again += f"already_done(Path({str(tmp_path / 'o')!r}), Path({str(tmp_path / 'w')!r}), 'stage', {ARGUMENTS}, False)"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "code")}
    done = subprocess.run([sys.executable, "-c", again], env=environment, capture_output=True, text=True, check=False)
    assert "UserError" in done.stderr
    assert "another run is at work there" in done.stderr


def test_what_killed_processes_left_is_removed_and_what_others_write_is_not(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with atomic_path(tmp_path / "a") as partial:
        partial.write_text("a")
        prefix = partial.name.rpartition("-")[0]
    (tmp_path / f"{prefix}-{gone.pid}").mkdir()
    (tmp_path / f"{prefix}-{os.getpid()}").mkdir()  # of a container that was started again, with the same numbers
    (tmp_path / f"{prefix}-1").write_text("of a process that runs")
    with atomic_path(tmp_path / "a") as partial:
        partial.write_text("b")
    assert {path.name for path in tmp_path.iterdir()} == {"a", f"{prefix}-1"}
