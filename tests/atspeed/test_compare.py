"""The comparison of drafts: its sums by hand, and the one command that makes it."""

import pandas as pd
import pytest

from atspeed.benchmark.comparison import by_draft, over_seeds, ranking
from atspeed.benchmark.methods import BASELINE, GENERATE
from conftest import script, succeed
from genrec.data.toy import make_toy
from genrec.runtime.artefacts import already_done


def row(method, accepted, recall):
    numbers = {"target calls": 4 - (accepted or 0), "speed-up": 1.0, "over gamma 0": 1.0, "NDCG@K": recall / 2}
    return {"method": method, "K": 5, "accepted levels": accepted, "Recall@K": recall} | numbers


def test_seeds_are_averaged_and_relaxed_lists_are_set_against_those_of_generate():
    drafts = by_draft(
        pd.DataFrame(
            [
                row(GENERATE, None, 0.5), row(BASELINE, None, 0.5),
                row("SFTModel 0 strict", 1.0, 0.5), row("SFTModel 1 strict", 2.0, 0.5),
                row("SFTModel 0 relaxed", 2.0, 0.25), row("SFTModel 1 relaxed", 3.0, 0.75),
                row("SeqKDModel 0 strict", 1.75, 0.5),
            ]
        )
    )  # fmt: skip
    assert len(drafts) == 5
    assert drafts["Recall change"].tolist() == [0, 0, -0.25, 0.25, 0]
    table = over_seeds(drafts).set_index(["verification", "model class"])
    assert table.loc[("strict", "SFTModel"), ["accepted levels", "± levels", "target calls"]].tolist() == [
        1.5,
        0.5,
        2.5,
    ]
    assert table.loc[("relaxed", "SFTModel"), ["accepted levels", "Recall change", "NDCG@K"]].tolist() == [2.5, 0, 0.25]
    assert ranking(over_seeds(drafts)) == "SeqKDModel 1.75, SFTModel 1.50"


@pytest.mark.slow
def test_one_command_makes_the_comparison_and_goes_on_where_it_stopped(tmp_path):
    make_toy(n_items=300, n_users=60).save(tmp_path / "data" / "toy")
    options = {"MODEL_CLASSES": "SFTModel AtSpeedSModel", "TARGET_EPOCHS": "1", "DRAFT_EPOCHS": "1", "TEST_USERS": "4"}
    options |= {"TARGET_BASE": "", "DRAFT_BASE": ""}  # tiny and random
    output = succeed("reproduce", tmp_path, **options)
    assert "8 of 8 lists identical for all methods; 0 differ" in output
    (compared,) = (tmp_path / "output" / "toy" / "comparison").iterdir()
    rows = pd.read_csv(compared / "comparison.csv")
    assert len(rows) == 2 * 2 * 2  # verifications, classes, K
    assert rows[rows["verification"] == "strict"]["accepted levels"].between(0, 3).all()
    assert (compared / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert f"{tmp_path / 'output/toy/target'}: done already" in succeed("reproduce", tmp_path, **options)
    work = compared.with_name(f"{compared.name}.work")
    already_done(compared, work, "compare", {}, overwrite=True)  # removes it, and is at work now
    refused = {work: "another run is at work there", compared: "is a file, and a folder is to be written"}
    for place, said in refused.items():
        if place == compared:
            place.touch()
        output, code = script("reproduce", tmp_path, **options)
        assert (code, output.splitlines()[-1].startswith(f"error: {place}: {said}")) == (2, True), output
